"""Splitting a manifest into sets that share no speaker, text, recording, or whatever else must not leak.

Cuts that share a key are one group, and so are groups that share a cut: with several kinds of keys, a group is a
connected component of the graph of cuts and keys. Whole groups go to a set.
"""

from __future__ import annotations

import contextlib
import random
import unicodedata
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike
from tokenverse_pp.data.editing.stats import SECONDS_PER_HOUR
from tokenverse_pp.data.manifests import (
    ManifestRow,
    custom_of,
    duration_of,
    read_rows,
    recordings_of,
    supervisions_of,
    writing_rows,
)

FREE = -1  # a key that no set has yet


@dataclass(frozen=True)
class KeyRule:
    """What must not be in two sets.

    Args:
        kinds: of ``speaker``, ``text``, ``recording``; any other name is a custom field of the cut.
        text_words: texts of fewer words may be in several sets (everybody says yes).
        allow_missing: a cut without a key of some kind shares nothing of that kind; otherwise it is an error, since
            nobody can tell what it shares.
    """

    kinds: Tuple[str, ...]
    text_words: int = 1
    allow_missing: bool = False

    def keys(self, row: ManifestRow) -> List[Tuple[str, str]]:
        """(kind, value) of all that a cut must not share with other sets; its own id where there is nothing.

        Raises:
            UserError: naming the cut that lacks a key.
        """
        found = []
        for kind in self.kinds:
            values = [value for value in self._values(row, kind) if isinstance(value, (str, int)) and value != ""]
            if not values and not self.allow_missing:
                raise UserError(
                    f"{row.where}: cut {row.id}: no {kind}, so that nobody can tell what it shares; "
                    "--allow-missing lets it through"
                )
            found += [(kind, str(value)) for value in values]
        long_enough = [key for key in found if key[0] != "text" or len(key[1].split()) >= self.text_words]
        return sorted(set(long_enough)) or [("id", row.id)]

    def _values(self, row: ManifestRow, kind: str) -> Iterable[Any]:
        if kind == "speaker":
            return (supervision.get("speaker") for supervision in supervisions_of(row.data))
        if kind == "text":
            return (plain_text(supervision.get("text")) for supervision in supervisions_of(row.data))
        if kind == "recording":
            return recordings_of(row.data)
        return [custom_of(row.data).get(kind)]


def plain_text(text: Any) -> str:
    """A text without what does not make it another sentence: case, spaces, and Unicode's ways to write it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) if isinstance(text, str) else ""


class Groups:
    """Connected components of keys with the hours in each (union-find with path halving; Tarjan and van Leeuwen)."""

    def __init__(self) -> None:
        self._number: Dict[int, int] = {}  # hash of a key -> its number
        self._parent = array("q")
        self._hours = array("d")

    def number(self, key: Tuple[str, str]) -> int:
        """The number of a key, a new one if it was not seen before."""
        number = self._number.setdefault(hash(key), len(self._parent))
        if number == len(self._parent):
            self._parent.append(number)
            self._hours.append(0.0)
        return number

    def root(self, number: int) -> int:
        """The key that stands for the group of a key."""
        parent = self._parent
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def join(self, keys: Sequence[Tuple[str, str]], hours: float) -> None:
        """Put keys into one group, and hours into it."""
        first = self.root(self.number(keys[0]))
        for key in keys[1:]:
            other = self.root(self.number(key))
            if other != first:
                self._parent[other] = first
                self._hours[first] += self._hours[other]
        self._hours[first] += hours

    def hours(self) -> Dict[int, float]:
        """Hours by group, in the order in which the groups were met."""
        return {i: self._hours[i] for i, parent in enumerate(self._parent) if parent == i}

    def __len__(self) -> int:
        """The number of keys."""
        return len(self._parent)


def assign(hours: Mapping[int, float], shares: Sequence[float], seed: int) -> Dict[int, int]:
    """Groups -> number of the set that each goes to, at random but near the shares of hours.

    Each group goes to the set that lacks most hours. Groups that are larger than the smallest set go first, the
    largest of them first of all; the others in an order drawn by the seed. No set stays empty.

    Raises:
        UserError: where there are fewer groups than sets.
    """
    if len(hours) < len(shares):
        raise UserError(
            f"{len(hours)} groups for {len(shares)} sets: the cuts hang together by what they share; "
            "try fewer --by, or a larger --text-words"
        )
    total = sum(hours.values())
    lacking = [share / sum(shares) * total for share in shares]
    smallest = min(lacking)
    order = sorted(hours)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -hours[group] if hours[group] > smallest else 0.0)
    chosen: Dict[int, int] = {}
    empty = set(range(len(shares)))
    for done, group in enumerate(order):
        candidates = empty if len(order) - done <= len(empty) else range(len(shares))
        best = max(candidates, key=lambda i: lacking[i])
        chosen[group] = best
        lacking[best] -= hours[group]
        empty.discard(best)
    return chosen


def split_manifest(
    path: PathLike, outputs: Mapping[str, Path], shares: Mapping[str, float], rule: KeyRule, seed: int, bar: Any = None
) -> Dict[str, Dict[str, float]]:
    """Write each cut of a manifest to the file of its set.

    Args:
        outputs: set -> file.
        shares: set -> share of the hours.

    Returns:
        set -> ``cuts``, ``hours``, ``groups``.

    Raises:
        UserError: see `KeyRule.keys` and `assign`. Then nothing is written.
    """
    groups = Groups()
    for row in read_rows(path, bar):
        groups.join(rule.keys(row), duration_of(row) / SECONDS_PER_HOUR)
    names = list(shares)
    chosen = assign(groups.hours(), list(shares.values()), seed)
    counts = {name: {"cuts": 0, "hours": 0.0, "groups": 0} for name in names}
    for number in chosen.values():
        counts[names[number]]["groups"] += 1
    owner = array("b", [FREE]) * len(groups)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writing_rows(outputs[name])) for name in names]
        for row in read_rows(path, bar):
            keys = rule.keys(row)
            number = chosen[groups.root(groups.number(keys[0]))]
            _check_leak(row, keys, [groups.number(key) for key in keys], owner, number)
            writers[number].write(row)
            counts[names[number]]["cuts"] += 1
            counts[names[number]]["hours"] += duration_of(row) / SECONDS_PER_HOUR
    return counts


def _check_leak(
    row: ManifestRow, keys: Sequence[Tuple[str, str]], numbers: Sequence[int], owner: array[int], mine: int
) -> None:
    """See for every cut that is written that no other set has a key of it, whatever the grouping says."""
    for key, number in zip(keys, numbers):
        if owner[number] not in (FREE, mine):
            raise RuntimeError(f"cut {row.id}: {key[0]} {key[1]!r} would be in two sets")
        owner[number] = mine
