"""How to search: one frozen set of options, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Tuple

from tokenverse_pp.errors import UserError

METHODS = ("greedy", "beam")
JOINER_DTYPES = (None, "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SearchOptions:
    """Options of `tokenverse_pp.search.search`.

    Args:
        method: ``greedy`` (the best symbol of each frame) or ``beam`` (modified beam search). Both write at most one
            symbol a frame, as icefall's ``greedy_search_batch`` and ``modified_beam_search``.
        beam: hypotheses kept an utterance; greedy search keeps one whatever this says.
        nbest: hypotheses returned an utterance, at most ``beam``.
        temperature: divides the logits before the softmax.
        blank_penalty: subtracted from the blank's logit before the softmax: positive writes more, negative less.
        length_norm: rank finished hypotheses by log-probability / (tokens + context size of the predictor), as
            icefall does, instead of by log-probability.
        languages: codes of the languages that may be written; None for all that the model knows.
        force_language: nothing may be written before a language token (only while ``lid`` is active).
        joiner_dtype: number type of the joiner's matrix products; None for that of its weights. Softmax and scores
            are float32 or better in any case.

    Raises:
        UserError: for a value that no search can use.
    """

    method: str = "beam"
    beam: int = 4
    nbest: int = 1
    temperature: float = 1.0
    blank_penalty: float = 0.0
    length_norm: bool = True
    languages: Optional[Tuple[str, ...]] = None
    force_language: bool = False
    joiner_dtype: Optional[str] = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"search option 'method': expected one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("beam", "nbest"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"search option {name!r}: expected a whole number of at least 1, got {value!r}")
        if self.nbest > self.width:
            kept = f"beam={self.beam}" if self.method == "beam" else "greedy search, which keeps one hypothesis"
            raise UserError(f"search option 'nbest': {self.nbest} hypotheses cannot come from {kept}")
        if not (isinstance(self.temperature, (int, float)) and 0 < self.temperature < math.inf):
            raise UserError(f"search option 'temperature': expected a number above 0, got {self.temperature!r}")
        if not (isinstance(self.blank_penalty, (int, float)) and math.isfinite(self.blank_penalty)):
            raise UserError(f"search option 'blank_penalty': expected a finite number, got {self.blank_penalty!r}")
        if self.joiner_dtype not in JOINER_DTYPES:
            expected = ", ".join(str(dtype) for dtype in JOINER_DTYPES)
            raise UserError(f"search option 'joiner_dtype': expected one of {expected}, got {self.joiner_dtype!r}")
        self._check_languages()

    def _check_languages(self) -> None:
        if self.languages is None:
            return
        if isinstance(self.languages, str) or not all(isinstance(code, str) for code in self.languages):
            raise UserError(f"search option 'languages': expected a list of codes, got {self.languages!r}")
        if not self.languages:
            raise UserError("search option 'languages': expected at least one code, or none to allow all")
        object.__setattr__(self, "languages", tuple(self.languages))

    @property
    def width(self) -> int:
        """Hypotheses kept an utterance."""
        return 1 if self.method == "greedy" else self.beam
