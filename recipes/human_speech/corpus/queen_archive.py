"""The formats of the game Flight of the Amazon Queen, as far as speech and its texts need them: bytes to plain values.

The formats are those that ScummVM reads (engines/queen: resource, talk, cutaway, logic); numbers are big-endian.

* `queen.1c`: `QTBL`, 6 bytes of version, 2 skipped, 1 byte of compression (1: the sounds are MP3), the number of
  entries (u16), then 21 bytes an entry: name (12, padded with zeros), bundle (1), offset (u32), size (u32).
* `*.DOG` (a dialogue), `*.CUT` (a scripted scene) and `QUEEN.JAS` (counts of the texts of `QUEEN2.JAS`) begin with 20
  bytes that are skipped; offsets inside them count from there.
* A string is one byte of length and that many bytes; a non-empty one is padded to a multiple of 2 or 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

from tokenverse_pp.base.errors import UserError

MAGIC = b"QTBL"
MP3 = 1
_TABLE = 15  # bytes before the first entry
_ENTRY = 21
_HEADER = 20
_ENCODING = "cp437"


class Malformed(Exception):
    """A file inside an archive does not hold what its format says."""


class QueenArchive:
    """The files of a `queen.1c` by name; none is read before it is asked for.

    Raises:
        UserError: the archive is missing, of another kind, or its table is cut short or points outside of it.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: missing")
        with open(path, "rb") as file:
            head = file.read(_TABLE)
            if len(head) < _TABLE or head[:4] != MAGIC:
                raise UserError(f"{path}: expected a data file of Flight of the Amazon Queen, which begins with QTBL")
            if head[12] != MP3:
                raise UserError(f"{path}: expected sounds compressed as MP3 (1 at byte 12), found {head[12]}")
            count = struct.unpack(">H", head[13:])[0]
            table = file.read(count * _ENTRY)
        if len(table) < count * _ENTRY:
            raise UserError(f"{path}: its table is cut short: {count} entries expected (truncated download?)")
        size = path.stat().st_size
        self.places: Dict[str, Tuple[int, int]] = {}
        for position in range(0, len(table), _ENTRY):
            name, _, offset, length = struct.unpack(">12sBII", table[position : position + _ENTRY])
            if offset + length > size:
                raise UserError(f"{path}: entry {name!r} ends after the end of the file (truncated download?)")
            self.places[name.split(b"\0")[0].decode(_ENCODING).strip().upper()] = (offset, length)

    def names(self, suffix: str) -> List[str]:
        """Names that end in `suffix`, sorted."""
        return sorted(name for name in self.places if name.endswith(suffix))

    def read(self, name: str) -> bytes:
        """The bytes of a file; KeyError if there is none of that name."""
        offset, length = self.places[name]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)


class _Reader:
    """Reads numbers and strings one after the other; `Malformed` where the bytes end too early."""

    def __init__(self, data: bytes, position: int = 0):
        self.data = data
        self.position = position

    def numbers(self, count: int) -> Tuple[int, ...]:
        """`count` signed 16-bit numbers."""
        try:
            values = struct.unpack_from(f">{count}h", self.data, self.position)
        except struct.error as error:
            raise Malformed(f"ends after {len(self.data)} bytes, inside of numbers") from error
        self.position += 2 * count
        return values

    def number(self) -> int:
        return self.numbers(1)[0]

    def string(self, align: int = 2) -> str:
        if self.position >= len(self.data):
            raise Malformed(f"ends after {len(self.data)} bytes, where a string should begin")
        length = self.data[self.position]
        start = self.position + 1
        if start + length > len(self.data):
            raise Malformed(f"ends after {len(self.data)} bytes, inside of a string")
        self.position = start + length
        if length:
            self.position += -self.position % align
        return self.data[start : start + length].decode(_ENCODING)


@dataclass(frozen=True)
class Slot:
    """One place of a dialogue's tree: what is said there (`head`), and where the talk goes on (`target`, -1: it
    ends)."""

    head: int
    target: int


Level = Tuple[Slot, ...]
"""The six slots of a level: the first is the person's line, the next four are what the player may choose."""


