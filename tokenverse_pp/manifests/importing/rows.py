"""What every format is read into: rows, and the rows that could not be read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Union

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.lines import BLANKS, number_of
from tokenverse_pp.manifests.reading import shortened

Span = Tuple[int, int, Optional[str]]  # an entity: characters start and end (exclusive) of the text, type


@dataclass(frozen=True)
class Place:
    """Where something stands: a file (or folder) and a line, or what the format counts instead of lines."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}"


@dataclass
class Row:
    """One turn, as far as the data say: None is what they do not say (missing is not empty).

    Args:
        place: for messages.
        id: of the row; unique in one import.
        recording: the name of the recording.
        audio: the path of the audio file as the data give it; without it the file is looked for by ``recording``.
        channel: as the data give it: ``1`` or ``A`` is the first, ``3`` or ``C`` the third.
        start, end: seconds in the recording; missing: the whole of it.
        entities: spans into ``text``.
        tasks: what the row is labelled for, where the data say so.
        custom: further fields of the supervision.
        repeated: how many words were left out, since the row before has them.
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
    """A row or line that cannot be mapped, and why.

    Args:
        row: what could be read of it (its recording).
        harmless: no cut lacks anything without it.
        follows: nothing is wrong with it but the cut that it would be in.
        expected: the options ask for leaving it out, so that it is no reason to refuse the import.
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
    """Why one row cannot be mapped; who catches it knows the place."""


def seconds(value: Any, name: str, scale: float = 1.0) -> float:
    """A time in seconds: a finite number >= 0, times ``scale``; of a text a decimal number in ASCII digits.

    Raises:
        BadRow: naming the field.
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
    """A channel from 0 on by its label: ``1``, ``2``, .. or ``A``, ``B``, .. ``Z``; None for what is no such label.

    >>> channel_number("3"), channel_number("c"), channel_number("3.0"), channel_number("left")
    (2, 2, 2, None)
    """
    label = label.strip()
    if len(label) == 1 and label.isascii() and label.isalpha():
        return ord(label.upper()) - ord("A")
    match = _NUMBER.fullmatch(label)
    return int(match[1]) - 1 if match else None


_NUMBER = re.compile(r"0*([1-9][0-9]{0,5})(?:\.0*)?")  # tables with empty cells make 3.0 of 3


def shown(value: Any) -> str:
    """A value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
