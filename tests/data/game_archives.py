"""Writers of the two games' formats, as small as the readers allow; what they write is made up."""

from __future__ import annotations

import io
import struct
from typing import Dict, List, Sequence, Tuple

import numpy as np
import soundfile
from corpus.sky_archive import HUFFMAN, SECTION_SPEECH
from mini_packages import tone

HEADER = b"\0" * 20


def string(text: str, align: int, at: int) -> bytes:
    """A string whose length byte stands at offset `at`."""
    data = bytes([len(text)]) + text.encode("cp437")
    return data + b"\0" * (-(at + len(data)) % align if text else 0)


def strings(texts: Sequence[str], align: int, at: int) -> bytes:
    data = b""
    for text in texts:
        data += string(text, align, at + len(data))
    return data


def lines(items: Dict[int, str], at: int) -> bytes:
    data = b""
    for head, text in items.items():
        data += struct.pack(">2h", 0, head)
        data += string(text, 4, at + len(data))
    return data


Level = Sequence[Tuple[int, int]]


def dialogue(
    key: int,
    levels: Sequence[Level],
    player: Dict[int, str],
    person: Dict[int, str],
    again: Tuple[str, str] = ("0", "0"),
) -> bytes:
    """A `.DOG`; a level is up to six (head, target), `again` the person's and the player's second greeting."""
    tree = b""
    for level in levels:
        for head, target in [*level, *[(-1, 1)] * (6 - len(level))]:
            tree += struct.pack(">8h", 0, head, 0, target, 0, 0, 0, 0)
    said = lines(player, 32 + len(tree))
    person_at = 32 + len(tree) + len(said)
    answered = lines(person, person_at)
    again_at = person_at + len(answered)
    head = struct.pack(">5h", len(levels), 1, key, len(player), len(person))
    head += struct.pack(">6h", *[0] * 6) + struct.pack(">3H", person_at, again_at, again_at)
    return HEADER + head.ljust(32, b"\0") + tree + said + answered + strings(again, 2, again_at)


def cutaway(steps: Sequence[Tuple[int, int, str]], animated: Sequence[int] = ()) -> bytes:
    """A `.CUT`; a step is (person, room, text), and those whose index is in `animated` carry two frames."""
    body = b""
    for index, (person, room, _) in enumerate(steps):
        values = [0] * 17
        values[0], values[15] = person, room
        if index in animated:
            values[4] = values[5] = 1
        body += struct.pack(">17h", *values) + struct.pack(">h2h", 2, 5, 6)
        if index in animated:
            body += (struct.pack(">h", 7) + struct.pack(">9h", *range(9))) * 2 + struct.pack(">h", -2)
    at = 12 + len(body)
    texts = strings(["*FL", *(text for _, _, text in steps)], 2, at)
    return HEADER + struct.pack(">HhhHHH", 0, len(steps), 0, 0, at, 0) + body + texts


def jas(names: Dict[int, str], descriptions: Sequence[str], responses: Dict[int, str]) -> Dict[str, bytes]:
    """`QUEEN.JAS` and `QUEEN2.JAS`: objects with these names, Joe's descriptions, his responses by number."""
    called = sorted(set(names.values()))
    objects = b""
    for number in range(1, max(names, default=0) + 1):
        objects += struct.pack(">8h", -(called.index(names[number]) + 1) if number in names else 0, *[0] * 7)
    head = struct.pack(">4H", 1, len(called), max(names, default=0), len(descriptions))
    texts = [*descriptions, *called, "room", *["verb"] * 12]
    texts += [responses.get(number, "") for number in range(1, 41)] + ["more"]
    return {"QUEEN.JAS": HEADER + head + objects, "QUEEN2.JAS": "\r\n".join(texts).encode("cp437")}


def mp3(seconds: float, pitch: float = 220.0) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, tone(seconds, pitch, 11025), 11025, format="MP3", subtype="MPEG_LAYER_III")
    return sink.getvalue()


def queen_archive(files: Dict[str, bytes], compression: int = 1) -> bytes:
    offset = 15 + 21 * len(files)
    table = body = b""
    for name, data in files.items():
        table += struct.pack(">12sBII", name.encode("cp437"), 1, offset + len(body), len(data))
        body += data
    return b"QTBLCEM10\0\0\0" + bytes([compression]) + struct.pack(">H", len(files)) + table + body


