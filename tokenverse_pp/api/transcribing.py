"""Transcribe recordings in batches, in order; a recording that cannot be decoded does not stop the others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Union

import torch
from tqdm import tqdm

from tokenverse_pp.base.engine import Compute, Parts, current_engine
from tokenverse_pp.base.errors import UserError, printable
from tokenverse_pp.base.options import DecodeOptions, SearchOptions, TranscribeOptions, names_of, tasks_named
from tokenverse_pp.data.audio.inputs import Heard, Refused
from tokenverse_pp.decoding.context_graph import read_hotwords
from tokenverse_pp.decoding.recognizer import Recognizer, plan_batches, untold
from tokenverse_pp.decoding.run import batch_digest
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.result import Transcript, Word


def decode_options(options: TranscribeOptions, known: TaskSet) -> DecodeOptions:
    """Return the decoder's options for a model with these tasks (raises UserError)."""
    tasks = known.chosen(tasks_named(options.tasks, "tasks") or known.names, "tasks: ").names
    options.check()
    return DecodeOptions(
        search_options(options, "lid" in tasks),
        tasks,
        max_duration=options.batch_seconds,
        precision=options.precision,
        window=options.window,
        overlap=options.overlap,
        inactive=options.inactive,
        pauses=options.pauses,
    )


def search_options(options: TranscribeOptions, has_language: bool) -> SearchOptions:
    """Return the options of the search; ``has_language``: whether the task lid is decoded (raises UserError)."""
    search = options.search if options.search is not None else SearchOptions()
    changes: Dict[str, Any] = {} if options.lm is None else {"lm": str(options.lm)}
    changes.update({name: x for name in ("method", "beam") if (x := getattr(options, name)) is not None})
    if options.language is not None:
        languages = names_of(options.language)
        if not languages:
            raise UserError("language: names no language; expected some, such as cs,nl")
        if not has_language:
            raise UserError(f"language: {', '.join(map(repr, languages))} can be forced with the task lid only")
        changes.update(languages=languages, force_language=True)
    if options.hotwords is not None:
        words = options.hotwords
        if isinstance(words, str) and not os.path.exists(words):
            raise UserError(f"hotwords: {words}: no such file; expected a file of phrases, or a list: [{words!r}]")
        changes["hotwords"] = read_hotwords(words) if isinstance(words, (str, Path)) else tuple(words) or None
    return dataclasses.replace(search, **changes)


Item = Union[Heard, Refused]
Result = Union[Transcript, Refused]
BATCHES_AHEAD = 4  # batches of audio that are read before the first one is decoded
MOST_AHEAD = 256  # recordings
log = logging.getLogger(__name__)


