"""Streaming: the encoder chunk by chunk, and a transcriber on top of it."""

from tokenverse_pp.model.masks import ChunkOptions
from tokenverse_pp.streaming.encoder import StreamingEncoder, StreamState

__all__ = ["ChunkOptions", "StreamState", "StreamingEncoder"]
