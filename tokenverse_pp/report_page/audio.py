"""The audio of a cut in the page: a link to its file, or the samples themselves."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional
from urllib.parse import quote

import soundfile
from lhotse.cut import Cut, MixedCut

from tokenverse_pp.dataset import SAMPLING_RATE, audio_files, load_inputs
from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.access import check_access

LONGEST = 120.0  # seconds: longer cuts are linked, never embedded
CHUNK = SAMPLING_RATE  # samples: libsndfile's Vorbis encoder overflows its stack on long writes


@dataclass(frozen=True)
class Source:
    """Where a player finds a cut: an address, and the second at which the cut starts there."""

    url: str
    offset: float


def source_of(cut: Cut, folder: Path, embed: bool) -> Optional[Source]:
    """A cut's audio for a page in ``folder``; None where there is none that a browser could open.

    Args:
        embed: put the audio itself into the address (mono, 16 kHz, Vorbis: about 6 kB a second).

    Raises:
        UserError: where the audio is to be embedded, and is behind a command or URL that is not allowed.
    """
    if embed and cut.duration <= LONGEST:
        check_access(cut)
        try:
            samples = load_inputs(cut, convert=True).numpy()
        except UserError:
            return None
        memory = io.BytesIO()
        with soundfile.SoundFile(memory, "w", SAMPLING_RATE, 1, format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(samples), CHUNK):
                file.write(samples[start : start + CHUNK])
        return Source(f"data:audio/ogg;base64,{base64.b64encode(memory.getvalue()).decode()}", 0.0)
    files = audio_files(cut)
    if isinstance(cut, MixedCut) or len(files) != 1:
        return None
    return Source(quote(Path(os.path.relpath(files[0], folder)).as_posix()), float(cut.start))
