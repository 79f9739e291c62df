"""Transcribe recordings in batches, in their order; a recording that cannot be decoded does not stop the others."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.data.audio.inputs import Heard, Refused
from tokenverse_pp.decoding.context_graph import read_hotwords
from tokenverse_pp.decoding.recognizer import DecodeOptions, Recognizer, plan_batches
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.result import Transcript

Hotword = Union[str, Tuple[str, float]]
Names = Union[str, Sequence[str]]


@dataclass(frozen=True)
class TranscribeOptions:
    """Options of a transcription.

    Args:
        tasks: names of the tasks to decode, or one name; None for all tasks of the model.
        language: code (or codes) of the spoken language, if known: the model writes no other. Needs the task ``lid``.
        hotwords: phrases to prefer, each with or without a bonus of its own, or a file of them
            (`tokenverse_pp.decoding.context_graph.read_hotwords`). Not with ``greedy``.
        method: of the search: ``beam``, ``greedy``, ``full_beam`` or ``k2_fast_beam``.
        beam: hypotheses kept.
        search: all options of the search; the options above override them.
        batch_seconds: of padded audio in a batch.
        window: seconds; longer audio is decoded in windows of this length (docs/long_audio.md).
        overlap: of two windows, in seconds.
        precision: of the encoder: ``fp32``, ``bf16`` or ``fp16``.
        lm: a language model for shallow fusion, or a folder with one per language (docs/language_model.md); its scale
            and bonus are set in ``search``. Not with ``greedy``.
    """

    tasks: Optional[Names] = None
    language: Optional[Names] = None
    hotwords: Optional[Union[str, Path, Sequence[Hotword]]] = None
    method: Optional[str] = None
    beam: Optional[int] = None
    search: Optional[SearchOptions] = None
    batch_seconds: float = 120.0
    window: float = 28.0
    overlap: float = 6.0
    precision: str = "fp32"
    lm: Optional[Union[str, Path]] = None

    def for_model(self, known: TaskSet) -> DecodeOptions:
        """The decoding options for a model with these tasks (raises UserError)."""
        names = _tuple(self.tasks)
        for name in names:
            if name not in known:
                raise UserError(f"tasks: {name!r} is not a task of this model, which knows {', '.join(known.names)}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise UserError(f"precision: expected fp32, bf16 or fp16, got {self.precision!r}")
        tasks = known.subset(names or known.names).names
        return DecodeOptions(
            self._search("lid" in tasks),
            tasks,
            max_duration=self.batch_seconds,
            precision=self.precision,
            window=self.window,
            overlap=self.overlap,
        )

    def _search(self, has_language: bool) -> SearchOptions:
        """The options of the search."""
        options = self.search if self.search is not None else SearchOptions()
        changes: Dict[str, Any] = {} if self.lm is None else {"lm": str(self.lm)}
        changes.update({name: x for name in ("method", "beam") if (x := getattr(self, name)) is not None})
        if self.language is not None:
            if not has_language:
                raise UserError(f"language: {self.language!r} can be forced with the task lid only")
            changes.update(languages=_tuple(self.language), force_language=True)
        if self.hotwords is not None:
            words = self.hotwords
            changes["hotwords"] = read_hotwords(words) if isinstance(words, (str, Path)) else tuple(words) or None
        return dataclasses.replace(options, **changes)


def _tuple(names: Optional[Names]) -> Tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


Result = Union[Transcript, Refused]
BATCHES_AHEAD = 4  # so many batches' worth of audio is looked at before the first of it is decoded
MOST_AHEAD = 256  # recordings
log = logging.getLogger(__name__)


def transcribe_in_order(
    loaded: ModelBundle, items: Iterable[Union[Heard, Refused]], options: DecodeOptions
) -> Iterator[Result]:
    """One result per item, in order; only a few batches of items are read ahead.

    Args:
        loaded: the model, on the device that it is to run on.
        items: recordings, and inputs that could not be opened, which are passed through.
        options: how to decode.
    """
    decoder = Recognizer(loaded, options)
    waiting: List[Union[Heard, Refused]] = []
    seconds = 0.0
    for item in items:
        waiting.append(item)
        seconds += item.cut.duration if isinstance(item, Heard) else 0.0
        if seconds >= BATCHES_AHEAD * options.max_duration or len(waiting) >= MOST_AHEAD:
            yield from _decode(decoder, waiting)
            waiting, seconds = [], 0.0
    yield from _decode(decoder, waiting)


def _decode(decoder: Recognizer, items: List[Union[Heard, Refused]]) -> Iterator[Result]:
    """The results of some items, in order."""
    heard = {str(number): item for number, item in enumerate(items) if isinstance(item, Heard)}
    results: Dict[str, Result] = {str(n): item for n, item in enumerate(items) if isinstance(item, Refused)}
    for group in plan_batches([item.cut.with_id(key) for key, item in heard.items()], decoder.options):
        done = decoder(group)
        for transcript in done.transcripts:
            item = heard[transcript.name]
            if not decoder.frames(item.cut):
                log.warning("warning: %s: %.4f s are less than a frame: nothing to hear", item.label, item.cut.duration)
            results[transcript.name] = dataclasses.replace(transcript, name=item.name)
        for failure in done.failures:
            item = heard[failure["id"]]
            results[failure["id"]] = Refused(item.label, _reason(item.label, failure))
    for number in range(len(items)):
        yield results[str(number)]


def _reason(label: str, failure: Dict[str, str]) -> str:
    """The reason why a recording was refused, with its label in place of its number."""
    reason = failure["reason"].replace(f"cut {failure['id']}: ", "", 1).replace("field 'recording': ", "", 1)
    return reason if label in reason else f"{label}: {reason.removeprefix(': ')}"
