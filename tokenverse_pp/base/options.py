"""Options of the search, decoding, transcription, streaming, export and reports, and help texts of all options.

The docstring under a field is also its help on command lines (`option_help`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Sequence, Tuple, Union, get_args

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import is_finite

Method = Literal["greedy", "beam", "full_beam", "k2_fast_beam"]
JoinerDtype = Literal["float32", "bfloat16", "float16"]
METHODS = get_args(Method)
JOINER_DTYPES = (None, *get_args(JoinerDtype))
MOST_HOTWORDS = 10000
MOST_COUNT = 10000  # of hypotheses and states: a beam of 10,000 holds 100 MB for each utterance
LM_SCALE, LM_BONUS = 0.4, 1.5  # for a language model without its own
Numbers = Tuple[Tuple[str, float], ...]  # (name, number) pairs
Hotword = Union[str, Tuple[str, float]]
Names = Union[str, Sequence[str]]
Autocast = Literal["fp32", "bf16", "fp16"]
ExportPrecision = Literal["float32", "float16", "int8"]
SherpaForm = Literal["ctc", "online", "prompt"]
Inactive = Literal["suppress", "strip"]


def names_of(names: Optional[Names]) -> Tuple[str, ...]:
    """The names in a list, or in a text with commas.

    >>> names_of("asr, lid,"), names_of(None)
    (('asr', 'lid'), ())
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    return tuple(names or ())


def tasks_named(tasks: Optional[Names], where: str) -> Optional[Tuple[str, ...]]:
    """The names of tasks in a list, or in a text with commas; None if None is given, which means the default.

    Raises:
        UserError: nothing is named (an empty variable of a script, say): neither all tasks are meant for sure, nor asr.
    """
    if tasks is None:
        return None
    names = names_of(tasks)
    if not names:
        raise UserError(f"{where}: names no task; expected some, such as asr,lid, or asr alone")
    return names


@dataclass(frozen=True)
class SearchOptions:
    """Options of `tokenverse_pp.decoding.recognizer.search` (raises UserError if a value is invalid)."""

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
    """Bonus for each token that the language model scores, so that hypotheses are not too short; 3 to 4 times lm_scale.
    Default: that of lm.json, else 1.5."""
    languages: Optional[Tuple[str, ...]] = None
    """Languages that may be written (codes of BCP 47 or ISO 639). Default: all languages of the model."""
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
            if value > MOST_COUNT:
                raise UserError(f"search option {name!r}: expected at most {MOST_COUNT}, got {value}")
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
            if not isinstance(token, str) or not is_finite(number):
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

    def without_lm(self) -> SearchOptions:
        """Return these options without a language model, its scale and its bonus."""
        return replace(self, lm=None, lm_scale=None, lm_bonus=None)

    def normalised(self, score: float, length: int) -> float:
        """Return the score by which hypotheses are ranked; ``length``: tokens + context size (see ``length_norm``)."""
        return score / length if self.length_norm else score


def _is_bonus(value: Any) -> bool:
    return is_finite(value) and value > 0


def _pair(item: Any) -> Tuple[Any, Any]:
    return (item[0], item[1]) if isinstance(item, (list, tuple)) and len(item) == 2 else (None, None)


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode a CutSet (raises UserError if a value is out of range)."""

    search: SearchOptions = field(default_factory=SearchOptions)
    """Options of the search."""
    tasks: Tuple[str, ...] = ()
    """Tasks to decode, e.g. asr,scd; tokens of other tasks are not written. Default: all tasks of the model."""
    max_duration: float = 120.0
    """Seconds of padded audio in a batch."""
    stored_features: bool = False
    """Use the cuts' stored features instead of their audio."""
    precision: Autocast = "fp32"
    """Number type of the encoder (autocast)."""
    window: float = 28.0
    """Cuts longer than this many seconds are decoded in windows of this length."""
    overlap: float = 6.0
    """Seconds that two windows have in common."""
    chunks: Optional[ChunkOptions] = None
    """What each frame sees, as in streaming; None: full context. With chunks, cuts of any length are decoded without
    windows, in memory that grows with the square of their length."""
    vector_scale: Numbers = ()
    """Scale the task's vector between its inactive (0) and active (1) state or beyond, e.g. ner=1.5; may be given
    again."""
    inactive: Optional[Inactive] = None
    """How tasks that are not requested are handled. suppress: they are inactive, and the search may not write their
    tokens. strip: all tasks are decoded, and the tokens of those not requested are removed from the result. Default:
    strip if the model was trained with all labelled tasks active or has no task vectors, else suppress."""
    pauses: bool = False
    """Also give the probability of an endpoint after each word, whether [ENDP] was written or not. Needs the task
    endp."""

    def __post_init__(self) -> None:
        if not 0 < self.max_duration < math.inf:
            raise UserError(f"--max-duration: expected seconds above 0, got {self.max_duration:g}")
        check_windows(self.window, self.overlap)

    @property
    def in_chunks(self) -> bool:
        """Whether frames see less than the whole cut."""
        return self.chunks is not None and not self.chunks.full


