"""Unpacks Rob Northen Compression, method 1: LZ77 with Huffman-coded lengths and distances.

The format, as publicly described: `RNC\\x01`, unpacked size and packed size (u32, big-endian), a CRC-16 of the unpacked
and one of the packed bytes, 1 byte that is not needed, and the number of blocks (1 byte). Then bits, from the lowest of
16-bit little-endian words, of which the next is taken where the bytes have got to when a bit is needed, so that words
of bits and copied bytes alternate. The first two bits are skipped. A block is three Huffman codes (for numbers of
copied bytes, distances, and lengths), the number of pairs (16 bits), and the pairs: a number of bytes to copy from the
input, and (but for the last) a distance and a length to copy from the output.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

MAGIC = b"RNC\x01"
HEADER = 18


class RncError(ValueError):
    """The bytes are not RNC method 1, or damaged."""


class _Bits:
    def __init__(self, data: bytes, position: int):
        self.data = data
        self.position = position
        self.buffer = 0
        self.count = 0

    def take(self, count: int) -> int:
        """The next `count` bits; the first is the lowest."""
        while self.count < count:
            word = self.data[self.position : self.position + 2]
            if not word:
                raise RncError("ends too early")
            self.buffer |= int.from_bytes(word, "little") << self.count
            self.position += 2
            self.count += 16
        value = self.buffer & ((1 << count) - 1)
        self.buffer >>= count
        self.count -= count
        return value

    def copy(self, count: int) -> bytes:
        """The next `count` whole bytes."""
        piece = self.data[self.position : self.position + count]
        if len(piece) < count:
            raise RncError("ends too early")
        self.position += count
        return piece


Code = Dict[Tuple[int, int], int]
"""Symbol by length and bits, the first bit being the highest."""


def canonical_code(lengths: List[int]) -> Code:
    """The code of these lengths (0: the symbol is not used): short codes first, then by symbol."""
    code: Code = {}
    value = 0
    for length in range(1, 17):
        for symbol, its_length in enumerate(lengths):
            if its_length == length:
                code[length, value] = symbol
                value += 1
        value <<= 1
    return code


def _take_code(bits: _Bits) -> Code:
    return canonical_code([bits.take(4) for _ in range(bits.take(5))])


def _take_number(bits: _Bits, code: Code) -> int:
    """A number: the symbol is how many bits it has, and the highest of them is not written."""
    length, value = 0, 0
    while (length, value) not in code:
        if length == 16:
            raise RncError("a code that is not in the table")
        value = value << 1 | bits.take(1)
        length += 1
    symbol = code[length, value]
    return symbol if symbol < 2 else 1 << (symbol - 1) | bits.take(symbol - 1)


def unpack(data: bytes) -> bytes:
    """The unpacked bytes.

    Raises:
        RncError: another format, or damaged data. The CRCs are not checked.
    """
    if len(data) < HEADER or data[:4] != MAGIC:
        raise RncError("not packed by RNC method 1")
    size = int.from_bytes(data[4:8], "big")
    end = HEADER + int.from_bytes(data[8:12], "big")
    if end > len(data):
        raise RncError("ends too early")
    bits = _Bits(data[:end], HEADER)
    bits.take(2)
    output = bytearray()
    for _ in range(data[17]):
        literal, distance, length = (_take_code(bits) for _ in range(3))
        pairs = bits.take(16)
        for left in range(pairs - 1, -1, -1):
            output += bits.copy(_take_number(bits, literal))
            if not left:
                break
            back = _take_number(bits, distance) + 1
            count = _take_number(bits, length) + 2
            if back > len(output):
                raise RncError("a distance before the begin")
            for _ in range(count):
                output.append(output[-back])
    if len(output) != size:
        raise RncError(f"{size} bytes expected, {len(output)} found")
    return bytes(output)
