"""How to search: one frozen set of options, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Optional, Tuple, Union

from tokenverse_pp.base.errors import UserError

METHODS = ("greedy", "beam", "full_beam", "k2_fast_beam")
JOINER_DTYPES = (None, "float32", "bfloat16", "float16")
MOST_HOTWORDS = 10000


@dataclass(frozen=True)
class SearchOptions:
    """Options of `tokenverse_pp.decoding.search.search`.

    Args:
        method: ``greedy`` (the best symbol of each frame), ``beam`` (modified beam search), ``full_beam`` (beam search
            with up to ``max_symbols`` symbols a frame) or ``k2_fast_beam`` (a lattice by k2, where k2 is installed).
            All but the third write at most one symbol a frame, as icefall's ``greedy_search_batch``,
            ``modified_beam_search`` and ``fast_beam_search``.
        beam: hypotheses kept an utterance; greedy search keeps one whatever this says.
        nbest: hypotheses returned an utterance, at most ``beam``.
        max_symbols: symbols a frame at most, for ``full_beam``.
        lattice_beam: for ``k2_fast_beam``: what is worse than the best by more than this log-probability is pruned.
        max_states: for ``k2_fast_beam``: states kept an utterance and frame.
        max_contexts: for ``k2_fast_beam``: different predictor contexts kept an utterance and frame.
        temperature: divides the logits before the softmax.
        blank_penalty: subtracted from the blank's logit before the softmax: positive writes more, negative less.
        length_norm: rank finished hypotheses by log-probability / (tokens + context size of the predictor), as
            icefall does, instead of by log-probability.
        length_bonus: added to the score for each token written, while searching and ranking; not to ``log_prob``. With
            ``length_norm`` it is divided by the length in the final ranking.
        hotwords: phrases to prefer, each with or without a bonus of its own (`tokenverse_pp.decoding.context_graph`).
        hotword_score: bonus of each token of a phrase that has none of its own, in nats.
        lm: a language model for shallow fusion, or a folder of one a language (see
            `tokenverse_pp.decoding.language_models`).
        lm_scale: of its log-probabilities, 0.2 to 0.5 is usual.
        lm_bonus: added for each token that it judges, against hypotheses that get too short: 3 to 4 times ``lm_scale``.
        languages: codes of the languages that may be written (BCP 47, ISO 639; `tokenverse_pp.base.languages` finds the
            model's own that are meant); None for all that the model knows.
        force_language: whether the first token must be a language token while the task ``lid`` is active; None for the
            default, which is yes. Without ``lid`` it has no effect.
        joiner_dtype: number type of the joiner's matrix products; None for that of its weights. Softmax and scores
            are float32 or better in any case.

    Raises:
        UserError: for a value that no search can use.
    """

    method: str = "beam"
    beam: int = 4
    nbest: int = 1
    max_symbols: int = 3
    lattice_beam: float = 20.0
    max_states: int = 64
    max_contexts: int = 8
    temperature: float = 1.0
    blank_penalty: float = 0.0
    length_norm: bool = True
    length_bonus: float = 0.0
    hotwords: Optional[Tuple[Union[str, Tuple[str, float]], ...]] = None
    hotword_score: float = 1.5
    lm: Optional[str] = None
    lm_scale: float = 0.4
    lm_bonus: float = 1.5
    languages: Optional[Tuple[str, ...]] = None
    force_language: Optional[bool] = None
    joiner_dtype: Optional[str] = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"search option 'method': expected one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("beam", "nbest", "max_symbols", "max_states", "max_contexts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"search option {name!r}: expected a whole number of at least 1, got {value!r}")
        if self.nbest > self.width:
            kept = "greedy search, which keeps one hypothesis" if self.method == "greedy" else f"beam={self.beam}"
            raise UserError(f"search option 'nbest': {self.nbest} hypotheses cannot come from {kept}")
        for name in ("temperature", "lattice_beam", "lm_scale"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise UserError(f"search option {name!r}: expected a number above 0, got {value!r}")
        for name in ("blank_penalty", "length_bonus", "lm_bonus"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise UserError(f"search option {name!r}: expected a finite number, got {value!r}")
        if self.joiner_dtype not in JOINER_DTYPES:
            expected = ", ".join(str(dtype) for dtype in JOINER_DTYPES)
            raise UserError(f"search option 'joiner_dtype': expected one of {expected}, got {self.joiner_dtype!r}")
        self._check_languages()
        self._check_bonuses()

    def _check_languages(self) -> None:
        if self.languages is None:
            return
        if isinstance(self.languages, str) or not all(isinstance(code, str) for code in self.languages):
            raise UserError(f"search option 'languages': expected a list of codes, got {self.languages!r}")
        if not self.languages:
            raise UserError("search option 'languages': expected at least one code, or none to allow all")
        object.__setattr__(self, "languages", tuple(self.languages))

    def _check_bonuses(self) -> None:
        if not _is_bonus(self.hotword_score):
            raise UserError(f"search option 'hotword_score': expected a number above 0, got {self.hotword_score!r}")
        if isinstance(self.hotwords, str):
            raise UserError(f"search option 'hotwords': expected a list of phrases, got {self.hotwords!r}")
        phrases = tuple(self.hotwords or ())
        for item in phrases:
            phrase, bonus = (item, self.hotword_score) if isinstance(item, str) else _pair(item)
            if not isinstance(phrase, str) or not phrase.strip() or not _is_bonus(bonus):
                raise UserError(
                    f"search option 'hotwords': expected a phrase or (phrase, number above 0), got {item!r}"
                )
        if len(phrases) > MOST_HOTWORDS:
            raise UserError(f"search option 'hotwords': at most {MOST_HOTWORDS} phrases, got {len(phrases)}")
        object.__setattr__(self, "hotwords", tuple(x if isinstance(x, str) else tuple(x) for x in phrases) or None)
        if self.lm is not None:
            object.__setattr__(self, "lm", str(self.lm))
        if self.method == "greedy" and self.earns:
            name = next(x for x in ("hotwords", "length_bonus", "lm") if getattr(self, x))
            raise UserError(f"search option {name!r}: greedy search knows no bonuses; use method 'beam'")

    @property
    def earns(self) -> bool:
        """Whether hypotheses earn more than their log-probability (`tokenverse_pp.decoding.scorer`)."""
        return bool(self.hotwords or self.length_bonus or self.lm)

    @property
    def width(self) -> int:
        """Hypotheses kept an utterance."""
        return 1 if self.method == "greedy" else self.beam


def _is_bonus(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _pair(item: Any) -> Tuple[Any, Any]:
    return (item[0], item[1]) if isinstance(item, (list, tuple)) and len(item) == 2 else (None, None)