class ProgressBars:
    """Bars on stderr: one counts the recordings, another the windows of a long recording during decoding."""

    def __init__(self) -> None:
        self.files = tqdm(unit=" files", desc="transcribing", leave=False)
        self.windows: Optional[tqdm] = None

    def on_windows(self, label: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` windows of the recording ``label`` are decoded."""
        if done == 0 or self.windows is None:
            self.close_windows()
            self.windows = tqdm(total=total, unit=" windows", desc=printable(Path(label).name), leave=False)
        self.windows.update(done - self.windows.n)
        if done == total:
            self.close_windows()

    def close_windows(self) -> None:
        """Remove the bar of a recording."""
        if self.windows is not None:
            self.windows.close()
            self.windows = None

    def over(self, results: Iterable[Result]) -> Iterator[Result]:
        """Yield the results and count them."""
        try:
            for result in results:
                self.files.update()
                yield result
        finally:
            self.close_windows()
            self.files.close()


def transcribe_in_order(
    decoder: Recognizer,
    items: Iterable[Item],
    on_windows: Optional[Callable[[str, int, int], None]] = None,
    on_settled: Optional[Callable[[str, str], None]] = None,
) -> Iterator[Result]:
    """Yield one result per item, in order; only a few batches of items are read ahead.

    Args:
        items: recordings, and inputs that could not be opened, which are passed through.
        on_windows: called while a long recording is decoded, with its label and the numbers of finished and of all
            windows.
        on_settled: called then with the label and the text so far (`Recognizer.on_settled`).
    """
    for group in grouped(items, decoder.options):
        yield from _decode(decoder, group, on_windows, on_settled)


def grouped(items: Iterable[Item], options: DecodeOptions) -> Iterator[List[Item]]:
    """Yield groups of items whose batches are planned together; they depend only on items and options."""
    waiting: List[Item] = []
    seconds = 0.0
    for item in items:
        waiting.append(item)
        seconds += item.cut.duration if isinstance(item, Heard) else 0.0
        if seconds >= BATCHES_AHEAD * options.max_duration or len(waiting) >= MOST_AHEAD:
            yield waiting
            waiting, seconds = [], 0.0
    if waiting:
        yield waiting


def transcribe_by_cluster(
    start: Callable[[], Compute],
    items: Iterable[Item],
    options: DecodeOptions,
    digest: str,
    parts: Optional[Parts],
    uses_gpu: bool = True,
) -> Iterator[Result]:
    """Run `transcribe_in_order` on the workers of the current engine; its groups are their shards.

    ``start`` loads the model, and returns `group_line` of its recognizer.
    """
    # Without parts a key is only used in messages, and audio in memory need not be read for it.
    key: Callable[[List[Item]], str] = partial(group_digest, digest) if parts is not None else _named
    shards = ((key(group), group) for group in grouped(items, options))
    for line in current_engine().run(start, shards, parts, torch.get_num_threads(), uses_gpu):
        for found in line["results"]:
            refused = found.get("refused")
            yield Refused(**refused) if refused is not None else _transcript_of(found)


def group_digest(run: str, group: Sequence[Item]) -> str:
    """Return a digest of a group: of `batch_digest` and the names of its items."""
    digest = batch_digest(run, [item.cut for item in group if isinstance(item, Heard)], False)
    names = [dataclasses.astuple(item)[:2] if isinstance(item, Refused) else (item.label, item.name) for item in group]
    return hashlib.sha256(json.dumps([digest, names]).encode()).hexdigest()


def _named(group: Sequence[Item]) -> str:
    return group[0].label if len(group) == 1 else f"{group[0].label} to {group[-1].label}"


def group_line(decoder: Recognizer, group: List[Item]) -> Dict[str, Any]:
    """Return the results of a group as plain JSON."""
    found = _decode(decoder, group, None, None)
    return {"results": [{"refused": vars(item)} if isinstance(item, Refused) else _line_of(item) for item in found]}


def _line_of(transcript: Transcript) -> Dict[str, Any]:
    """Return a transcript as plain JSON, with fields that `Transcript.to_dict` omits and formats need."""
    search = {name: getattr(transcript, name) for name in ("tokens", "times", "score")}
    written = [word.to_dict(raw=True) for word in transcript.written]
    return {**transcript.to_dict(), "search": {**search, "written": written}}


def _transcript_of(line: Dict[str, Any]) -> Transcript:
    """The inverse of `_line_of`."""
    search, tokens = line["search"], line["search"]["tokens"]
    return dataclasses.replace(
        Transcript.from_dict(line),
        written=tuple(Word(**word) for word in search["written"]),
        tokens=None if tokens is None else tuple(tokens),
        times=tuple(search["times"]),
        score=search["score"],
    )


def _decode(
    decoder: Recognizer,
    items: List[Item],
    on_windows: Optional[Callable[[str, int, int], None]],
    on_settled: Optional[Callable[[str, str], None]],
) -> Iterator[Result]:
    """The results of some items, in order."""
    heard = {str(number): item for number, item in enumerate(items) if isinstance(item, Heard)}
    # The recognizer may serve recordings of another caller next.
    told, settled = on_windows or (lambda label, done, total: None), on_settled
    decoder.on_windows = lambda cut, done, total: told(heard[cut.id].label, done, total)
    decoder.on_settled = None if settled is None else lambda cut, so_far: settled(heard[cut.id].label, so_far)
    results: Dict[str, Result] = {str(n): item for n, item in enumerate(items) if isinstance(item, Refused)}
    try:
        for group in plan_batches([item.cut.with_id(key) for key, item in heard.items()], decoder.options):
            done = decoder(group)
            for transcript in done.transcripts:
                item = heard[transcript.name]
                if not decoder.frames(item.cut):
                    said = "warning: %s: %.4f s are less than a frame: nothing to hear"
                    log.warning(said, item.label, item.cut.duration)
                results[transcript.name] = dataclasses.replace(transcript, name=item.name)
            for failure in done.failures:
                item = heard[failure["id"]]
                results[failure["id"]] = Refused(item.label, _reason(item.label, failure))
    finally:  # or it would keep the audio until the next call
        decoder.on_windows, decoder.on_settled = untold, None
    for number in range(len(items)):
        yield results[str(number)]


def _reason(label: str, failure: Dict[str, str]) -> str:
    """The reason why a recording was refused, with its label in place of its number."""
    reason = failure["reason"].replace(f"cut {failure['id']}: ", "", 1).replace("field 'recording': ", "", 1)
    return reason if label in reason else f"{label}: {reason.removeprefix(': ')}"
