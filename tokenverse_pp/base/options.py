"""Options of decoding, transcription, streaming, export and reports, and the help texts of all options.

The docstring under a field is also its help on command lines (`option_help`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Sequence, Tuple, Union, get_args

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import Method, Numbers, SearchOptions

Hotword = Union[str, Tuple[str, float]]
Names = Union[str, Sequence[str]]
Autocast = Literal["fp32", "bf16", "fp16"]
ExportPrecision = Literal["float32", "float16", "int8"]
SherpaForm = Literal["ctc", "online", "prompt"]
Inactive = Literal["suppress", "strip"]


def names_of(text: Optional[str]) -> Tuple[str, ...]:
    """The names in a text with commas.

    >>> names_of("asr, lid,"), names_of(None)
    (('asr', 'lid'), ())
    """
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def tasks_named(tasks: Optional[Names], where: str) -> Optional[Tuple[str, ...]]:
    """The names of tasks in a list, or in a text with commas; None if None is given, which means the default.

    Raises:
        UserError: nothing is named (an empty variable of a script, say): neither all tasks are meant for sure, nor asr.
    """
    if tasks is None:
        return None
    names = names_of(tasks) if isinstance(tasks, str) else tuple(tasks)
    if not names:
        raise UserError(f"{where}: names no task; expected some, such as asr,lid, or asr alone")
    return names


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode a CutSet (raises UserError if a value is out of range)."""

    search: SearchOptions = field(default_factory=SearchOptions)
    """Options of the search."""
    tasks: Tuple[str, ...] = ()
    """Tasks to decode, e.g. asr,scd; tokens of other tasks are not written. Default: all that the model knows."""
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
    """Tasks to decode, e.g. asr,scd. Default: all that the model knows."""
    language: Optional[Names] = None
    """Spoken language, if known, e.g. fr, or several: fr,nl. The model writes no other. Needs the task lid."""
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
    """Language model for shallow fusion, or a folder with one per language (docs/language_model.md); its scale and
    bonus are those of search, or of the file lm.json beside it. Not with greedy search."""
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
    """How much audio the encoder takes at a time, and how far it looks back."""
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
    """For sherpa-onnx: the tasks to decode, e.g. asr,scd; may be given again. A set is a constant of its graph, so each
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
    """How many of the worst utterances are listed, and half as many conversations."""
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