class RncWriter:
    """RNC method 1 as its reader takes it: a word of bits stands where the bytes had got to at its first bit."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.word = 0
        self.used = 16

    def bits(self, value: int, count: int) -> None:
        for position in range(count):
            if self.used == 16:
                self.word, self.used = len(self.output), 0
                self.output += b"\0\0"
            if value >> position & 1:
                self.output[self.word + self.used // 8] |= 1 << self.used % 8
            self.used += 1

    def number(self, value: int) -> None:
        """In a code of sixteen symbols of four bits each."""
        symbol = value.bit_length() if value > 1 else value
        for position in (3, 2, 1, 0):
            self.bits(symbol >> position & 1, 1)
        if symbol > 1:
            self.bits(value - (1 << (symbol - 1)), symbol - 1)


Pair = Tuple[bytes, int, int]
"""Bytes as they are, then how far back and how many to copy."""


def rnc(blocks: Sequence[Tuple[Sequence[Pair], bytes]], unpacked: bytes) -> bytes:
    """Packed bytes of blocks (pairs, and the bytes after the last)."""
    writer = RncWriter()
    writer.bits(0, 2)
    for pairs, rest in blocks:
        for _ in range(3):
            writer.bits(16, 5)
            for _ in range(16):
                writer.bits(4, 4)
        writer.bits(len(pairs) + 1, 16)
        for data, back, count in pairs:
            writer.number(len(data))
            writer.output += data
            writer.number(back - 1)
            writer.number(count - 2)
        writer.number(len(rest))
        writer.output += rest
    packed = bytes(writer.output)
    head = b"RNC\x01" + struct.pack(">IIHHBB", len(unpacked), len(packed), 0, 0, 0, len(blocks))
    return head + packed


def speech(samples: np.ndarray) -> bytes:
    """A speech file of `sky.dsk` with these 8-bit samples."""
    data = samples.astype(np.uint8).tobytes()
    pieces = [data[start : start + 4000] for start in range(0, len(data), 4000)]
    return b"\x80\0".ljust(22, b"\x80") + rnc([((), piece) for piece in pieces], data)


_BITS = {letter: (length, code) for (length, code), letter in HUFFMAN.items()}


def section(texts: Sequence[str]) -> bytes:
    """A file of texts."""
    units: List[int] = []
    bits = ""
    for text in texts:
        coded = "".join(f"{_BITS[letter][1]:0{_BITS[letter][0]}b}" for letter in [*text.encode("cp437"), 0])
        coded += "0" * (len(coded) % 2)
        if len(coded) // 2 > 127:  # longer texts are measured in units of eight
            coded += "00" * (-(len(coded) // 2) % 8)
        units.append(len(coded) // 2)
        bits += coded
    counts = bytes(unit if unit < 128 else 0x80 | unit >> 3 for unit in units)
    sizes = [sum(units[start : start + 32]) for start in range(0, len(units), 32)][: len(units) // 32]
    bits += "0" * (-len(bits) % 8)
    body = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
    counts_at = 4 + 2 * len(sizes)
    head = struct.pack(f"<{2 + len(sizes)}H", counts_at, counts_at + len(counts), *sizes)
    return head + counts + body


def sky_archive(files: Dict[int, bytes]) -> Tuple[bytes, bytes]:
    """`sky.dnr` and `sky.dsk`; every second file is placed by units of 16 bytes."""
    table = struct.pack("<I", len(files))
    body = b""
    for index, (number, data) in enumerate(files.items()):
        body += b"\0" * (-len(body) % 16)
        place = len(body) // 16 | 0x800000 if index % 2 else len(body)
        table += struct.pack("<H", number) + place.to_bytes(3, "little") + (len(data) | 0x800000).to_bytes(3, "little")
        body += data
    return table, body


def sky_files(texts: Dict[int, Sequence[str]], spoken: Dict[int, bytes]) -> Dict[int, bytes]:
    """Files of texts by section, and of speech by the number of its text."""
    files = {60600 + number: section(found) for number, found in texts.items()}
    files.update({50000 + SECTION_SPEECH[text >> 12] + (text & 0xFFF): data for text, data in spoken.items()})
    return files


def hum(seconds: float, pitch: float = 200.0) -> np.ndarray:
    """8-bit samples of a tone."""
    return np.round(tone(seconds, pitch, 11025) * 127 + 128)
