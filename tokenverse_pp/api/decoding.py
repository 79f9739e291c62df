"""Recordings -> transcripts, in batches, in order; what cannot be decoded does not keep the others."""

from __future__ import annotations

import logging
from typing import Dict, Iterable, Iterator, List, Union

from tokenverse_pp.api.inputs import Heard, Refused
from tokenverse_pp.api.reading import transcript_of_record
from tokenverse_pp.api.transcript import Transcript
from tokenverse_pp.decoding import DecodeOptions, Decoder, plan_batches
from tokenverse_pp.training.setup import Loaded

Result = Union[Transcript, Refused]
BATCHES_AHEAD = 4  # so many batches' worth of audio is looked at before the first of it is decoded
MOST_AHEAD = 256  # recordings
log = logging.getLogger(__name__)


def transcribe_in_order(
    loaded: Loaded, items: Iterable[Union[Heard, Refused]], options: DecodeOptions
) -> Iterator[Result]:
    """One result for each item, in order; no more items are taken than a few batches need.

    Args:
        loaded: the model, on the device that it is to run on.
        items: recordings, and what could not be opened, which is passed on.
        options: how to decode.
    """
    decoder = Decoder(loaded, options)
    waiting: List[Union[Heard, Refused]] = []
    seconds = 0.0
    for item in items:
        waiting.append(item)
        seconds += item.cut.duration if isinstance(item, Heard) else 0.0
        if seconds >= BATCHES_AHEAD * options.max_duration or len(waiting) >= MOST_AHEAD:
            yield from _decode(decoder, waiting)
            waiting, seconds = [], 0.0
    yield from _decode(decoder, waiting)


def _decode(decoder: Decoder, items: List[Union[Heard, Refused]]) -> Iterator[Result]:
    """The results of some items, in order."""
    heard = {str(number): item for number, item in enumerate(items) if isinstance(item, Heard)}
    results: Dict[str, Result] = {str(n): item for n, item in enumerate(items) if isinstance(item, Refused)}
    tasks = decoder.loaded.tasks
    for group in plan_batches([item.cut.with_id(key) for key, item in heard.items()], decoder.options):
        done = decoder(group)
        for record in done.records:
            item = heard[record["id"]]
            if not decoder.frames(item.cut):
                log.warning("warning: %s: %.4f s are less than a frame: nothing to hear", item.label, item.cut.duration)
            results[record["id"]] = transcript_of_record(record, tasks, item.cut.duration, item.name)
        for failure in done.failures:
            item = heard[failure["id"]]
            results[failure["id"]] = Refused(item.label, _reason(item.label, failure))
    for number in range(len(items)):
        yield results[str(number)]


def _reason(label: str, failure: Dict[str, str]) -> str:
    """Why a recording was refused, without the number that stood for it."""
    reason = failure["reason"].replace(f"cut {failure['id']}: ", "", 1).replace("field 'recording': ", "", 1)
    return reason if label in reason else f"{label}: {reason.removeprefix(': ')}"
