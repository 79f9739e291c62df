"""Rows, into which every format is read, rejected rows, and counts of rows read, kept and rejected.

This module also reads annotation files with one record per line, and assigns timed words and speaker turns to the
turns of a recording.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import tempfile
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple, Union
from urllib.parse import unquote

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing
from tokenverse_pp.data.lines import BLANKS, CONTROL, fields, number_of, raw_lines, stray_control, text_of
from tokenverse_pp.data.manifests import shortened

OVERSHOOT = 0.1  # seconds by which an annotated turn may end after its recording
Span = Tuple[int, int, Optional[str]]  # an entity: first and last (exclusive) character of the text, type


@dataclass(frozen=True)
class Place:
    """A position in the data: a file (or folder) and a line, or the unit that the format counts instead of lines."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}"


@dataclass
class Row:
    """One turn. Fields that the data do not contain are None (missing is not empty).

    Args:
        id: id of the row, unique in one import.
        audio: path of the audio file as given in the data; if None, the file is searched by ``recording``.
        channel: label as given in the data: ``1`` or ``A`` is the first, ``3`` or ``C`` the third.
        start, end: seconds in the recording; None: the whole recording.
        tasks: tasks that the row is labelled for, if given in the data.
        custom: further fields of the supervision.
        repeated: number of words left out because the previous row has them.
    """

    place: Place
    id: str
    recording: Optional[str] = None
    audio: Optional[str] = None
    channel: Optional[str] = None
    start: Optional[float] = None
    end: Optional[float] = None
    text: Optional[str] = None
    speaker: Optional[str] = None
    language: Optional[str] = None
    entities: Optional[List[Span]] = None
    endpoint: Optional[bool] = None
    tasks: Optional[List[str]] = None
    custom: Dict[str, Any] = field(default_factory=dict)
    repeated: int = 0


@dataclass(frozen=True)
class Rejected:
    """A row or line that cannot be mapped, with the reason.

    Args:
        row: the part that could be read (its recording).
        harmless: no cut is incomplete without it.
        follows: the row is valid, but another row of its cut is not.
        expected: left out because of an option, so it does not stop the import.
    """

    place: Place
    reason: str
    row: Optional[Row] = None
    harmless: bool = False
    follows: bool = False
    expected: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {shortened(self.reason)}"


RowOrRejected = Union[Row, Rejected]


class BadRow(UserError):
    """The reason why a row (number ``turn`` of its cut) cannot be mapped; the caller adds the place."""

    def __init__(self, reason: str, turn: int = 0):
        super().__init__(reason)
        self.turn = turn


def seconds(value: Any, name: str, scale: float = 1.0) -> float:
    """Return a time in seconds: a finite number >= 0 (in a string: decimal, with ASCII digits), times ``scale``.

    Raises:
        BadRow: if the value is invalid; the message names the field.
    """
    try:
        found = number_of(value.strip(BLANKS)) if isinstance(value, str) else float(value)
        number = found * scale if found is not None else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise BadRow(f"field '{name}': expected seconds >= 0, found {shown(value)}")
    return number


def channel_number(label: str) -> Optional[int]:
    """Return the channel, counted from 0, of a label ``1``, ``2``, .. or ``A``, ``B``, .. ``Z``; None for other labels.

    >>> channel_number("3"), channel_number("c"), channel_number("3.0"), channel_number("left")
    (2, 2, 2, None)
    """
    label = label.strip()
    if len(label) == 1 and label.isascii() and label.isalpha():
        return ord(label.upper()) - ord("A")
    match = _NUMBER.fullmatch(label)
    return int(match[1]) - 1 if match else None


_NUMBER = re.compile(r"0*([1-9][0-9]{0,5})(?:\.0*)?")  # a table with empty cells may have turned 3 into 3.0


