"""Convert corpora to labelled cuts: their tables are read here, AMI is read by lhotse's recipe."""

from __future__ import annotations

from typing import Dict

LICENCES: Dict[str, str] = {
    "ami": "CC BY 4.0",
    "callhome-english": "LDC User Agreement (LDC97S42, LDC97T14)",
    "commonvoice": "CC0 1.0; its terms forbid finding out who the speakers are",
    "earnings22": "CC BY-SA 4.0",
    "eval2000": "LDC User Agreement (LDC2002S09, LDC2002T43)",
    "fleurs": "CC BY 4.0",
    "huggingface": "as the data set's card says",
    "librispeech": "CC BY 4.0",
    "mls": "CC BY 4.0",
    "slue-voxpopuli": "CC0 1.0, under the European Parliament's legal notice",
    "voxpopuli": "CC0 1.0, under the European Parliament's legal notice",
}
"""Licence of each corpus that `tokenverse-pp manifest prepare` knows, as its distributor states it."""
