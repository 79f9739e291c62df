"""Convert table cells to the fields of a row, and annotated text to plain text with entity spans.

Inline markup of entities: ``[Paris](LOC)``, ``<NE>Paris</NE>``, ``<LOC>Paris</LOC>``. Text is normalised as the label
schema requires, and the spans are moved with it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import json_of
from tokenverse_pp.base.languages import checked_language
from tokenverse_pp.base.options import tasks_named
from tokenverse_pp.data.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected, Span, seconds, shown
from tokenverse_pp.data.lines import CONTROL, CONTROL_NO_SPACE
from tokenverse_pp.data.normalise import NORMALISERS, ZERO_WIDTH_SPACE, visible_words
from tokenverse_pp.tasks.registry import REGISTRY
from tokenverse_pp.tasks.transcript import character_spans

_BRACKETS = re.compile(r"\[([^\[\]]*)\]\(([^()\[\]\s]*)\)")
_TAGS = re.compile(r"<(/?)([^\s<>/]+)(?:\s+type=[\"']?([^\s<>\"']+)[\"']?)?\s*>")
UNTYPED = ("NE", "ne")


def read_inline(text: str, markup: str) -> Tuple[str, List[Span]]:
    """Return the plain text, and its entities as character spans (raises BadRow if marks are nested or not closed).

    ``brackets``: ``[words](TYPE)``, or ``[words]()`` without a type. ``tags``: ``<TYPE>words</TYPE>``,
    ``<NE type="TYPE">words</NE>``, or ``<NE>words</NE>`` without a type.

    >>> read_inline("in [New York](LOC) today", "brackets")
    ('in New York today', [(3, 11, 'LOC')])
    """
    return _brackets(text) if markup == "brackets" else _tags(text)


def _brackets(text: str) -> Tuple[str, List[Span]]:
    plain, spans, done = "", [], 0
    for match in _BRACKETS.finditer(text):
        plain += text[done : match.start()]
        spans.append((len(plain), len(plain) + len(match[1]), match[2] or None))
        plain += match[1]
        done = match.end()
    plain += text[done:]
    if "[" in plain or "]" in plain:
        raise BadRow(f"field 'text': expected marks such as [Paris](LOC), found {shown(text)}")
    return plain, spans


def _tags(text: str) -> Tuple[str, List[Span]]:
    plain, done = "", 0
    spans: List[Span] = []
    opened: Optional[Tuple[int, str, Optional[str]]] = None
    for match in _TAGS.finditer(text):
        plain += text[done : match.start()]
        done = match.end()
        closes, name, kind = match[1], match[2], match[3]
        if not closes and opened is None:
            opened = (len(plain), name, kind or (None if name in UNTYPED else name))
        elif closes and opened is not None and opened[1] == name:
            spans.append((opened[0], len(plain), opened[2]))
            opened = None
        else:
            raise BadRow(f"field 'text': {match[0]} does not fit: expected marks such as <LOC>Paris</LOC>")
    plain += text[done:]
    if opened is not None or "<" in plain or ">" in plain:
        raise BadRow(f"field 'text': expected marks such as <LOC>Paris</LOC>, found {shown(text)}")
    return plain, spans


AS_IT_IS = "keep"
TEXT_NORMALISERS = (AS_IT_IS, *NORMALISERS)


def finish_text(
    text: str,
    spans: Optional[Sequence[Span]],
    normaliser: str = AS_IT_IS,
    language: Optional[str] = None,
    widen: bool = False,
) -> Tuple[str, Optional[List[Dict[str, Any]]]]:
    """Return the normalised text with single spaces, and its entities as in the label schema.

    An entity covers whole words of the normalised text. The rest of its first and last word may be punctuation
    (``Paris,``); letters or digits (``l'Europe``) are an error, or are included with ``widen``.

    Args:
        spans: entities in characters of ``text``; None: not annotated.
        normaliser: one of `TEXT_NORMALISERS`; ``keep`` changes spaces only (see `visible_words`).

    Raises:
        BadRow: if an entity is invalid; the message names it.
    """

    def words_of(part: str) -> List[str]:
        return visible_words(part) if normaliser == AS_IT_IS else NORMALISERS[normaliser](part, language).split()

    words = words_of(text)
    finished = " ".join(words)
    if spans is None:
        return finished, None
    bounds, entities = character_spans(finished), []
    for start, end, kind in sorted(spans, key=lambda span: span[:2]):
        first, last = _locate(text, start, end, words, words_of, widen)
        entity: Dict[str, Any] = {"start": bounds[first][0], "end": bounds[last - 1][1]}
        entities.append({**entity, "type": kind} if kind is not None else entity)
    return finished, entities


def _locate(
    text: str, start: int, end: int, words: List[str], words_of: Callable[[str], List[str]], widen: bool
) -> Tuple[int, int]:
    """Return the first and last (exclusive) word of characters ``start`` to ``end``."""
    if not 0 <= start < end <= len(text):
        raise BadRow(f"field 'entities': span {start}..{end} lies outside of the text of {len(text)} characters")
    wide = _whole_words(text, start, end)
    left_over = text[wide[0] : start] + text[end : wide[1]]
    # If three pieces normalise to the same words as the whole text, they meet at word borders.
    for a, b in ((start, end), wide):
        before, inside, after = words_of(text[:a]), words_of(text[a:b]), words_of(text[b:])
        if inside and before + inside + after == words:
            return len(before), len(before) + len(inside)
        if not widen and any(char.isalnum() for char in left_over):
            raise BadRow(
                f"field 'entities': {shown(text[start:end])} is a part of {shown(text[wide[0] : wide[1]])} "
                "(--widen-entities takes whole words)"
            )
    raise BadRow(f"field 'entities': {shown(text[start:end])} holds no word")


def _whole_words(text: str, start: int, end: int) -> Tuple[int, int]:
    while start > 0 and not _is_space(text[start - 1]) and not _is_space(text[start]):
        start -= 1
    while end < len(text) and not _is_space(text[end]) and not _is_space(text[end - 1]):
        end += 1
    return start, end


def _is_space(char: str) -> bool:
    return char.isspace() or char == ZERO_WIDTH_SPACE


TEXTS = ("id", "audio", "recording", "channel", "text", "speaker", "language")
NAMES = (*TEXTS, "start", "end", "duration", "entities", "endpoint", "tasks")
FIRST = ("audio", "recording", "channel")
BEGINS = ("offset", "onset", "begin", "start_time", "start_sec", "start_s")  # columns that are the start elsewhere
CUSTOM = "custom."  # custom.NAME: a custom field of the supervision, for a task that is not built in
TRUE, FALSE = ("true", "yes", "1", "t", "y"), ("false", "no", "0", "f", "n")


def check_field(name: str, option: str) -> None:
    """Check that a field exists (raises UserError naming the option)."""
    if name not in NAMES and not (name.startswith(CUSTOM) and len(name) > len(CUSTOM)):
        raise UserError(f"{option} {name}: no such field, expected one of {', '.join(NAMES)} or {CUSTOM}NAME")


@dataclass(frozen=True)
class FieldMap:
    """The mapping from columns to fields.

    Args:
        columns: field -> column. A column with a field's name is used for it by default; an empty column name prevents
            this.
        time_scale: seconds per unit of start, end and duration.
        needs_text: the table is the only source of the words.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    time_scale: float = 1.0
    needs_text: bool = False

    def over(self, header: Iterable[str]) -> Dict[str, str]:
        """Return the mapping for a table with these columns, including columns that the table lacks."""
        same = {name: name for name in header if name in NAMES or name.startswith(CUSTOM)}
        return {name: column for name, column in {**same, **self.columns}.items() if column}

    def check(self, columns: Iterable[str], file: str) -> None:
        """Check that a table has the named columns, and those that every row needs.

        Raises:
            UserError: if one is missing; the message names the file, its columns and the option that maps them.
        """
        found = list(columns)
        names = ", ".join(found) or "none"
        other = [mark for mark in ";\t|," if len(found) == 1 and mark in found[0]]
        if other:  # a single column with a separator in its name: most likely the cells are separated by that
            names += f"; are the cells separated by {other[0]!r} (--delimiter)?"
        missing = [column for column in self.columns.values() if column and column not in found]
        if missing:
            raise UserError(f"{file}: no column {missing[0]!r} (--column); found {names}")
        fields = self.over(found)
        begin = next((column for column in BEGINS if column in found), None)
        for name in ("duration", "end"):
            if name in fields and "start" not in fields and begin is not None and begin not in fields.values():
                raise UserError(
                    f"{file}: column {fields[name]!r} is the {name}, and no column the start: name it, "
                    f"--column start={begin}, or leave the {name} out, --column {name}="
                )
        needed = {}
        if "audio" not in fields and "recording" not in fields:
            needed["audio"] = "audio (a path) or recording (a name)"
        if "text" not in fields and self.needs_text:
            needed["text"] = "text"
        if needed:
            way = " ".join(f"--column {name}=COLUMN" for name in needed)
            said = " and no column ".join(needed.values())
            raise UserError(f"{file}: no column {said}; found {names}{' Else' if other else ':'} name it, {way}")

    def row(self, place: Place, default_id: str, cells: Mapping[str, Any]) -> RowOrRejected:
        """Return a row of a table. None and empty cells count as missing; an empty list does not."""
        values = {
            name: cells[column] for name, column in self.over(cells).items() if cells.get(column) not in (None, "")
        }
        row = Row(place, default_id)
        try:
            self._read(row, values)
        except UserError as error:
            return Rejected(place, str(error), row)
        return row

    def recording(self, place: Place, cells: Mapping[str, str]) -> Optional[Row]:
        """Return the recording of an invalid row; None if its cells do not determine it."""
        columns = self.over(cells)
        values = {name: cells.get(columns.get(name, ""), "") for name in ("audio", "recording", "channel")}
        if not (values["audio"] or values["recording"]) or any(map(CONTROL.search, values.values())):
            return None
        row = Row(place, "")
        for name, value in values.items():
            setattr(row, name, string(value, name) or None)
        return row

    def _read(self, row: Row, values: Mapping[str, Any]) -> None:
        # The recording is read first, so that a row that fails is not silently missing from its cut; then id and text,
        # which tell which part of an annotation belongs to the row.
        for name in sorted(values, key=lambda name: (name not in FIRST, name not in ("id", "text"))):
            if name.startswith(CUSTOM):
                row.custom[name[len(CUSTOM) :]] = plain(values[name], name)
            elif name in _READERS:
                value = _READERS[name](values[name], name)
                setattr(row, name, getattr(row, name) if value == "" else value)
        for name in ("start", "end"):
            if name in values:
                setattr(row, name, seconds(values[name], name, self.time_scale))
        if "duration" in values:
            if row.end is not None:
                raise BadRow("fields 'end' and 'duration': expected one of them")
            row.end = (row.start or 0.0) + seconds(values["duration"], "duration", self.time_scale)
        if "entities" in values:
            row.entities = entities_of(values["entities"], row.text)


def fill(row: Row, values: Mapping[str, Any]) -> None:
    """Set the fields that a row lacks."""
    for name, value in values.items():
        if name == "custom":
            row.custom = {**value, **row.custom}
        elif getattr(row, name) is None:
            setattr(row, name, value)


def constants_of(values: Mapping[str, str], tasks: Optional[str] = None) -> Dict[str, Any]:
    """Return the values of ``--set`` and ``--tasks`` as fields of a row.

    Raises:
        UserError: if a value is invalid, or a field differs from row to row.
    """
    found: Dict[str, Any] = {}
    for name, value in values.items():
        if name.startswith(CUSTOM):
            found.setdefault("custom", {})[name[len(CUSTOM) :]] = value
        elif name in ("id", "audio", "recording", "text", "start", "end", "duration"):
            raise UserError(f"--set {name}: differs from row to row")
        elif name == "entities":
            raise UserError("--set entities: expected a column, --brat, --conll or --inline-entities")
        else:
            try:
                found[name] = _READERS[name](value, name)
            except BadRow as error:
                raise UserError(f"--set {name}: {error}") from None
            if name == "language":
                checked_language(value, "--set language")
    named = tasks_named(tasks, "--tasks")
    if named is not None:
        found["tasks"] = task_names(list(named), "tasks")
    unknown = [name for name in found.get("tasks", ()) if name not in REGISTRY]
    if unknown:
        raise UserError(f"--tasks: unknown task {unknown[0]!r}, expected some of {', '.join(REGISTRY)}")
    return found


def string(value: Any, name: str) -> str:
    """Return a text. Integers (ids, speakers, channels) are converted, except in field ``text``."""
    if isinstance(value, int) and not isinstance(value, bool) and name != "text":
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"field '{name}': expected a text, found {shown(value)}")
    if name == "text":
        found = CONTROL_NO_SPACE.search(value)
        if found:
            raise BadRow(f"field 'text': holds the control character U+{ord(found[0]):04X}: {shown(value)}")
        return value
    value = value.strip(" \t\r\n")  # not Unicode spaces: a file name may end in one
    if name != "audio" and CONTROL.search(value):
        raise BadRow(f"field '{name}': expected a name, found {shown(value)}")
    return value


