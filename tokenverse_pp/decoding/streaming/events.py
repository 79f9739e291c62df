"""The events of a stream: words that may still change, final words, task tokens, pauses, the end.

Tokens become final one after the other. Each final word is reported once, as soon as it is complete. This module does
not need torch.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.decoding.hypothesis import Calibration
from tokenverse_pp.tasks.result import text_of, words_of_tokens
from tokenverse_pp.tasks.transcript import Word, is_task_token, word_spans

DIGITS = 6  # of seconds and confidences in JSON
LARGEST = 64.0  # of a sample: far outside [-1, 1], a range that loud recordings may exceed
PARTIAL, FINAL, TOKEN, PAUSE, END = "partial", "final", "token", "pause", "end"


class Token(NamedTuple):
    """A vocabulary token, the frame of the stream at which it was written, and its log-probability there."""

    id: int
    frame: int
    log_prob: float


@dataclass(frozen=True)
class Event:
    """One event of a stream.

    Args:
        kind: ``final``: plain words that will not change any more, each reported once; ``token``: one task token that
            will not change any more; ``partial``: the words and task tokens after these that may still change (it
            replaces the previous partial, and is sent whenever it changes, also when it becomes empty); ``pause``: no
            word has been written since the last one, sent after each chunk if requested; ``end``: the stream is closed.
        time: seconds of audio decoded at the time of the event. The words start at ``words[0].start``; the difference
            is the emission delay.
        text: the words, joined by spaces. The texts of all ``final`` and ``token`` events in order, joined by spaces,
            are the whole hypothesis, which is the text of ``end``.
        words: with times from the stream's start, and confidences; one for ``token``, none for ``pause`` and ``end``.
        endpoint: for ``pause``: the probability that the utterance is complete (`tokenverse_pp.decoding.pauses`).
    """

    kind: str
    time: float
    text: str
    words: Tuple[Word, ...] = ()
    endpoint: Optional[float] = None

    def as_dict(self) -> Dict[str, Any]:
        """For JSON: kind, time, text, words as a list of {text, start, end, confidence}; for a pause also endpoint."""
        words = [{k: v if k == "text" else round(v, DIGITS) for k, v in word.to_dict().items()} for word in self.words]
        found = {"kind": self.kind, "time": round(self.time, DIGITS), "text": self.text, "words": words}
        return found if self.endpoint is None else {**found, "endpoint": round(self.endpoint, DIGITS)}


def check_range(largest: float, where: str) -> None:
    """Check the largest absolute value of samples (raises UserError, beginning with ``where``)."""
    if largest > LARGEST:
        raise UserError(f"{where}: expected samples in [-1, 1], got {largest:g}; divide 16-bit samples by 32768")


class WordReader:
    """Converts tokens to words, by the vocabulary's pieces, frames of ``frame_shift`` seconds, and a calibration."""

    def __init__(self, pieces: Sequence[str], frame_shift: float, calibration: Optional[Calibration]):
        self.pieces, self.frame_shift, self.calibration = pieces, frame_shift, calibration

    def words(self, tokens: Sequence[Token]) -> List[Word]:
        """Return the words and task tokens."""
        frames, log_probs = [token.frame for token in tokens], [token.log_prob for token in tokens]
        return words_of_tokens(self.surfaces(tokens), frames, log_probs, self.frame_shift, self.calibration)

    def surfaces(self, tokens: Sequence[Token]) -> List[str]:
        """The piece of each token."""
        return [self.pieces[token.id] for token in tokens]


class StreamWords:
    """The words of one stream so far: final tokens of a word that may continue, the last partial, the whole text."""

    def __init__(self, reader: WordReader):
        self.reader = reader
        self.held: List[Token] = []
        self.partial: Tuple[Word, ...] = ()
        self.text = io.StringIO()  # grows by the words alone

    def hear(self, settled: Sequence[Token], open_: Sequence[Token], time: float) -> List[Event]:
        """Return the events of a chunk, from the newly final tokens and the best hypothesis's tokens after them."""
        events = self._events(self._finish(settled), time)
        words = tuple(self.reader.words([*self.held, *open_]))
        if words != self.partial:
            self.partial = words
            events.append(Event(PARTIAL, time, text_of(words), words))
        return events

    def end(self, tokens: Sequence[Token], time: float) -> List[Event]:
        """Return the events at the end, where all remaining tokens become final."""
        finished = self._finish(tokens) + self.reader.words(self.held)
        events = self._events(finished, time)
        if self.partial:
            events.append(Event(PARTIAL, time, ""))
        return [*events, Event(END, time, self.text.getvalue())]

    def _finish(self, tokens: Sequence[Token]) -> List[Word]:
        """Return the words that these tokens complete: a word ends where the next word or a task token begins."""
        done: List[Word] = []
        for token in tokens:
            if is_task_token(self.reader.pieces[token.id]):
                done.extend(self.reader.words(self.held))
                done.extend(self.reader.words([token]))
                self.held = []
            else:
                self.held.append(token)
        spans = word_spans(self.reader.surfaces(self.held))
        if len(spans) > 1:
            _, last, _ = spans[-1]
            done.extend(self.reader.words(self.held[:last]))
            self.held = self.held[last:]
        return done

    def _events(self, words: Sequence[Word], time: float) -> List[Event]:
        """Return one event per run of plain words, and one per task token."""
        groups: List[List[Word]] = []
        for word in words:
            if not word.is_task_token and groups and not groups[-1][-1].is_task_token:
                groups[-1].append(word)
            else:
                groups.append([word])
        if groups:
            self.text.write((" " if self.text.tell() else "") + text_of(words))
        return [
            Event(TOKEN if group[0].is_task_token else FINAL, time, text_of(group), tuple(group)) for group in groups
        ]
