"""Streaming: the encoder chunk by chunk, and a transcriber on top of it.

What is named here is imported when it is asked for: `tokenverse_pp.runtime` uses the events without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenverse_pp.model.masks import ChunkOptions
    from tokenverse_pp.streaming.encoder import StreamingEncoder, StreamState
    from tokenverse_pp.streaming.transcriber import StreamingOptions, StreamingTranscriber

__all__ = ["ChunkOptions", "StreamState", "StreamingEncoder", "StreamingOptions", "StreamingTranscriber"]


def __getattr__(name: str) -> Any:
    if name in ("StreamingEncoder", "StreamState"):
        from tokenverse_pp.streaming import encoder

        return getattr(encoder, name)
    if name in ("StreamingTranscriber", "StreamingOptions"):
        from tokenverse_pp.streaming import transcriber

        return getattr(transcriber, name)
    if name == "ChunkOptions":
        from tokenverse_pp.model.masks import ChunkOptions

        return ChunkOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
