"""An encoder that hears its audio chunk by chunk, and gives what the masked full pass gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from torch import Tensor

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.masks import ChunkOptions
from tokenverse_pp.model.transducer import Transducer


@dataclass(frozen=True)
class StreamState:
    """What is kept of one stream between its chunks.

    Args:
        active: (K + 1,) of 0 and 1, the tasks; may be replaced between chunks (`dataclasses.replace`).
        samples: heard so far.
        tensors: histories of the convolutions and caches of the attentions, of constant size once the first chunk was
            heard (but for ``left_chunks=-1``).
    """

    active: Tensor
    samples: int
    tensors: Dict[str, Tensor]


class StreamingEncoder:
    """Encodes any number of streams, each as if it were alone.

    Args:
        transducer: the model, in eval mode.
        options: the chunks.

    Attributes:
        chunk_samples: samples that each step takes of a stream.
        chunk_frames: output frames that a step gives, but for a stream's first and last.
        frame_shift: seconds from one output frame to the next.
        lookahead_ms: how much after a chunk's end its output depends on.

    Raises:
        UserError: options or an encoder that cannot be streamed.
    """

    chunk_samples: int
    chunk_frames: int
    frame_shift: float
    lookahead_ms: float = 0.0

    def __init__(self, transducer: Transducer, options: ChunkOptions) -> None:
        raise UserError("streaming: this encoder cannot be streamed yet")

    def start(self, active: Tensor) -> StreamState:
        """A new stream with the tasks ``active`` (K + 1,)."""
        return StreamState(active, 0, {})

    def step(
        self, chunks: Sequence[Tensor], states: Sequence[StreamState], last: Sequence[bool]
    ) -> Tuple[List[Tensor], List[StreamState]]:
        """One chunk of each stream.

        Args:
            chunks: (S_i,) float32 at 16 kHz: exactly ``chunk_samples``, fewer (or none) only where ``last``.
            states: from `start`, or from the step before.
            last: whether the stream ends with this chunk.

        Returns:
            Output (T_i, C) of each, and the new states.
        """
        raise UserError("streaming: this encoder cannot be streamed yet")
