"""TokenVerse++: one transducer for speech recognition and the tasks written into its transcript.

    from tokenverse_pp import TokenVerse

    model = TokenVerse.from_pretrained("human-speech-small")
    print(model.transcribe("call.wav").text)

`TokenVerse` and `Transcript` are imported when they are first asked for: torch takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from tokenverse_pp.api.model import TokenVerse
    from tokenverse_pp.api.transcript import Transcript

__version__ = "0.1.0"
__all__ = ["TokenVerse", "Transcript", "__version__"]

_LAZY = {"TokenVerse": "tokenverse_pp.api.model", "Transcript": "tokenverse_pp.api.transcript"}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> List[str]:
    """What there is, imported or not."""
    return sorted({*globals(), *_LAZY})
