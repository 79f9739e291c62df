"""What decides the hypotheses, beside the model and the cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Optional, Sequence, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.long_audio.decode import check_windows
from tokenverse_pp.model.masks import ChunkOptions
from tokenverse_pp.search import SearchOptions
from tokenverse_pp.tasks.base import TaskSet


def choose_tasks(tasks: TaskSet, names: Sequence[str]) -> TaskSet:
    """The tasks to decode: those named, or all that the model knows (raises UserError for one it does not)."""
    for name in names:
        if name not in tasks:
            raise UserError(f"--tasks: {name!r} is not a task of this model, which knows {', '.join(tasks.names)}")
    return tasks.subset(names or tasks.names)


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode a CutSet.

    Args:
        search: options of the search.
        tasks: names of the tasks to decode, none for all that the model knows; the tokens of others are barred.
        max_duration: seconds of padded audio in a batch.
        stored_features: take the cuts' stored features in place of their audio.
        precision: of the encoder: fp32, bf16 or fp16.
        window: cuts of more seconds than this are decoded in windows of this length (`tokenverse_pp.long_audio`).
        overlap: seconds that two windows have in common.
        chunks: what each frame sees, as in streaming; None: full context. Cuts of any length are then decoded whole, in
            memory that grows with the square of their length.
        vector_scale: (task, factor) of the task vectors that are not to be added as they are (`vector_scale`).
    """

    search: SearchOptions = field(default_factory=SearchOptions)
    tasks: Tuple[str, ...] = ()
    max_duration: float = 120.0
    stored_features: bool = False
    precision: str = "fp32"
    window: float = 28.0
    overlap: float = 6.0
    chunks: Optional[ChunkOptions] = None
    vector_scale: Tuple[Tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.max_duration < math.inf:
            raise UserError(f"--max-duration: expected seconds above 0, got {self.max_duration:g}")
        check_windows(self.window, self.overlap)

    @property
    def in_chunks(self) -> bool:
        """Whether frames see less than the whole cut."""
        return self.chunks is not None and not self.chunks.full