def plain(value: Any, name: str) -> Any:
    """Return a text, number, boolean or list of these (raises BadRow for other values)."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, (str, int, float, bool)) or (isinstance(item, float) and not math.isfinite(item)):
            raise BadRow(f"field '{name}': expected a text, a number or a list of them, found {shown(value)}")
    return value


def boolean(value: Any, name: str) -> bool:
    """Return a boolean, also from yes/no and 1/0."""
    word = str(value).strip().lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise BadRow(f"field '{name}': expected true or false, found {shown(value)}")


def task_names(value: Any, name: str) -> List[str]:
    """Return task names from a list, or a text with commas or spaces; ``asr`` is always included."""
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadRow(f"field '{name}': expected names such as 'asr,lid', found {shown(value)}")
    return list(dict.fromkeys(["asr", *words]))


def entities_of(value: Any, text: Optional[str]) -> List[Span]:
    """Return entities from JSON objects of start, end (or length) and type, or from one BIO tag per word.

    A list of objects may be an object of lists, as in `datasets`. Other values raise BadRow.
    """
    if isinstance(value, str):
        value = json_of(value, "field 'entities'") if value.lstrip()[:1] in ("[", "{") else value.split()
    if isinstance(value, dict) and value and all(isinstance(items, list) for items in value.values()):
        if len({len(items) for items in value.values()}) > 1:
            raise BadRow(f"field 'entities': expected lists of one length, found {shown(value)}")
        value = [dict(zip(value, items)) for items in zip(*value.values())]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        words = character_spans(text or "")
        if len(words) != len(value):
            raise BadRow(f"field 'entities': {len(value)} tags for {len(words)} words")
        return [(words[a][0], words[b - 1][1], kind) for a, b, kind in bio_spans(value)]
    if not isinstance(value, list):
        raise BadRow(f"field 'entities': expected a list, found {shown(value)}")
    return [_span(item) for item in value]


def bio_spans(tags: Iterable[str]) -> List[Tuple[int, int, Optional[str]]]:
    """BIO (also IOB1, BIOES, BILOU) tags -> (first word, one past the last, type). Raises BadRow for other tags.

    An ``I-X`` that does not follow an ``X`` begins an entity, as in conlleval.
    """
    spans: List[Tuple[int, int, Optional[str]]] = []
    open_kind: Optional[str] = None  # type of the entity that may continue
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix not in ("B", "I", "O", "E", "L", "S", "U") or (prefix == "O" and kind):
            raise BadRow(f"field 'entities': expected tags such as O, B-PER, I-PER, found {shown(tag)}")
        if prefix == "O":
            open_kind = None
            continue
        if prefix in "IEL" and open_kind == kind and spans:
            spans[-1] = (spans[-1][0], i + 1, spans[-1][2])
        else:
            spans.append((i, i + 1, kind or None))
        open_kind = None if prefix in "ELSU" else kind
    return spans


def _span(item: Any) -> Span:
    if not isinstance(item, dict):
        raise BadRow(f"field 'entities': expected {{'start': int, 'end': int, 'type': str}}, found {shown(item)}")
    start, end, kind = item.get("start"), item.get("end"), item.get("type")
    if "end" not in item and type(start) is int and type(item.get("length")) is int:
        end = start + item["length"]
    if type(start) is not int or type(end) is not int or not isinstance(kind, (str, type(None))):
        raise BadRow(f"field 'entities': expected {{'start': int, 'end': int, 'type': str}}, found {shown(item)}")
    return start, end, kind


_READERS: Dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(TEXTS, string),
    "endpoint": boolean,
    "tasks": task_names,
}
