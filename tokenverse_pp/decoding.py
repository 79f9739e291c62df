"""Cuts -> hypotheses: batches through the encoder, then the search, with the chosen tasks."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Sequence

import torch
from lhotse.cut import Cut

from tokenverse_pp.dataset import collate, load_inputs
from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.stored_features import batches_of, check_origin
from tokenverse_pp.search import SearchOptions, constraints_for, search_frames
from tokenverse_pp.search.records import to_record
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.training.distributed import autocast
from tokenverse_pp.training.setup import Loaded


def choose_tasks(tasks: TaskSet, names: Sequence[str]) -> TaskSet:
    """The tasks to decode: those named, or all that the model knows (raises UserError for one it does not)."""
    for name in names:
        if name not in tasks:
            raise UserError(f"--tasks: {name!r} is not a task of this model, which knows {', '.join(tasks.names)}")
    return tasks.subset(names or tasks.names)


def check_finite(out: torch.Tensor, lens: torch.Tensor, group: Sequence[Cut]) -> None:
    """See that the encoder's output (N, T, C) has numbers in it; NaN in the audio ends here (raises UserError)."""
    for cut, frames, length in zip(group, out, lens.tolist()):
        if not torch.isfinite(frames[:length]).all():
            raise UserError(f"cut {cut.id}: the encoder gave NaN or infinity; does its audio or the model hold any?")


@torch.no_grad()
def decode(
    loaded: Loaded,
    cuts: Sequence[Cut],
    active: TaskSet,
    options: SearchOptions,
    max_duration: float = 120.0,
    stored_features: bool = False,
    precision: str = "fp32",
) -> Iterator[List[Dict[str, Any]]]:
    """Decode cuts in order of duration, and yield a batch's records as soon as they are there.

    Args:
        loaded: the model.
        cuts: anything from 1 up.
        active: tasks to decode; the tokens of others are barred.
        options: of the search.
        max_duration: seconds of padded audio in a batch.
        stored_features: take the cuts' stored features in place of their audio.
        precision: of the encoder: fp32, bf16 or fp16.
    """
    model, device = loaded.model, next(loaded.model.parameters()).device
    constraints = constraints_for(
        loaded.tasks, active.names, loaded.tokenizer, options.languages, options.force_language
    )
    mask = torch.tensor(loaded.tasks.mask(active.names), dtype=torch.float32, device=device)
    if stored_features and cuts:
        check_origin(cuts[0], loaded.config.model.encoder)
    for group in batches_of(sorted(cuts, key=lambda cut: cut.duration), max_duration):
        inputs, lens = collate([load_inputs(cut, stored_features) for cut in group])
        with autocast(device, precision):
            out, lens = model.encode(inputs.to(device), lens.to(device), mask.expand(len(group), -1), stored_features)
        check_finite(out, lens, group)
        found = search_frames(model.predictor, model.joiner, out.float(), lens, options, constraints)
        shift = model.encoder.output_frame_shift
        yield [to_record(cut.id, best[0], loaded.tokenizer, active, shift) for cut, best in zip(group, found)]