def shown(value: Any) -> str:
    """Return a value's repr for a message, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def files_of(path: Path, endings: Sequence[str]) -> List[Path]:
    """Return a file itself, or all files below a folder with these extensions, also followed by ``.gz``, sorted.

    Raises:
        UserError: if there is none, or a file is there with and without ``.gz``.
    """
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.is_file() and unpacked(p).suffix.lower() in endings)
    if not found:
        raise UserError(f"{path}: no file in it ends in {' or '.join(endings)} (or that and .gz)")
    first: Dict[Path, Path] = {}
    for file in found:
        other = first.setdefault(unpacked(file), file)
        if other is not file:  # its lines would count twice
            raise UserError(f"{file}: expected one of it and {other}")
    return found


def unpacked(path: Path) -> Path:
    """Return a path without ``.gz`` at its end."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def lines_of(path: Path) -> Iterator[Tuple[Place, Union[str, Rejected]]]:
    """Yield lines that are not blank, with their places; a line that is not text is rejected."""
    for number, line in raw_lines(path):
        if line.strip():
            place = Place(str(path), number)
            try:
                yield place, text_of(line, "")
            except UserError as error:
                yield place, Rejected(place, str(error).lstrip(": "))


def records_of(
    path: Path, comment: str = "", named_at: Sequence[int] = ()
) -> Iterator[Tuple[Place, Union[str, Rejected]]]:
    """`lines_of` for files of ASCII fields (see `fields`), without blanks at the ends of the lines.

    Lines with control characters are rejected, as a carriage return within a line may end a record.

    Args:
        comment: lines that begin with it are skipped.
        named_at: indices of the fields that name the recording and its channel, if any.
    """
    for place, line in lines_of(path):
        if isinstance(line, Rejected):
            yield place, line
            continue
        line = line.strip(BLANKS)
        if not line or (comment and line.startswith(comment)):
            continue
        stray = stray_control(line)
        if stray is not None:
            error = BadRow(f"holds a {stray}; expected one record a line")
            # After a carriage return there may be a record of another recording.
            known = named_at and "\r" not in line
            yield place, rejected(place, error, line, named_at) if known else Rejected(place, str(error))
        else:
            yield place, line


def rejected(place: Place, error: BadRow, line: str, named_at: Sequence[int]) -> Rejected:
    """Return a line that cannot be mapped, with its recording and channel from the fields ``named_at`` if present."""
    cells = fields(line)
    named = [cells[at] if at < len(cells) and not CONTROL.search(cells[at]) else None for at in named_at]
    recording, channel = (*named, None, None)[:2]
    return Rejected(place, str(error), None if recording is None else Row(place, "", recording, channel=channel))


def read_records(
    path: Path, comment: str, named_at: Sequence[int], read: Callable[[Place, str], Iterable[Any]]
) -> Iterator[Any]:
    """Yield the results of ``read`` for each record of a file (see `records_of`); BadRow rejects the line."""
    for place, line in records_of(path, comment, named_at):
        if isinstance(line, Rejected):
            yield line
            continue
        try:
            yield from read(place, line)
        except BadRow as error:
            yield rejected(place, error, line, named_at)


def safe_id(name: str) -> str:
    """Return a name from the data for use in ids and file names: path separators become hyphens."""
    return name.replace("/", "-").replace("\\", "-")


def expect(condition: bool, form: str, line: str) -> None:
    """Raise BadRow unless a line has the right form."""
    if not condition:
        raise BadRow(f"expected `{form}`, found {shown(line)}")


SHOWN = 20  # maximum rejected rows in a message; the list in the file has all


