"""The formats of the game Beneath a Steel Sky (CD version 0.0372), as far as speech and its texts need them.

The formats are those that ScummVM reads (engines/sky: disk, text, sound); numbers are little-endian.

* `sky.dnr`: the number of entries (u32), then 8 bytes an entry: number (u16), offset in `sky.dsk` (24 bits; with the
  highest bit set, the others count 16 bytes), size (22 bits) and two flags.
* A file of `sky.dsk`: 22 bytes of header, of which bit 7 of the first word says that what follows is packed by RNC
  method 1 (`corpus.rnc`).
* Speech: unsigned 8-bit samples at 11,025 Hz.
* Texts: a file for each language and section. Its first two words are where the counts of the lines of a block of 32
  begin, and where the texts begin; then the size of each block (u16). Sizes are in units of 2 bits. Texts are
  Huffman-coded and end with a zero.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from corpus.rnc import RncError, unpack
from tokenverse_pp.base.errors import UserError

SAMPLE_RATE = 11025
ENTRIES = 5097
"""Of version 0.0372, the one with the Huffman code below."""

FIRST_TEXTS = 60600
FIRST_SPEECH = 50000
END_OF_SPEECH = 60000
SECTION_SPEECH = (0, 600, 1100, 2430, 3380, 4530, 5080, 5230)
"""Number of the speech of a section's text 0, less `FIRST_SPEECH`."""

_HEADER = 22
_PACKED = 0x80
_BLOCK = 32
_ENCODING = "cp437"

# The Huffman tree of version 0.0372, each node before its left and its right branch; » is a node with branches.
# Letters are bytes of the game's character set; a zero ends a text.
_TREE = (
    "»»» »ea»»»os»tn»».ir»»»»»\0Eu»mA»»»lI»dR»»NST»»»»»Ohc»Dg»»»LC»pU»»!yM»»»»»PvH»?b»»»'f,»GB»»»»»VkF»qw"
    "»»»K-W»J*»»»»zY»j+»»»Q\x85)»»Z\x8b<»»»»»\x95~\x8a»\x87:»»»\x7f]#»»xX\x91»»»»»\x88`2»»0\x831»»»/(=»"
    '\x86^»»»»39»\x984»»»}8\\»"\x90»»»»&\x8d»56»»\x92\x8f»\x8e\x93»»»»\x8c7\x80»»\x81\x99»$@»»»»[\x9a_»>'
    "\x96»»»\x82%\x09»»\x9c\x97»{»\x94|"
)


def huffman_code(tree: str) -> Dict[Tuple[int, int], int]:
    """Letters by length and bits of their code (0: left; the first bit is the highest)."""
    code: Dict[Tuple[int, int], int] = {}
    letters = iter(tree)

    def walk(length: int, bits: int) -> None:
        letter = next(letters)
        if letter == "»":
            walk(length + 1, bits << 1)
            walk(length + 1, bits << 1 | 1)
        else:
            code[length, bits] = ord(letter)

    walk(0, 0)
    return code


HUFFMAN = huffman_code(_TREE)


class SkyArchive:
    """The files of a `sky.dsk` by number; none is read before it is asked for.

    Raises:
        UserError: a file is missing, cut short, or of another version.
    """

    def __init__(self, folder: Path):
        self.path = folder / "sky.dsk"
        table_file = folder / "sky.dnr"
        for path in (table_file, self.path):
            if not path.is_file():
                raise UserError(f"{path}: missing")
        table = table_file.read_bytes()
        count = int.from_bytes(table[:4], "little")
        if len(table) < 4 or len(table) != 4 + 8 * count:
            raise UserError(f"{table_file}: expected {count} entries of 8 bytes, found {len(table) - 4} bytes")
        size = self.path.stat().st_size
        self.places: Dict[int, Tuple[int, int]] = {}
        for position in range(4, len(table), 8):
            number = int.from_bytes(table[position : position + 2], "little")
            place = int.from_bytes(table[position + 2 : position + 5], "little")
            length = int.from_bytes(table[position + 5 : position + 8], "little") & 0x3FFFFF
            offset = (place & 0x7FFFFF) << (4 if place >> 23 else 0)
            if offset + length > size:
                raise UserError(f"{self.path}: file {number} ends after the end of the archive (truncated download?)")
            self.places.setdefault(number, (offset, length))

    def read(self, number: int) -> bytes:
        """The bytes of a file as they are; KeyError if there is none of that number."""
        offset, length = self.places[number]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def speech(self, number: int) -> bytes:
        """The samples of a speech file (8 bits, unsigned), unpacked.

        Raises:
            RncError: the file is not packed, or damaged.
        """
        data = self.read(number)
        if len(data) < _HEADER or not data[0] & _PACKED:
            raise RncError("not a packed file")
        return unpack(data[_HEADER:])

    def texts(self, language: int) -> Iterator[Tuple[int, str]]:
        """Numbers and texts of a language (0: English) in order.

        Raises:
            UserError: a file of texts is damaged.
        """
        for section in range(len(SECTION_SPEECH)):
            number = FIRST_TEXTS + language * len(SECTION_SPEECH) + section
            if number not in self.places:
                continue
            try:
                for index, text in enumerate(section_texts(self.read(number))):
                    yield section << 12 | index, text
            except (struct.error, IndexError) as error:
                raise UserError(f"{self.path}: texts {number} are damaged") from error


def section_texts(data: bytes) -> List[str]:
    """The texts of a section by number."""
    counts_at, texts_at = struct.unpack_from("<2H", data)
    blocks = struct.unpack_from(f"<{(counts_at - 4) // 2}H", data, 4)
    lines = data[counts_at:texts_at]
    texts: List[str] = []
    begin = offset = 4 * texts_at
    for position, size in enumerate(lines):
        if position and position % _BLOCK == 0:
            begin += blocks[position // _BLOCK - 1]
            offset = begin
        texts.append(decode_text(data, offset))
        offset += (size & 0x7F) << 3 if size & 0x80 else size
    return texts


def decode_text(data: bytes, place: int) -> str:
    """The Huffman-coded text that begins `place` times 2 bits behind the begin of `data`; IndexError without an end."""
    letters = bytearray()
    bit = 2 * place
    while True:
        code, length = 0, 0
        while (length, code) not in HUFFMAN:
            code = code << 1 | data[bit >> 3] >> (7 - (bit & 7)) & 1
            length += 1
            bit += 1
        letter = HUFFMAN[length, code]
        if letter == 0:
            return letters.decode(_ENCODING)
        letters.append(letter)
