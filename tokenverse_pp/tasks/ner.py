"""Named entities: ``[NE] .. [/NE]`` around the words, as in the papers, or ``[NE:TYPE] .. [/NE]`` by option."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Dict, List, Sequence, Tuple

from tokenverse_pp.metrics.f1 import score_entities
from tokenverse_pp.tasks.base import RANK_CLOSE, RANK_OPEN, ScoredExample, Task
from tokenverse_pp.tasks.transcript import (
    EntitySpan,
    LabelledTurn,
    Mark,
    MarkReader,
    character_spans,
    read_spans,
    turns_of,
)

if TYPE_CHECKING:
    from lhotse.cut import Cut

OPEN, CLOSE = "[NE]", "[/NE]"


@dataclass(frozen=True)
class NamedEntities(Task):
    """Answer: the entities in order; none is empty, and none overlaps another.

    Labelled by ``supervision.custom["entities"]``, a list of ``{"start": char, "end": char, "type": str}``
    of character offsets into ``supervision.text``; each begins and ends at a word boundary. Parsing drops a ``[/NE]``
    without ``[NE]``, an ``[NE]`` that is not closed before the next one or the end, and an empty entity.
    """

    types: Tuple[str, ...] = ()

    name: ClassVar[str] = "ner"
    own_fields: ClassVar[Tuple[str, ...]] = ("entities",)

    @classmethod
    def from_options(cls, options: Any) -> NamedEntities:
        """Build the task from ``types``, the entity types to write (empty: untyped entities)."""
        return cls(types=tuple(options.get("types", ())))

    @classmethod
    def options_for(cls, tokens: Sequence[str]) -> Dict[str, Any]:
        """Return the entity types in opening tokens (``[NE:TYPE]``)."""
        return {"types": list(dict.fromkeys(t[4:-1] for t in tokens if t.startswith("[NE:")))}

    def widened(self, answers: Sequence[Sequence[EntitySpan]]) -> NamedEntities:
        """Return the task with the types of all entities added, if it is typed."""
        types = {entity.type for answer in answers for entity in answer if entity.type is not None}
        return NamedEntities(tuple(sorted(types.union(self.types)))) if self.types else self

    def options(self) -> Dict[str, Any]:
        """Return the types, if the task is typed."""
        return {"types": list(self.types)} if self.types else {}

    @property
    def symbols(self) -> Tuple[str, ...]:
        """The opening tokens and the closing token."""
        return (*self.opening, CLOSE)

    @property
    def ranks(self) -> Dict[str, int]:
        """Opening tokens precede a word; the closing token follows one."""
        return {**dict.fromkeys(self.opening, RANK_OPEN), CLOSE: RANK_CLOSE}

    @property
    def opening(self) -> Tuple[str, ...]:
        """The tokens that open an entity."""
        return tuple(f"[NE:{kind}]" for kind in self.types) if self.types else (OPEN,)

    def check(self, cut: Cut) -> List[str]:
        """Check that every turn has a list of entities whose spans lie on word boundaries and do not overlap."""
        return [problem for turn in turns_of(cut) for problem in _check_turn(turn, self.types)]

    def from_cut(self, cut: Cut) -> Tuple[EntitySpan, ...]:
        """Entities of all turns, as word spans over the cut."""
        found = []
        for turn in turns_of(cut):
            if not turn.custom.get("entities"):
                continue
            spans = character_spans(turn.text)
            starts = {start: i for i, (start, _) in enumerate(spans)}
            ends = {end: i + 1 for i, (_, end) in enumerate(spans)}
            for item in sorted(turn.custom.get("entities", ()), key=lambda item: item["start"]):
                start, end = starts[item["start"]], ends[item["end"]]
                found.append(EntitySpan(turn.first_word + start, turn.first_word + end, item.get("type")))
        return tuple(found)

    def project(self, answer: Sequence[EntitySpan]) -> Tuple[EntitySpan, ...]:
        """Remove the types if the task is untyped; drop entities of unknown types if it is typed."""
        if self.types:
            return tuple(entity for entity in answer if entity.type in self.types)
        return tuple(EntitySpan(entity.start, entity.end) for entity in answer)

    def to_marks(self, answer: Sequence[EntitySpan], num_words: int) -> List[Tuple[int, int, str]]:
        """Return an opening token before the first word of each entity, and a closing one after the last."""
        marks = []
        for entity in self.project(answer):
            marks.append((entity.start, RANK_OPEN, f"[NE:{entity.type}]" if self.types else OPEN))
            marks.append((entity.end, RANK_CLOSE, CLOSE))
        return marks

    @property
    def reader(self) -> MarkReader:
        """Reads pairs of opening and closing tokens by the rules in the class docstring."""
        return partial(read_spans, types=dict(zip(self.opening, self.types or (None,))))

    def from_marks(self, marks: Sequence[Mark], num_words: int) -> Tuple[EntitySpan, ...]:
        """See `reader`."""
        return self.reader(marks, num_words)

    def score(self, examples: Sequence[ScoredExample]) -> Dict[str, Any]:
        """Exact and soft F1 over the multiset of (phrase, type) of each utterance (SLUE).

        If the task is typed, a reference without a type goes by its phrase alone: its label does not say more.
        """
        return score_entities(
            [
                (
                    [
                        (e.ref.phrase(x), x.type if self.types else None)
                        for x in e.ref.entities
                        if not self.types or x.type in (None, *self.types)
                    ],
                    [(e.hyp.phrase(x), x.type if self.types else None) for x in e.hyp.entities],
                )
                for e in examples
            ]
        )


def _check_turn(turn: LabelledTurn, types: Sequence[str]) -> List[str]:
    where = f"supervision {turn.index}, field 'custom.entities'"
    items = turn.custom.get("entities")
    if not isinstance(items, list):
        return [
            f"{where}: expected a list (empty if no entity is spoken) because the cut is labelled for ner, "
            f"found {items!r}"
        ]
    spans = character_spans(turn.text) if items else []
    starts, ends = {start for start, _ in spans}, {end for _, end in spans}
    problems, last_end = [], -1
    for item in sorted(items, key=lambda item: _start_of(item)):
        if _start_of(item) < 0 or type(item.get("end")) is not int or not isinstance(item.get("type") or "", str):
            problems.append(f"{where}: expected {{'start': int, 'end': int, 'type': str}}, found {item!r}")
            continue
        start, end, kind = item["start"], item["end"], item.get("type")
        if start not in starts or end not in ends or end <= start:
            problems.append(f"{where}: span {start}..{end} does not begin and end at word boundaries of {turn.text!r}")
        if start < last_end:
            problems.append(f"{where}: span {start}..{end} overlaps the one before it")
        if types and kind not in types:
            problems.append(f"{where}: type {kind!r} is not one of {', '.join(types)}")
        last_end = max(last_end, end)
    return problems


def _start_of(item: Any) -> int:
    """Return the start of an entity item, or -1 if it has none."""
    start = item.get("start") if isinstance(item, dict) else None
    return start if isinstance(start, int) and not isinstance(start, bool) else -1