class Ledger:
    """Counts of rows (read = kept + rejected) and of cuts. The list of rejected rows is on disk, not in memory."""

    def __init__(self) -> None:
        self.read = 0
        self.kept = 0
        self.rejected = 0
        self.bad = 0
        self.first: List[Rejected] = []
        self.first_expected: Optional[Rejected] = None
        self.repeated_words = 0
        self.cuts = 0
        self.cuts_by_task: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()  # what was changed or found without rejecting a row
        self.again = 0  # rows with the audio and times of an earlier row
        self.first_again = ""  # the first of them, with the row that it repeats or a hint
        self._list = tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace")
        print("file", "line", "reason", sep="\t", file=self._list)

    def reject(self, item: Rejected) -> None:
        """Add a rejected row."""
        self.rejected += 1
        self.bad += not item.expected
        if item.expected and self.first_expected is None:
            self.first_expected = item
        if len(self.first) < SHOWN and not item.follows and not item.expected:
            self.first.append(item)
        cells = (item.place.file, str(item.place.line), shortened(item.reason))
        print(*(" ".join(cell.split()) for cell in cells), sep="\t", file=self._list)

    def write_rejected(self, path: Path) -> None:
        """Write the rejected rows as a table of file, line and reason."""
        self._list.seek(0)
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            shutil.copyfileobj(self._list, file)

    def refusal(self, source: Path) -> UserError:
        """Return the error to raise if rows were rejected but must not be, or if no rows are left."""
        if not self.read:
            return UserError(f"{source}: holds no rows; nothing was written")
        if not self.bad:
            return UserError(f"{source}: no row is left of {self.read}; nothing was written")
        more = self.bad - len(self.first)
        hint = f" ({more} more: --rejected FILE lists all)" if more > 0 else ""
        way = " (--skip-bad leaves them out)" if self.rejected < self.read else ""
        summary = f"{self.bad} of {self.read} rows cannot be mapped{hint}; nothing was written{way}"
        return UserError("\n".join([*map(str, self.first), summary]))

    def tell_again(self, say: Callable[[str], None]) -> None:
        """Print how many rows have the audio and times of an earlier row, if any."""
        if self.again:
            told = f"{self.again}, the first: {self.first_again}"
            say(f"rows with the same audio from start to end as an earlier row: {told}")

    def report(self, output: Path, say: Callable[[str], None]) -> None:
        """Print the counts of a completed import."""
        for item in self.first:
            say(f"left out: {item}")
        if self.bad > len(self.first):
            say(f"left out: {self.bad - len(self.first)} more (--rejected FILE lists all)")
        if self.first_expected is not None:
            line = f"left out, as the options ask: {self.rejected - self.bad} (--rejected FILE lists them)"
            say(f"{line}, the first: {self.first_expected}")
        if self.repeated_words:
            say(f"left out: {self.repeated_words} words that captions repeat (--repeated-captions keep keeps them)")
        say(f"rows: {self.read} read = {self.kept} kept + {self.rejected} left out")
        for note, count in sorted(self.notes.items()):
            say(f"{note}: {count}")
        self.tell_again(say)
        tasks = ", ".join(f"{name} {count}" for name, count in self.cuts_by_task.items())
        say(f"cuts: {self.cuts}, labelled for {tasks}: {output}")


@dataclass
class ImportedWord:
    """One word of a recording; times in seconds.

    ``problem`` says why the word cannot be used; its turn then has no transcript.
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
        """Midpoint in seconds."""
        return (self.start + self.end) / 2


def same_channel(a: Optional[str], b: Optional[str]) -> bool:
    """Whether two labels mean the same channel (``1`` is ``A``); a missing label matches any."""
    return a is None or b is None or channel_key(a) == channel_key(b)


def channel_key(label: str) -> Union[int, str]:
    """Return a key that is equal for all labels of one channel."""
    number = channel_number(label)
    return label if number is None else number


def decoded_name(name: str) -> str:
    """Decode a recording name that CTM, STM and RTTM files have percent-encoded (`api.formats.nist.recording_id`).

    >>> decoded_name("my%20call"), decoded_name("100%")
    ('my call', '100%')
    """
    try:
        decoded = unquote(name, errors="strict")
    except UnicodeDecodeError:
        return name
    return name if CONTROL.search(decoded) else decoded


def recording_key(row: Row) -> str:
    """Return the key to find a row's words and speakers: the name of its recording, or else of its audio file."""
    return name_key(row.recording or Path(row.audio or "").stem)


def composed(name: str) -> str:
    """Return a name with composed letters (NFC), as file systems and editors may decompose them (``é``)."""
    return unicodedata.normalize("NFC", name)


def name_key(name: str) -> str:
    """Return a recording's name decoded and composed."""
    return composed(decoded_name(name))


