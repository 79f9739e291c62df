"""A trained model as the server's engine."""

from __future__ import annotations

from dataclasses import replace

from tokenverse_pp.serving.worker import Engine
from tokenverse_pp.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.training.setup import Loaded


def build_engine(loaded: Loaded, options: StreamingOptions) -> Engine:
    """Two transcribers of one model: with and without reset at endpoints, which a stream chooses.

    Raises:
        UserError: for options that the model cannot be streamed with.
    """
    resets = (False, True) if "endp" in loaded.tasks else (False,)
    transcribers = {reset: StreamingTranscriber(loaded, replace(options, reset_at_endpoint=reset)) for reset in resets}
    tasks = loaded.tasks.subset(options.tasks).names if options.tasks else loaded.tasks.names
    return Engine(transcribers, tasks, transcribers[False].encoder.chunk_samples)