def check_windows(window: float, overlap: float) -> None:
    """Check that windows of these lengths can be joined (raises UserError)."""
    if not 0 < window < math.inf:
        raise UserError(f"window: expected seconds above 0, got {window:g}")
    if not 0 < 2 * overlap < window:
        raise UserError(
            f"overlap: expected seconds above 0, less than half the window of {window:g} s, got {overlap:g}"
        )


@dataclass(frozen=True)
class TranscribeOptions:
    """How to transcribe recordings."""

    tasks: Optional[Names] = None
    """Tasks to decode, e.g. asr,scd. Default: all tasks of the model."""
    language: Optional[Names] = None
    """Spoken language, if known, e.g. fr, or several: fr,nl. The model writes no other language. Needs the task lid."""
    hotwords: Optional[Union[str, Path, Sequence[Hotword]]] = None
    """Phrases to prefer, or a file of them: 'phrase [TAB bonus]'. Not with greedy search."""
    method: Optional[Method] = None
    """Search method; default: that of search."""
    beam: Optional[int] = None
    """Hypotheses kept per utterance; default: those of search."""
    search: Optional[SearchOptions] = None
    """All options of the search. language, hotwords, method, beam and lm override them if given."""
    batch_seconds: float = 120.0
    """Seconds of padded audio in a batch."""
    window: float = 28.0
    """Longer recordings are decoded in windows of this many seconds (docs/long_audio.md)."""
    overlap: float = 6.0
    """Seconds that two windows have in common."""
    precision: Autocast = "fp32"
    """Number type of the encoder (autocast)."""
    lm: Optional[Union[str, Path]] = None
    """Language model for shallow fusion, or a folder with one per language (docs/language_model.md); the
    scale and bonus are those of search, or of the file lm.json beside it. Not with greedy search."""
    inactive: Optional[Inactive] = None
    """How tasks that are not requested are handled. suppress: they are inactive, and the search may not write their
    tokens. strip: all tasks are decoded, and the tokens of those not requested are removed from the result. Default:
    strip if the model was trained with all labelled tasks active or has no task vectors, else suppress."""
    pauses: bool = False
    """Also give the probability of an endpoint after each word, whether [ENDP] was written or not. Needs the task
    endp."""

    def check(self) -> None:
        """Check the precision and the length of a batch (raises UserError)."""
        if self.precision not in get_args(Autocast):
            raise UserError(f"precision: expected fp32, bf16 or fp16, got {self.precision!r}")
        if not 0 < self.batch_seconds < math.inf:
            raise UserError(f"batch_seconds: expected seconds above 0, got {self.batch_seconds:g}")


@dataclass(frozen=True)
class StreamingOptions:
    """How to transcribe streams (raises UserError if ``decide_after`` is no number above 0)."""

    chunks: ChunkOptions = field(default_factory=ChunkOptions)
    """Length of the encoder's chunks, and their left context."""
    tasks: Tuple[str, ...] = ()
    """Tasks that a stream decodes unless it selects others. Default: all of the model."""
    search: SearchOptions = field(default_factory=lambda: SearchOptions(method="greedy"))
    """Options of the search; its method is greedy or beam."""
    reset_at_endpoint: bool = False
    """As soon as the best hypothesis has an [ENDP] it becomes final, and the search starts again. The encoder keeps its
    context."""
    decide_after: float = 30.0
    """Seconds after which the best hypothesis of a beam decides where the hypotheses still differ. This bounds memory;
    in practice they agree within a few words."""
    inactive: Optional[Inactive] = None
    """How tasks that a stream does not request are handled. suppress: they are inactive, and the search may not write
    their tokens. strip: all tasks are decoded, and the tokens of those not requested are removed from its events.
    Default: strip if the model was trained with all labelled tasks active or has no task vectors, else suppress."""
    pauses: bool = False
    """During a pause, report the probability of an endpoint after each chunk (events of kind pause), in streams that
    decode the task endp and do not choose otherwise."""

    def __post_init__(self) -> None:
        if not 0 < self.decide_after < math.inf:
            raise UserError(f"streaming option 'decide_after': expected seconds above 0, got {self.decide_after!r}")


