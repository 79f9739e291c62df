"""Words with times, and speaker turns, laid over the turns of a recording."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Dict, Iterable, Iterator, List, Optional, Tuple, Union

from tokenverse_pp.data.importing.rows import (
    BadRow,
    Place,
    Rejected,
    Row,
    RowOrRejected,
    channel_number,
    safe_id,
    shown,
)


@dataclass
class Word:
    """One word of a recording; times in seconds.

    ``problem`` says why it cannot be used: then the turn that it is in has no transcript.
    """

    place: Place
    recording: str
    channel: str
    start: float
    end: float
    text: str
    speaker: Optional[str] = None
    problem: Optional[str] = None
    used: bool = field(default=False, compare=False)

    @property
    def middle(self) -> float:
        """Seconds."""
        return (self.start + self.end) / 2


def same_channel(a: Optional[str], b: Optional[str]) -> bool:
    """Whether two channels are one: ``1`` is ``A``; what names no channel is on all of them."""
    return a is None or b is None or channel_key(a) == channel_key(b)


def channel_key(label: str) -> Union[int, str]:
    """The same for all labels of one channel."""
    number = channel_number(label)
    return label if number is None else number


class Words:
    """The words of recordings, in memory; each is given to one turn."""

    def __init__(self, words: Iterable[Word]):
        self.by_recording: Dict[str, List[Word]] = {}
        for word in words:
            self.by_recording.setdefault(word.recording, []).append(word)
        for found in self.by_recording.values():
            found.sort(key=lambda word: word.middle)
        self._middles = {name: [word.middle for word in found] for name, found in self.by_recording.items()}

    def give(self, row: Row) -> None:
        """Set the text of a turn from the words whose middle lies in it, and that no turn before it took.

        Raises:
            BadRow: where one of them cannot be used.
        """
        words = self.by_recording.get(row.recording or "", [])
        middles = self._middles.get(row.recording or "", [])
        first = bisect_left(middles, row.start or 0.0)
        last = bisect_right(middles, row.end) if row.end is not None else len(words)
        mine = [word for word in words[first:last] if not word.used and _belongs(word, row)]
        for word in mine:
            word.used = True
        bad = next((word for word in mine if word.problem is not None), None)
        if bad is not None:
            raise BadRow(f"{bad.place}: {bad.problem}")
        row.text = " ".join(word.text for word in mine) or None

    def unused(self) -> Iterator[Rejected]:
        """The words that lie in no turn."""
        for words in self.by_recording.values():
            for word in words:
                if not word.used:
                    reason = f"word {shown(word.text)} at {word.start:.3f} s lies in no turn"
                    yield Rejected(word.place, reason, harmless=True)

    def turns(self, pause: float) -> Iterator[RowOrRejected]:
        """Turns made of the words alone: a new one after ``pause`` seconds without a word, for each channel.

        A turn with a word that cannot be used is rejected.
        """
        for name, words in self.by_recording.items():
            channels: Dict[Union[int, str], str] = {}
            for word in words:
                channels.setdefault(channel_key(word.channel), word.channel)
            for key, channel in channels.items():
                group: List[Word] = []
                mine = (word for word in words if channel_key(word.channel) == key)
                for word in sorted(mine, key=lambda word: word.start):
                    if group and word.start - max(w.end for w in group[-8:]) > pause:
                        yield _turn(name, channel, group)
                        group = []
                    group.append(word)
                yield _turn(name, channel, group)


def _belongs(word: Word, row: Row) -> bool:
    return same_channel(word.channel, row.channel) and word.speaker in (None, row.speaker)


def _turn(recording: str, channel: str, words: List[Word]) -> RowOrRejected:
    for word in words:
        word.used = True
    place = words[0].place
    row = Row(
        place,
        f"{safe_id(recording)}-{place.line:06d}",
        recording,
        channel=channel,
        start=words[0].start,
        end=max(word.end for word in words),
        text=" ".join(word.text for word in words),
    )
    bad = min((word for word in words if word.problem is not None), key=lambda word: word.place.line, default=None)
    if bad is None:
        return row
    return Rejected(bad.place, f"{bad.problem} (a turn of {len(words)} words from {row.start:.3f} s on)", row)


class Speakers:
    """Who speaks when, in memory: speaker turns of another source than the text."""

    def __init__(self, turns: Iterable[Row]):
        self.by_recording: Dict[str, List[Row]] = {}
        for turn in turns:
            self.by_recording.setdefault(turn.recording or "", []).append(turn)

    def give(self, row: Row) -> Row:
        """Set the speaker of a turn: whoever speaks longest in it; nobody where nobody does."""
        shares: Dict[str, float] = {}
        for turn in self.by_recording.get(row.recording or "", ()):
            start, end = _bounds(turn)
            first, last = _bounds(row)
            shared = min(end, last) - max(start, first)
            if shared > 0 and turn.speaker is not None and same_channel(turn.channel, row.channel):
                shares[turn.speaker] = shares.get(turn.speaker, 0.0) + shared
        row.speaker = max(shares, key=lambda name: shares[name]) if shares else None
        return row


def _bounds(row: Row) -> Tuple[float, float]:
    return row.start or 0.0, row.end if row.end is not None else float("inf")
