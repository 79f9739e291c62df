"""What a stream says while it is heard: words that may still change, words that may not, task tokens, the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterable, Tuple

from tokenverse_pp.search.hypothesis import TimedWord

DIGITS = 6  # of seconds and confidences in JSON
PARTIAL, FINAL, TOKEN, END = "partial", "final", "token", "end"


@dataclass(frozen=True)
class Event:
    """One event of a stream.

    Args:
        kind: ``final``: plain words that will not change any more, each told once; ``token``: one task token that will
            not change any more; ``partial``: what follows them for now, task tokens included (it replaces the partial
            before it, and is told whenever it changes, hence also when it becomes empty); ``end``: the stream is
            closed, and nothing follows.
        time: seconds of audio heard (and decoded) when it was told. What it says happened at ``words[0].start``; the
            difference is the emission delay.
        text: of the words, a space between two. The texts of all ``final`` and ``token`` events in their order, put
            together with spaces, are the whole hypothesis, and the text of ``end``.
        words: with times from the stream's start, and confidences; one for ``token``, none for ``end``.
    """

    kind: str
    time: float
    text: str
    words: Tuple[TimedWord, ...] = ()

    def as_dict(self) -> Dict[str, Any]:
        """For JSON: kind, time, text, and words as a list of {text, start, end, confidence}."""
        words = [{k: v if k == "text" else round(v, DIGITS) for k, v in asdict(word).items()} for word in self.words]
        return {"kind": self.kind, "time": round(self.time, DIGITS), "text": self.text, "words": words}


def text_of(words: Iterable[TimedWord]) -> str:
    """The words with spaces between them."""
    return " ".join(word.text for word in words)
