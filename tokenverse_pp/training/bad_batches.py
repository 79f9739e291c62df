"""What a step that was skipped had been given: written down so that it can be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import torch
from lhotse import CutSet
from safetensors.torch import save_file

from tokenverse_pp.dataset import Batch
from tokenverse_pp.files import replacing, write_text
from tokenverse_pp.manifests.files import write_cuts

FOLDER = "bad_batches"


def dump_batches(exp_dir: Path, step: int, rank: int, batches: Sequence[Batch], bad: Sequence[str]) -> Path:
    """Write this rank's batches of a step to ``exp_dir/bad_batches/step-N/``; returns that folder.

    ``rank-R.txt``: the ids of the cuts, those whose loss was not finite marked with ``*``. ``rank-R.cuts.jsonl``: the
    cuts. ``rank-R.batch-I.safetensors``: what the model was given. Audio inside a manifest (Shar) is left out of it.
    """
    folder = exp_dir / FOLDER / f"step-{step:08d}"
    cuts = [cut.drop_in_memory_data() for batch in batches for cut in batch.get("cuts", [])]
    ids = [cut_id for batch in batches for cut_id in batch["cut_ids"]]
    write_text(folder / f"rank-{rank}.txt", "".join(f"{'*' if i in bad else ' '} {i}\n" for i in ids))
    if cuts:
        write_cuts(CutSet.from_cuts(cuts), folder / f"rank-{rank}.cuts.jsonl")
    for number, batch in enumerate(batches):
        tensors = {key: value.cpu().contiguous() for key, value in batch.items() if isinstance(value, torch.Tensor)}
        with replacing(folder / f"rank-{rank}.batch-{number}.safetensors") as path:
            save_file(tensors, path)
    return folder