def _check_file(row: Row, files: Dict[str, str]) -> None:
    """Raise BadRow if a row that names no recording has the key of another file, so its words are ambiguous.

    ``files`` has the first audio file of each `recording_key`.
    """
    if row.audio is None:
        return
    audio = os.path.normpath(row.audio)
    first = files.setdefault(recording_key(row), audio)
    if row.recording is None and audio != first:
        raise BadRow(
            f"field 'audio': {shown(audio)} has the name of {shown(first)}, by which words and speakers are found: "
            "give field 'recording'"
        )


class Words:
    """The words of recordings, in memory; each word is assigned to one turn."""

    def __init__(self, words: Iterable[ImportedWord]):
        self._files: Dict[str, str] = {}
        self._asked: Dict[str, Dict[Tuple[Optional[str], Optional[str]], Row]] = {}  # a turn of each file and channel
        self.by_recording: Dict[str, List[ImportedWord]] = {}
        for word in words:
            self.by_recording.setdefault(name_key(word.recording), []).append(word)
        for found in self.by_recording.values():
            found.sort(key=lambda word: word.middle)
        self._middles = {name: [word.middle for word in found] for name, found in self.by_recording.items()}

    def give(self, row: Row) -> None:
        """Set the text of a turn that has none from the unused words whose middle lies in it.

        Those of a turn with a text are used up, so that no other turn gets them.

        Raises:
            BadRow: if one of these words cannot be used, or the words may belong to another file.
        """
        if row.text is not None:
            with contextlib.suppress(BadRow):  # they may belong to another file
                self._taken(row)
            return
        mine = self._taken(row)
        bad = next((word for word in mine if word.problem is not None), None)
        if bad is not None:
            raise BadRow(f"{bad.place}: {bad.problem}")
        row.text = " ".join(word.text for word in mine) or None

    def _taken(self, row: Row) -> List[ImportedWord]:
        """Return the unused words whose middle lies in a turn, which are used now (raises BadRow)."""
        key = recording_key(row)
        if key in self.by_recording:
            _check_file(row, self._files)
            self._asked.setdefault(key, {}).setdefault((row.audio, row.channel), row)
        words, middles = self.by_recording.get(key, []), self._middles.get(key, [])
        first = bisect_left(middles, row.start or 0.0)
        last = bisect_right(middles, row.end) if row.end is not None else len(words)
        mine = [
            word
            for word in words[first:last]
            if not word.used and same_channel(word.channel, row.channel) and word.speaker in (None, row.speaker)
        ]
        for word in mine:
            word.used = True
        return mine

    def unused(self) -> Iterator[Rejected]:
        """Yield the words that lie in no turn. A cut of their whole recording, if it has turns, would lack them."""
        for key, words in self.by_recording.items():
            asked = list(self._asked.get(key, {}).values())
            for word in words:
                if word.used:
                    continue
                row = next((turn for turn in asked if same_channel(turn.channel, word.channel)), None)
                row = row or next(iter(asked), None)
                if row is not None:
                    row = Row(word.place, "", row.recording, row.audio, word.channel, word.start)
                reason = f"word {shown(word.text)} at {word.start:.3f} s lies in no turn"
                yield Rejected(word.place, reason, row, harmless=row is None)

    def turns(self, pause: float) -> Iterator[RowOrRejected]:
        """Yield turns made of words alone; a turn with a bad word is rejected.

        On each channel, a speaker's turn ends at a pause of more than ``pause`` seconds, or if words of another speaker
        lie between its words. Overlapping words of another speaker do not end it.
        """
        for words in self.by_recording.values():
            channels: Dict[Union[int, str], str] = {}
            for word in words:
                channels.setdefault(channel_key(word.channel), word.channel)
            for key, channel in channels.items():
                mine = [word for word in words if channel_key(word.channel) == key]
                for turn in _by_speaker(sorted(mine, key=lambda word: word.start), pause):
                    yield _turn(channel, turn)