@dataclass(frozen=True)
class ExportOptions:
    """How to export a model to ONNX (raises UserError for an unknown precision)."""

    precision: ExportPrecision = "float32"
    """Precision of the weights. float16: stored in half the bytes, computed in float32. int8: the encoder's matrix
    products in 8 bits (dynamic quantisation, one scale per output channel)."""
    chunks: Optional[ChunkOptions] = None
    """Export the streaming form, with these chunks; None: for whole utterances."""
    form: Optional[SherpaForm] = None
    """Export for sherpa-onnx, in this form; None: for tokenverse_pp.runtime. ctc: whole utterances, decoded by the
    model's auxiliary CTC head. online: streams, decoded by the transducer, in these chunks; Whisper encoders. prompt:
    the same, with tasks that are chosen for each stream."""
    task_sets: Tuple[Tuple[str, ...], ...] = ()
    """For sherpa-onnx: the tasks to decode, e.g. asr,scd; may be given again. The set is fixed in the graph, so each
    has its own encoder; they share their weights. Default: one set, of all tasks that the model knows. With form
    prompt: the sets that a stream can choose from; the first is its default. Default: all sets."""
    opset: int = 17
    """ONNX opset; 17 is the first with LayerNormalization."""
    token_bias: Numbers = ()
    """Added to the logit of a task token (or any other piece) in the joiner's graph, e.g. [SCD]=0.7, as the search
    option of this name. May be given again."""

    def __post_init__(self) -> None:
        for name, value, kind in (("precision", self.precision, ExportPrecision), ("form", self.form, SherpaForm)):
            if value not in (*get_args(kind), *((None,) if name == "form" else ())):
                raise UserError(f"{name}: expected one of {', '.join(get_args(kind))}, got {value!r}")
        if self.form is not None and (self.form != "ctc") != (self.chunks is not None):
            raise UserError("chunks: for sherpa-onnx, needed with form online and prompt, and with no other")
        if self.form is None and self.task_sets:
            raise UserError("--tasks: only for sherpa-onnx: an export for tokenverse_pp.runtime can switch its tasks")
        if self.form == "ctc" and self.token_bias:
            raise UserError(
                "--token-bias: not with form ctc: it was fitted to the joiner, and this form has a CTC head"
            )


@dataclass(frozen=True)
class PageOptions:
    """What goes into the page of a report."""

    title: str = "Decoding report"
    """Heading of the page."""
    utterances: int = 30
    """Number of worst utterances that are listed; half as many conversations are listed."""
    embed_audio: bool = False
    """Embed the audio of the listed utterances in the page, so that it can be shared; otherwise the page links to
    it."""


@functools.cache
def option_help(cls: type) -> Dict[str, str]:
    """Return docstrings (string literals under the fields) by field name; fields without one are omitted."""
    from docstring_parser import parse_from_object

    found = {
        p.arg_name: " ".join((p.description or "").replace("``", "").split()) for p in parse_from_object(cls).params
    }
    return {f.name: found[f.name] for f in dataclasses.fields(cls) if found.get(f.name)}


def nested_option_help(section: Any, prefix: str = "") -> Dict[str, str]:
    """Return help by dotted option name, for a dataclass instance whose fields may be dataclasses."""
    found = {prefix + name: text for name, text in option_help(section.__class__).items()}
    for one in dataclasses.fields(section):
        value = getattr(section, one.name)
        if dataclasses.is_dataclass(value):
            found.update(nested_option_help(value, f"{prefix}{one.name}."))
    return found
