"""TokenVerse++: one transducer for speech recognition and the tasks written into its transcript.

    from tokenverse_pp import TokenVerse

    model = TokenVerse.from_pretrained("human-speech")
    print(model.transcribe("call.wav").text)

The names below are imported when they are first used: torch takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, List

from tokenverse_pp.moved import install

if TYPE_CHECKING:
    from tokenverse_pp.api.model import TokenVerse
    from tokenverse_pp.base.options import SearchOptions
    from tokenverse_pp.decoding.streaming.transcriber import StreamingTranscriber
    from tokenverse_pp.models.bundle import load_model
    from tokenverse_pp.tasks.base import Task, TaskSet
    from tokenverse_pp.tasks.result import Transcript

__version__ = "0.1.0"
__all__ = [
    "SearchOptions",
    "StreamingTranscriber",
    "Task",
    "TaskSet",
    "TokenVerse",
    "Transcript",
    "__version__",
    "load_model",
]

_LAZY = {
    "SearchOptions": "tokenverse_pp.base.options",
    "StreamingTranscriber": "tokenverse_pp.decoding.streaming.transcriber",
    "Task": "tokenverse_pp.tasks.base",
    "TaskSet": "tokenverse_pp.tasks.base",
    "TokenVerse": "tokenverse_pp.api.model",
    "Transcript": "tokenverse_pp.tasks.result",
    "load_model": "tokenverse_pp.models.bundle",
}

install()


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> List[str]:
    """What there is, imported or not."""
    return sorted({*globals(), *_LAZY})