@dataclass(frozen=True)
class Dialogue:
    """One `.DOG`: `player` and `person` hold the lines by head; `again_...` is what they say when they meet again."""

    key: int
    levels: Tuple[Level, ...]
    player: Dict[int, str]
    person: Dict[int, str]
    again_player: str
    again_person: str


def parse_dialogue(data: bytes) -> Dialogue:
    """A `.DOG` file.

    Raises:
        Malformed: it ends too early, or points behind its end.
    """
    data = data[_HEADER:]
    reader = _Reader(data)
    count, _, key, player_lines, person_lines = reader.numbers(5)
    reader.numbers(6)
    person_at, _, again_at = (value & 0xFFFF for value in reader.numbers(3))
    reader.position = 32
    levels = []
    for _ in range(abs(count)):
        # Each value of a slot is 32 bits wide, of which the engine reads the lower half.
        values = [reader.numbers(8)[1::2] for _ in range(6)]
        levels.append(tuple(Slot(head, target) for head, target, _, _ in values))
    player = _lines(reader, player_lines)
    person = _lines(_Reader(data, person_at), person_lines)
    again = _Reader(data, again_at)
    again_person = again.string()
    return Dialogue(key, tuple(levels), player, person, again.string(), again_person)


def _lines(reader: _Reader, count: int) -> Dict[int, str]:
    lines: Dict[int, str] = {}
    for _ in range(count):
        _, head = reader.numbers(2)
        lines.setdefault(head, reader.string(align=4))
    return lines


JOE = 0
ROOM_FADE = -1  # Joe as well, in a room that is faded in
ANIMATION = 9  # numbers of one frame of an animation, after its header


@dataclass(frozen=True)
class Step:
    """One step of a scene: `person` is the object that speaks (0: Joe; under -1: nobody on the screen)."""

    number: int
    person: int
    room: int
    text: str


def parse_cutaway(data: bytes) -> List[Step]:
    """The steps of a `.CUT` file in order, from 1, those without text included.

    Raises:
        Malformed: it ends too early, or points behind its end.
    """
    data = data[_HEADER:]
    reader = _Reader(data)
    _, count, _, _, sentences, _ = reader.numbers(6)
    texts = _Reader(data, sentences & 0xFFFF)
    texts.string()  # which way Joe looks at the start
    steps = []
    for number in range(1, abs(count) + 1):
        values = reader.numbers(17)
        person, animation, execute, copied_from, room = values[0], values[4], values[5], values[12], values[15]
        reader.numbers(reader.number())  # people to show
        steps.append(Step(number, JOE if person == ROOM_FADE else person, room, texts.string()))
        if person >= ROOM_FADE and animation and execute and copied_from <= 0:
            while reader.number() != -2:
                reader.numbers(ANIMATION)
    return steps


JOE_RESPONSES = 40
_VERBS = 12


@dataclass(frozen=True)
class Texts:
    """What `QUEEN.JAS` and `QUEEN2.JAS` tell: Joe's remarks by the number in the name of their sound, and the name of
    each object."""

    remarks: Dict[int, str]
    names: Dict[int, str]


def parse_texts(numbers: bytes, texts: bytes) -> Texts:
    """The texts; `numbers` is `QUEEN.JAS`, `texts` is `QUEEN2.JAS`, one text a line.

    Raises:
        Malformed: there are fewer objects or lines than `QUEEN.JAS` says.
    """
    reader = _Reader(numbers[_HEADER:])
    rooms, names, objects, descriptions = reader.numbers(4)
    name_of = [reader.numbers(8)[0] for _ in range(objects)]
    lines = texts.decode(_ENCODING).split("\r\n")
    responses = descriptions + names + rooms + _VERBS
    if len(lines) < responses + JOE_RESPONSES:
        raise Malformed(f"holds {len(lines)} lines, expected {responses + JOE_RESPONSES} or more")
    remarks = {number: lines[responses + number - 1] for number in range(1, JOE_RESPONSES + 1)}
    remarks.update({JOE_RESPONSES + number: lines[number - 1] for number in range(1, descriptions + 1)})
    called = {}
    for number, name in enumerate(name_of, start=1):
        if 1 <= abs(name) <= names:  # negative: the object is not to be seen at first
            called[number] = lines[descriptions + abs(name) - 1]
    return Texts(remarks, called)