def _by_speaker(words: Sequence[ImportedWord], pause: float) -> List[List[ImportedWord]]:
    """Group words of one channel, sorted by start, into turns in the same order (see `Words.turns`)."""
    turns: List[List[ImportedWord]] = []
    starts = [word.start for word in words]
    last: Dict[Optional[str], List[ImportedWord]] = {}  # last turn of each speaker
    for number, word in enumerate(words):
        turn = last.get(word.speaker, [])
        end = max((w.end for w in turn[-8:]), default=word.start)
        is_apart = not turn or word.start - end > pause
        since = [] if is_apart else words[bisect_left(starts, end, 0, number) : number]
        if is_apart or any(w.speaker != word.speaker and w.end <= word.start for w in since):
            turn = last[word.speaker] = []
            turns.append(turn)
        turn.append(word)
    return turns


def _turn(channel: str, words: List[ImportedWord]) -> RowOrRejected:
    for word in words:
        word.used = True
    place, recording = words[0].place, words[0].recording
    row = Row(
        place,
        f"{safe_id(recording)}-{place.line:06d}",
        recording,
        channel=channel,
        start=words[0].start,
        end=max(word.end for word in words),
        text=" ".join(word.text for word in words),
        speaker=words[0].speaker,
    )
    bad = min((word for word in words if word.problem is not None), key=lambda word: word.place.line, default=None)
    if bad is None:
        return row
    return Rejected(bad.place, f"{bad.problem} (a turn of {len(words)} words from {row.start:.3f} s on)", row)


class Speakers:
    """Speaker turns from a source other than that of the text, in memory."""

    def __init__(self, turns: Iterable[Row]):
        self.by_recording: Dict[str, List[Row]] = {}
        for turn in turns:
            self.by_recording.setdefault(recording_key(turn), []).append(turn)
        self._asked: Set[str] = set()
        self._files: Dict[str, str] = {}
        self.elsewhere = 0  # rows in whose time somebody speaks, but on other channels only
        self.first_elsewhere = ""  # the first of them, with the channels

    def give(self, row: Row) -> None:
        """Set the speaker of a turn, who speaks longest in it or None (raises BadRow if it may be of another file)."""
        shares: Dict[str, float] = {}
        self._asked.add(recording_key(row))
        if recording_key(row) in self.by_recording:
            _check_file(row, self._files)
        first, last = _bounds(row)
        other: Optional[str] = None
        for turn in self.by_recording.get(recording_key(row), ()):
            start, end = _bounds(turn)
            shared = min(end, last) - max(start, first)
            if shared > 0 and turn.speaker is not None:
                if same_channel(turn.channel, row.channel):
                    shares[turn.speaker] = shares.get(turn.speaker, 0.0) + shared
                else:
                    other = other or turn.channel
        row.speaker = max(shares, key=lambda name: shares[name]) if shares else None
        if other is not None and not shares:
            self.elsewhere += 1
            told = f"{row.place}, channel {shown(row.channel)}, in the RTTM {shown(other)}"
            self.first_elsewhere = self.first_elsewhere or told

    def count_elsewhere(self, notes: Counter[str]) -> None:
        """Count the rows that got no speaker since their channel is not that of the speakers, with the first of them.

        That is right for a call whose other side speaks, and wrong for an RTTM that numbers channels in another way.
        """
        if self.elsewhere:
            what = "turns without a speaker in the RTTM, which has speakers on another channel then"
            notes[f"{what} (the first: {self.first_elsewhere})"] += self.elsewhere

    def unused(self) -> Iterator[Rejected]:
        """Yield the first turn of each recording, if no row is of any of these recordings.

        If some recordings match, the others are ignored: an RTTM file may cover a whole corpus.
        """
        for turns in () if self._asked & self.by_recording.keys() else self.by_recording.values():
            reason = f"no turn is of recording {shown(turns[0].recording)}, whose speakers stand here"
            yield Rejected(turns[0].place, reason, harmless=True)


def _bounds(row: Row) -> Tuple[float, float]:
    return row.start or 0.0, row.end if row.end is not None else float("inf")
