"""Split subtitle files into cues: WebVTT by its standard, SubRip as written in practice.

**WebVTT** (https://www.w3.org/TR/webvtt1/#file-parsing): a line with ``-->`` begins a cue, also directly after the
header or another cue. A cue's text ends at an empty line or at such a line; a line of spaces is not empty. The line
before the times is the identifier unless it belongs to the text before it. Blocks without times are comments
(``NOTE``), style sheets, regions, or text that browsers drop and that is returned as `Lost` here.

**SubRip** has no standard. A cue's text continues to the next line of times, across blank lines (as in FFmpeg); the
number before the times is not part of it. A number that may be text or a counter is reported in the cue's ``problem``.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.importing.rows import BadRow, shown
from tokenverse_pp.data.lines import MAX_LINE, raw_lines

ARROW = "-->"
_TIME = r"(?:([0-9]{1,6}):)?([0-9]{1,2}):([0-9]{1,2})(?:[.,]([0-9]{1,9}))?"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?![0-9.,:])(.*)", re.DOTALL)
_FULL = r"[0-9]+:[0-9]{1,2}:[0-9]{1,2}[.,][0-9]+"
_OTHER_ARROW = re.compile(rf"\s*{_FULL}\s*(?:[-\u2010-\u2015=]*\s?(?:>|&gt;)|[\u2190-\u21ff])\s*{_FULL}")
_SETTING = re.compile(  # in old SubRip files `X1:40`
    r" (?:(?:vertical|line|position|size|align|region) ?[:=] ?\S+|[a-z][a-z-]*:[^\s:]+|[A-Z][12]?:[-+0-9.]+%?)"
)
_HEADER = re.compile(r"WEBVTT(?:[ \t].*)?", re.DOTALL)
_COMMENT = re.compile(r"NOTE(?:[ \t].*)?", re.DOTALL)
_NUMBER = re.compile(r"\s*([0-9]{1,9})\s*")


@dataclass(frozen=True)
class FileLine:
    """A line of a file; ``error`` says why it is not text."""

    number: int
    text: str
    error: Optional[str] = None

    @property
    def is_blank(self) -> bool:
        """Whether a line has only spaces."""
        return not self.text.strip()


@dataclass
class Cue:
    """A cue: the line number of its times, start and end in seconds, and the lines of its text.

    Args:
        number: its counter, if it has one.
        problem: why it cannot be used.
        restarts: whether another file may begin with this cue (joined files).
    """

    line: int
    start: float
    end: float
    payload: List[str] = field(default_factory=list)
    number: Optional[int] = None
    problem: Optional[str] = None
    restarts: bool = False


@dataclass(frozen=True)
class Lost:
    """Lines that belong to no cue, or to one without valid times: the first line, and the reason."""

    line: int
    reason: str


def cues_of(file: Path) -> Iterator[Union[Cue, Lost]]:
    """Yield the cues of a file in order, and other lines that may contain words.

    WebVTT is recognised by its first line or the file's name. The text is UTF-8, or UTF-16 with a byte order mark;
    lines end in LF, CRLF or CR. ``.gz`` is unpacked.
    """
    lines, error = _lines_of(file)
    first = next((line for line in lines if not line.is_blank), None)
    is_vtt = file.name.lower().endswith((".vtt", ".vtt.gz")) or (first is not None and _is_header(first))
    items = list(_vtt(lines) if is_vtt else _srt(lines))
    if error is not None:
        if items and isinstance(items[-1], Cue):
            items[-1].problem = "the file ends within it"
        items.append(Lost(len(lines) + 1, error))
    latest, joined = 0.0, 0
    for item in items:
        if isinstance(item, Cue):
            joined = joined or (item.line if item.restarts and item.start < latest else 0)
            latest = max(latest, item.start)
            if joined and item.problem is None:
                item.problem = f"two files were joined here: the times begin anew at line {joined}"
        yield item


def _lines_of(file: Path) -> Tuple[List[FileLine], Optional[str]]:
    """Return the lines of a file, and the reason if the rest cannot be read."""
    lines: List[FileLine] = []
    try:
        for _, raw in raw_lines(file):
            if not lines and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                return _lines_of_utf16(file), None
            for part in raw.split(b"\r"):
                lines.append(_line(len(lines) + 1, part))
    except UserError as error:
        return lines, str(error)[len(str(file)) :].lstrip(":, ") if str(error).startswith(str(file)) else str(error)
    return lines, None


def _lines_of_utf16(file: Path) -> List[FileLine]:
    opened = gzip.open(file) if file.name.lower().endswith(".gz") else open(file, "rb")
    with opened as stream:
        data = stream.read(MAX_LINE + 1)
    if len(data) > MAX_LINE:
        raise UserError(f"UTF-16 of more than {MAX_LINE // 2**20} MB; expected UTF-8")
    try:
        text = data.decode("utf-16")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-16, which its byte order mark says: {error.reason} at byte {error.start}") from None
    return [_line(i, part.encode()) for i, part in enumerate(re.split("\r\n|\n|\r", text), start=1)]


def _line(number: int, raw: bytes) -> FileLine:
    try:
        text = raw.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        return FileLine(number, raw.decode("utf-8", "replace"), f"not UTF-8: {error.reason} at byte {error.start}")
    return FileLine(number, text, "expected text in UTF-8, found a NUL byte" if "\0" in text else None)


def _is_header(line: FileLine) -> bool:
    return _HEADER.fullmatch(line.text) is not None


def _vtt(lines: Sequence[FileLine]) -> Iterator[Union[Cue, Lost]]:
    """The blocks of a WebVTT file. The header may be missing."""
    at, restarts, header = 0, False, ""
    has_cues = False
    glued: Optional[int] = None  # the number before the times, which the standard treats as text
    while at < len(lines):
        is_header = _is_header(lines[at])
        times = next((i for i in (at, at + 1) if i < len(lines) and ARROW in lines[i].text), None)
        if not lines[at].text:
            at += 1
        elif times is not None and not is_header:
            end = _end_of_block(lines, times + 1)
            cue = _cue(lines[times], lines[times + 1 : end], lines[at].text if times > at else "")
            if isinstance(cue, Cue):
                has_cues, cue.restarts = True, restarts
                cue.number = cue.number if cue.number is not None else glued
                glued = _check_vtt_text(cue, lines[times + 1 : end], end < len(lines) and bool(lines[end].text))
                restarts = any(_is_header(line) for line in lines[times + 1 : end])
            yield cue
            at = end
        else:
            end = _end_of_block(lines, at + 1)
            block = lines[at:end]
            if is_header:
                told = "\n".join(line.text for line in block if line.text.startswith("X-TIMESTAMP-MAP"))
                restarts = has_cues and not (told and told == header)
                header = told
            else:
                yield from _aside(block, has_cues, end < len(lines) and bool(lines[end].text))
            at = end


def _end_of_block(lines: Sequence[FileLine], at: int) -> int:
    """Return the index of the first empty line, or line of times, from ``at`` on."""
    while at < len(lines) and lines[at].text and ARROW not in lines[at].text:
        at += 1
    return at


def _check_vtt_text(cue: Cue, payload: Sequence[FileLine], times_follow: bool) -> Optional[int]:
    """Set the problem of a cue with lines that are text by the standard, but probably not meant as text.

    Returns:
        The number at the end of the text, if it may be the identifier of the next cue.
    """
    problems = []
    for line in payload:
        if _OTHER_ARROW.match(line.text):
            problems.append(f"line {line.number}: expected `{ARROW}` between times, found {shown(line.text)}")
        elif _is_header(line):
            problems.append(f"line {line.number}: the header of another file within the text of a cue")
    number = _number(payload[-1]) if payload and times_follow else None
    if number is None or cue.number is None or number != cue.number + 1:
        number = None
    else:
        problems.append(_unclear(payload[-1]))
    if problems and cue.problem is None:
        cue.problem = problems[0]
    return number


def _aside(block: Sequence[FileLine], has_cues: bool, times_follow: bool) -> Iterator[Lost]:
    """Yield the first line of a block without times, if the block may contain words."""
    texts = [line for line in block if not line.is_blank]
    if not texts or _COMMENT.fullmatch(texts[0].text):
        return
    if times_follow and len(texts) == 1 and texts[0] is block[-1]:
        return  # an identifier, after lines of spaces
    kind = texts[0].text.strip()
    if kind in ("STYLE", "REGION"):
        sign = "{" if kind == "STYLE" else ":"
        if not has_cues or any(sign in line.text for line in texts):
            return
    yield _lost(texts[0])


def _lost(line: FileLine) -> Lost:
    found = line.error or f"found {shown(line.text.strip())}"
    return Lost(line.number, f"text without times: expected a line such as `00:00:01,000 --> 00:00:02,500`, {found}")


def _srt(lines: Sequence[FileLine]) -> Iterator[Union[Cue, Lost]]:
    """The cues of a SubRip file: from a line of times to the next one."""
    starts = [i for i, line in enumerate(lines) if ARROW in line.text or _OTHER_ARROW.match(line.text)]
    head = [line for line in lines[: starts[0] if starts else len(lines)] if not line.is_blank]
    number = _number(head[-1]) if head and starts else None
    if number is not None:
        head.pop()
    if head:
        yield _lost(head[0])
    for ordinal, start in enumerate(starts, start=1):
        end = starts[ordinal] if ordinal < len(starts) else len(lines)
        is_last = ordinal == len(starts)
        payload, following, problem = _split_srt(lines[start + 1 : end], number, ordinal + 1, is_last)
        cue = _cue(lines[start], payload, str(number) if number is not None else "")
        if isinstance(cue, Cue):
            cue.problem = cue.problem or problem
            cue.restarts = cue.number == 1 and ordinal > 1
        yield cue
        if is_last and following is not None:
            yield Lost(following.number, f"number {following.text.strip()} without a cue")
        presumed = following if following is not None else payload[-1] if problem is not None else None
        value = _number(presumed) if presumed is not None else None
        number = value if value is not None else number + 1 if number is not None else None


def _split_srt(
    body: Sequence[FileLine], number: Optional[int], ordinal: int, is_last: bool
) -> Tuple[List[FileLine], Optional[FileLine], Optional[str]]:
    """Split the lines after a line of times into the text, the number of the next cue, and a problem if unclear.

    Args:
        number: number of this cue according to the numbers before it; None if there are none.
        ordinal: position of the next cue in the file, counted from 1.
    """
    texts = [line for line in body if not line.is_blank]
    if not texts:
        return [], None, None
    last = texts[-1]
    at = next(i for i, line in enumerate(body) if line is last)
    is_adjacent = at == len(body) - 1 and not is_last  # directly before the next times
    is_apart = at > 0 and body[at - 1].is_blank  # separated from the text
    value = _number(last)
    is_next = value is not None and number is not None and value == number + 1
    if is_last:
        is_counter, is_unclear = is_next and is_apart and len(texts) > 1, False
    elif value is None:
        is_counter, is_unclear = False, is_apart and is_adjacent and len(texts) > 1
    elif is_apart and is_adjacent:
        is_counter = number is not None or value == ordinal
        is_unclear = not is_counter
    elif is_next and (is_adjacent or (is_apart and len(texts) > 1)):
        is_counter, is_unclear = True, False
    else:
        is_counter, is_unclear = False, is_next or (is_adjacent and number is not None)
    if is_counter:
        return texts[:-1], last, None
    return texts, None, _unclear(last) if is_unclear else None


def _unclear(line: FileLine) -> str:
    return f"line {line.number}: {shown(line.text.strip())} may be the end of this text or the number of the next cue"


def _number(line: FileLine) -> Optional[int]:
    match = _NUMBER.fullmatch(line.text)
    return int(match[1]) if match else None


def _cue(times: FileLine, payload: Sequence[FileLine], identifier: str) -> Union[Cue, Lost]:
    try:
        if times.error is not None:
            raise BadRow(times.error)
        start, end = read_times(times.text)
    except BadRow as error:
        return Lost(times.number, str(error))
    match = _NUMBER.fullmatch(identifier)
    cue = Cue(times.number, start, end, [line.text for line in payload], int(match[1]) if match else None)
    bad = next((line for line in payload if line.error is not None), None)
    if bad is not None:
        cue.problem = f"line {bad.number}: {bad.error}"
    elif end <= start:
        cue.problem = f"field 'end': expected it after the start, found {start:g} to {end:g} s"
    return cue


def read_times(line: str) -> Tuple[float, float]:
    """Return start and end of a cue in seconds. In both formats hours are optional, and a point or comma is allowed.

    >>> read_times("00:00:01,5 --> 100:00:02.250 align:start position:0%"), read_times("00:01 --> 00:02")
    ((1.5, 360002.25), (1.0, 2.0))

    Raises:
        BadRow: if the line has another form, such as text after the times.
    """
    match = _TIMES.fullmatch(line)
    rest = _SETTING.sub("", " " + " ".join(match[9].split())) if match else ""
    if match is None or rest.strip():
        expected = "settings such as `align:start` after the times" if match else "times such as"
        example = "" if match else " `00:00:01,000 --> 00:00:02,500`"
        raise BadRow(f"expected {expected}{example}, found {shown(line.strip())}")
    return _seconds(match.groups()[:4], line), _seconds(match.groups()[4:8], line)


def _seconds(parts: Sequence[Optional[str]], line: str) -> float:
    hours, minutes, seconds = (int(part or 0) for part in parts[:3])
    if minutes > 59 or seconds > 59:
        raise BadRow(f"expected minutes and seconds up to 59, found {shown(line.strip())}")
    fraction = parts[3] or "0"
    unit = 10 ** len(fraction)
    return ((hours * 3600 + minutes * 60 + seconds) * unit + int(fraction)) / unit
