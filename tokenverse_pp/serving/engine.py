"""A trained model as the server's engine."""

from __future__ import annotations

from dataclasses import replace

from tokenverse_pp.serving.protocol import SAMPLE_RATE
from tokenverse_pp.serving.worker import Engine
from tokenverse_pp.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.training.setup import Loaded

FULL_CONTEXT_SECONDS = 0.64  # audio handed over at once where the model waits for the end in any case


def build_engine(loaded: Loaded, options: StreamingOptions) -> Engine:
    """Two transcribers of one model: with and without reset at endpoints, which a stream chooses.

    Raises:
        UserError: for options that the model cannot be streamed with.
    """
    transcribers = {
        reset: StreamingTranscriber(loaded, replace(options, reset_at_endpoint=reset)) for reset in (False, True)
    }
    seconds = options.chunks.chunk_ms / 1000 or FULL_CONTEXT_SECONDS
    tasks = loaded.tasks.subset(options.tasks).names if options.tasks else loaded.tasks.names
    return Engine(transcribers, tuple(tasks), int(seconds * SAMPLE_RATE))
