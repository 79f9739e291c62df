"""Options of the search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Optional, Tuple, Union, get_args

from tokenverse_pp.base.errors import UserError

Method = Literal["greedy", "beam", "full_beam", "k2_fast_beam"]
JoinerDtype = Literal["float32", "bfloat16", "float16"]
METHODS = get_args(Method)
JOINER_DTYPES = (None, *get_args(JoinerDtype))
MOST_HOTWORDS = 10000
LM_SCALE, LM_BONUS = 0.4, 1.5  # for a language model without its own
Numbers = Tuple[Tuple[str, float], ...]  # (name, number) pairs


@dataclass(frozen=True)
class SearchOptions:
    """Options of `tokenverse_pp.decoding.search.search` (raises UserError if a value is invalid)."""

    method: Method = "beam"
    """Search method. greedy: the best symbol of each frame, or up to model.symbols_per_frame symbols, 1 by default.
    beam: modified beam search. full_beam: beam search with up to max_symbols symbols a frame. k2_fast_beam: a lattice
    by k2, if k2 is installed. beam and k2_fast_beam emit at most one symbol a frame."""
    beam: int = 4
    """Hypotheses kept per utterance; greedy search keeps one."""
    nbest: int = 1
    """Hypotheses returned per utterance, at most beam."""
    max_symbols: int = 3
    """Most symbols per frame, for full_beam."""
    lattice_beam: float = 20.0
    """For k2_fast_beam: paths worse than the best by more than this log-probability are pruned."""
    max_states: int = 64
    """For k2_fast_beam: states kept per utterance and frame."""
    max_contexts: int = 8
    """For k2_fast_beam: different predictor contexts kept per utterance and frame."""
    temperature: float = 1.0
    """Divides the logits before the softmax."""
    blank_penalty: float = 0.0
    """Subtracted from the logit of the blank before the softmax: positive values give more symbols, negative fewer."""
    token_bias: Numbers = ()
    """Added to the logit of a task token (or any other piece) before the softmax, e.g. [SCD]=0.7: positive values write
    it more often (recall), negative less (precision). May be given again."""
    length_norm: bool = True
    """Rank finished hypotheses by log-probability / (tokens + context size of the predictor), as icefall does, instead
    of by log-probability."""
    length_bonus: float = 0.0
    """Added to the score for each token, in the search and in the ranking; not to log_prob. With length_norm it is
    divided by the length in the final ranking."""
    hotwords: Optional[Tuple[Union[str, Tuple[str, float]], ...]] = None
    """Phrases to prefer, each with or without its own bonus (see `tokenverse_pp.decoding.context_graph`)."""
    hotword_score: float = 1.5
    """Bonus in nats for each token of a phrase without its own bonus."""
    lm: Optional[str] = None
    """Language model for shallow fusion (.tsv of words or .arpa), or a folder with one per language."""
    lm_scale: Optional[float] = None
    """Scale of the language model's log-probabilities; 0.2 to 0.5 is usual. Default: that of the file lm.json beside
    the language model, else 0.4."""
    lm_bonus: Optional[float] = None
    """Added for each token that the language model scores, against too short hypotheses; 3 to 4 times lm_scale.
    Default: that of lm.json, else 1.5."""
    languages: Optional[Tuple[str, ...]] = None
    """Codes of the languages that may be written (BCP 47 or ISO 639); default: all that the model knows."""
    force_language: Optional[bool] = None
    """With the task lid: whether a language token must come first; default: yes."""
    joiner_dtype: Optional[JoinerDtype] = None
    """Number type of the joiner's matrix products; default: that of its weights. Softmax and scores are in float32 or
    better."""

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
        optional = [name for name in ("lm_scale", "lm_bonus") if getattr(self, name) is None]
        for name in ("temperature", "lattice_beam", "lm_scale"):
            value = getattr(self, name)
            if name not in optional and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise UserError(f"search option {name!r}: expected a number above 0, got {value!r}")
        for name in ("blank_penalty", "length_bonus", "lm_bonus"):
            value = getattr(self, name)
            if name not in optional and not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise UserError(f"search option {name!r}: expected a finite number, got {value!r}")
        if self.joiner_dtype not in JOINER_DTYPES:
            expected = ", ".join(str(dtype) for dtype in JOINER_DTYPES)
            raise UserError(f"search option 'joiner_dtype': expected one of {expected}, got {self.joiner_dtype!r}")
        self._check_languages()
        self._check_token_bias()
        self._check_bonuses()

    def _check_languages(self) -> None:
        if self.languages is None:
            return
        if isinstance(self.languages, str) or not all(isinstance(code, str) for code in self.languages):
            raise UserError(f"search option 'languages': expected a list of codes, got {self.languages!r}")
        if not self.languages:
            raise UserError("search option 'languages': expected at least one code, or none to allow all")
        object.__setattr__(self, "languages", tuple(self.languages))

    def _check_token_bias(self) -> None:
        for item in self.token_bias:
            token, number = _pair(item)
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
            if not isinstance(token, str) or not is_number:
                raise UserError(f"search option 'token_bias': expected (token, finite number), got {item!r}")
        object.__setattr__(self, "token_bias", tuple((token, float(number)) for token, number in self.token_bias))

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

    @cached_property
    def earns(self) -> bool:
        """Whether hypotheses get bonuses besides their log-probability (`tokenverse_pp.decoding.scorer`)."""
        return bool(self.hotwords or self.length_bonus or self.lm)

    @cached_property
    def width(self) -> int:
        """Hypotheses kept per utterance."""
        return 1 if self.method == "greedy" else self.beam

    def normalised(self, score: float, length: int) -> float:
        """Return the score by which hypotheses are ranked; ``length``: tokens + context size (see ``length_norm``)."""
        return score / length if self.length_norm else score


def _is_bonus(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _pair(item: Any) -> Tuple[Any, Any]:
    return (item[0], item[1]) if isinstance(item, (list, tuple)) and len(item) == 2 else (None, None)
