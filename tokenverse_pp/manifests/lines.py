"""The lines of text files that others wrote: limits, and errors that name the line."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, Optional, Tuple, Union, cast

from tokenverse_pp.errors import CONTROL as CONTROL
from tokenverse_pp.errors import UserError

PathLike = Union[str, "os.PathLike[str]"]
MAX_LINE = 32 * 2**20  # bytes; a cut of some hours with an alignment of every word has about a tenth of it
PROGRESS_STEP = 500  # lines between two reports of progress
_BOM = b"\xef\xbb\xbf"


def raw_lines(path: PathLike, progress: Optional[Callable[[int], None]] = None) -> Iterator[Tuple[int, bytes]]:
    """Line numbers (from 1) and lines of a file, without line ends (LF or CRLF) and byte order mark.

    A name that ends in ``.gz`` is unpacked. No more than one line is in memory.

    Args:
        progress: told now and then, and at the end, by how many bytes of the file (packed, if it is) the reading has
            moved on.

    Raises:
        UserError: where the file is missing, cannot be read (a ``.gz`` that was cut off), or a line has more than
            `MAX_LINE` bytes: naming file and line.
    """
    name = str(path)
    if not Path(path).is_file():
        raise UserError(f"{name}: no such file")
    number = position = 0
    try:
        with open(name, "rb") as raw:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw)
            while True:
                line = file.readline(MAX_LINE + 1)
                if progress is not None and (not line or number % PROGRESS_STEP == 0):
                    progress(raw.tell() - position)
                    position = raw.tell()
                if not line:
                    return
                number += 1
                if len(line) > MAX_LINE:
                    raise UserError(f"{name}, line {number}: longer than {MAX_LINE // 2**20} MB; expected a text file")
                if number == 1 and line.startswith(_BOM):
                    line = line[len(_BOM) :]
                yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: cannot be read after line {number}: {error}") from None


def text_of(line: bytes, where: str) -> str:
    """A line as text.

    Raises:
        UserError: where it is not UTF-8, or holds a NUL byte (binary data, or UTF-16).
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise UserError(f"{where}: expected text, found a NUL byte")
    return text


def text_lines(path: PathLike) -> Iterator[Tuple[int, str]]:
    """Line numbers and lines of a UTF-8 file; see `raw_lines` and `text_of`."""
    for number, line in raw_lines(path):
        yield number, text_of(line, f"{path}, line {number}")
