"""Multi-chunk training (XLSR-Transducer, arXiv 2407.04439): how much the encoder sees is drawn for each batch."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from typing import Optional, Sequence

from tokenverse_pp.config import Config, StreamingConfig
from tokenverse_pp.model.masks import ChunkOptions


class ChunkDraw:
    """Draws chunk size, left context and sinks, each uniformly from its list.

    The choice depends on seed, epoch and the batch's cuts alone, so a resumed run draws the same; ranks need not agree.
    """

    def __init__(self, config: StreamingConfig, seed: int = 0):
        self.config = config
        self.seed = seed

    def __call__(self, cut_ids: Sequence[str], epoch: int) -> Optional[ChunkOptions]:
        """The chunks of a batch, or None for full context."""
        key = hashlib.sha256(f"{self.seed}/{epoch}/{'/'.join(cut_ids)}".encode()).digest()
        rng = random.Random(key)
        chunk_ms, left, sinks = (
            rng.choice(choices) for choices in (self.config.chunk_ms, self.config.left_chunks, self.config.sinks)
        )
        return ChunkOptions(chunk_ms, left, sinks, self.config.strict) if chunk_ms else None


def training_chunks(config: Config) -> Optional[ChunkDraw]:
    """What draws the chunks of a run's batches; None where it trains in full context alone."""
    streaming = config.model.streaming
    return ChunkDraw(streaming, config.training.seed) if streaming.chunk_ms else None


def validation_chunks(config: Config) -> Optional[ChunkDraw]:
    """Validation is in full context if training ever is, else with the first of each list."""
    c = config.model.streaming
    if not c.chunk_ms or 0 in c.chunk_ms:
        return None
    first = dataclasses.replace(c, chunk_ms=c.chunk_ms[:1], left_chunks=c.left_chunks[:1], sinks=c.sinks[:1])
    return ChunkDraw(first)
