"""One stream of a transcriber: audio that waits for its chunk to be full, and the states of encoder and search."""

from __future__ import annotations

from typing import Any, List

import torch
from torch import Tensor

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.masks import SAMPLE_RATE
from tokenverse_pp.streaming.encoder import StreamState
from tokenverse_pp.streaming.search import SearchState
from tokenverse_pp.streaming.transcriber_words import StreamWords

LARGEST = 64.0  # of a sample: far out of [-1, 1], where recordings that are too loud may go


class Stream:
    """One stream of a transcriber: a handle to give back to it. ``name`` is what errors call it."""

    def __init__(self, owner: Any, name: str, encoder: StreamState, search: SearchState, words: StreamWords):
        self.owner, self.name = owner, name
        self.encoder, self.search, self.words = encoder, search, words
        self.waiting = torch.zeros(0)  # samples of a chunk that is not full
        self.samples = 0  # decoded
        self.closed = False

    def __repr__(self) -> str:
        return f"<Stream {self.name}>"

    @property
    def seconds(self) -> float:
        """Audio that was decoded."""
        return self.samples / SAMPLE_RATE

    def check_open(self, owner: Any) -> None:
        """See that this is an open stream of this transcriber (raises UserError)."""
        if self.owner is not owner:
            raise UserError(f"{self.name}: a stream of another transcriber")
        if self.closed:
            raise UserError(f"{self.name}: the stream is closed")

    def checked(self, audio: Any) -> Tensor:
        """Audio as a float32 tensor (S,) in memory of its own (raises UserError)."""
        try:
            samples = torch.as_tensor(audio)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{self.name}: audio: expected an array of floats, got {type(audio).__name__}") from None
        if not samples.is_floating_point() or samples.dim() != 1:
            kind = f"{str(samples.dtype).replace('torch.', '')} of shape {tuple(samples.shape)}"
            raise UserError(f"{self.name}: audio: expected floats of shape (samples,), got {kind}")
        samples = samples.detach().to("cpu", torch.float32, copy=True)
        if not torch.isfinite(samples).all():
            raise UserError(f"{self.name}: audio: holds NaN or infinity")
        if len(samples) and float(samples.abs().max()) > LARGEST:
            raise UserError(
                f"{self.name}: audio: expected samples in [-1, 1], got {float(samples.abs().max()):g}; "
                "divide 16-bit samples by 32768"
            )
        return samples

    def chunks(self, audio: Tensor, size: int) -> List[Tensor]:
        """The chunks that are full with this audio; what is left waits."""
        whole = torch.cat([self.waiting, audio])
        count = len(whole) // size
        self.waiting = whole[count * size :].clone()  # no view: it would keep all of the audio in memory
        return list(whole[: count * size].split(size)) if count else []
