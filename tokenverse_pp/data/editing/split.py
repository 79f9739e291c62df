"""Split a manifest into disjoint sets, or take a subset by criteria, number or hours.

Sets share no speaker, text, recording or other key. Cuts that share a key form a group, and groups that share a cut
are joined: with several kinds of keys, a group is a connected component of the graph of cuts and keys. A group is never
divided. A subset may also keep the labels of a task for only a share of its cuts.
"""

from __future__ import annotations

import contextlib
import random
import unicodedata
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike
from tokenverse_pp.base.languages import compatible_languages
from tokenverse_pp.data.editing.label import drop_tasks
from tokenverse_pp.data.editing.stats import SECONDS_PER_HOUR
from tokenverse_pp.data.lines import BLANKS, fields, text_lines
from tokenverse_pp.data.manifests import (
    ManifestRow,
    custom_of,
    duration_of,
    read_rows,
    recordings_of,
    supervisions_of,
    tasks_of,
    writing_rows,
)
from tokenverse_pp.tasks.registry import REGISTRY, unknown_task

FREE = -1  # a key that no set has yet
OF_TURNS = ("speaker", "text")  # keys of which every turn has one
KINDS = (*OF_TURNS, "recording")  # other keys are custom fields


@dataclass(frozen=True)
class KeyRule:
    """The keys that sets must not share."""

    kinds: Tuple[str, ...]
    """What no two sets may share: speaker, text, recording, or a custom field of cuts or turns. May be given again,
    or several with commas."""
    text_words: int = 1
    """Texts of fewer words may be in several sets (everybody says yes)."""
    allow_missing: bool = False
    """Accept cuts without a speaker (text, ..): they share nothing. Otherwise they are an error."""

    def keys(self, row: ManifestRow) -> List[Tuple[str, str]]:
        """Return (kind, value) of every key that a cut must not share with other sets; its id if there is none.

        Raises:
            UserError: naming a cut without a key.
        """
        found = []
        for kind in self.kinds:
            all_values = list(self._values(row, kind))
            values = [value for value in all_values if isinstance(value, (str, int)) and value != ""]
            missing = not values or (kind in OF_TURNS and len(values) < len(all_values))
            if missing and not self.allow_missing:
                raise UserError(
                    f"{row.where}: cut {row.id}: no {kind}, so it is not known what it shares with other cuts; "
                    "--allow-missing accepts it"
                )
            found += [(kind, unicodedata.normalize("NFC", str(value))) for value in values]
        long_enough = [key for key in found if key[0] != "text" or len(key[1].split()) >= self.text_words]
        return sorted(set(long_enough)) or [("id", row.id)]

    def _values(self, row: ManifestRow, kind: str) -> Iterable[Any]:
        if kind == "speaker":
            return (supervision.get("speaker") for supervision in supervisions_of(row.data))
        if kind == "text":
            return (plain_text(supervision.get("text")) for supervision in supervisions_of(row.data))
        if kind == "recording":
            return recordings_of(row.data)
        # `manifest import --column custom.NAME=..` stores a cell of each table row in the turn of that row.
        turns = (supervision.get("custom") for supervision in supervisions_of(row.data))
        return [custom_of(row.data).get(kind), *(custom.get(kind) for custom in turns if isinstance(custom, dict))]


def plain_text(text: Any) -> str:
    """A text normalised for comparison: case, spaces and Unicode form do not matter."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) if isinstance(text, str) else ""


class Groups:
    """Connected components of keys with the hours in each (union-find with path halving; Tarjan and van Leeuwen)."""

    def __init__(self) -> None:
        self._number: Dict[int, int] = {}  # hash of a key -> its number
        self._parent = array("q")
        self._hours = array("d")

    def number(self, key: Tuple[str, str]) -> int:
        """The number of a key, a new one for a new key."""
        number = self._number.setdefault(hash(key), len(self._parent))
        if number == len(self._parent):
            self._parent.append(number)
            self._hours.append(0.0)
        return number

    def root(self, number: int) -> int:
        """The key that represents a key's group."""
        parent = self._parent
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def join(self, keys: Sequence[Tuple[str, str]], hours: float) -> None:
        """Join keys into one group and add hours to it."""
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
    """Assign groups to sets (by number), at random but close to the shares of hours; no set stays empty.

    Each group goes to the set that has the most hours left to fill. Groups larger than the smallest set go first, the
    largest first; the others in an order drawn with the seed.

    Raises:
        UserError: if there are fewer groups than sets.
    """
    if len(hours) < len(shares):
        raise UserError(
            f"{len(hours)} groups for {len(shares)} sets: what the cuts share joins them into too few groups; "
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
        UserError: see `KeyRule.keys` and `assign`, and for a custom field that no cut has. Then nothing is written.
    """
    groups, unseen, count = Groups(), set(rule.kinds) - set(KINDS), 0
    for row in read_rows(path, bar):
        count += 1
        keys = rule.keys(row)
        groups.join(keys, duration_of(row) / SECONDS_PER_HOUR)
        unseen.difference_update(kind for kind, _ in keys)
    if unseen:  # most likely misspelt: with `allow_missing`, the sets would share what they must not
        raise UserError(f"{path}: no cut has a {min(unseen)}: expected {', '.join(KINDS)} or a custom field")
    if count < len(shares):
        raise UserError(f"{path}: {count} cuts for {len(shares)} sets ({', '.join(shares)}): expected one for each")
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
            for key in keys:  # checked for every written cut, independently of the grouping
                if owner[groups.number(key)] not in (FREE, number):
                    raise RuntimeError(f"cut {row.id}: {key[0]} {key[1]!r} would be in two sets")
                owner[groups.number(key)] = number
            writers[number].write(row)
            counts[names[number]]["cuts"] += 1
            counts[names[number]]["hours"] += duration_of(row) / SECONDS_PER_HOUR
    return counts


@dataclass(frozen=True)
class Wanted:
    """The cuts to select. Options that are not given do not restrict the selection."""

    cuts: Optional[int] = None
    """Take the first N cuts (that pass the filters)."""
    hours: Optional[float] = None
    """Take the first cuts, up to this many hours; the cut that would exceed them is left out, and all after it."""
    at_random: bool = False
    """Draw the cuts at random instead of taking the first ones; the order of the manifest stays."""
    seed: int = 0
    """Seed of --random and --keep-labels."""
    languages: FrozenSet[str] = frozenset()
    """Only cuts all of whose turns are in this language: fr takes fr-CA and FRA, pt-BR takes pt but not pt-PT. May be
    given again."""
    corpora: FrozenSet[str] = frozenset()
    """Only cuts whose custom field corpus is this. May be given again."""
    tasks: FrozenSet[str] = frozenset()
    """Only cuts labelled for this task; if given again, for all of the tasks."""
    without_tasks: FrozenSet[str] = frozenset()
    """Only cuts that are not labelled for this task; if given again, for none of the tasks."""
    ids: Optional[FrozenSet[str]] = None
    """Only cuts whose id is in this file, one a line."""
    keep_labels: Mapping[str, float] = field(default_factory=dict)
    """Keep a task's labels on this share of the cuts that have them, drop them from the others, e.g. ner=0.25."""

    def __post_init__(self) -> None:
        for task in (*self.tasks, *self.without_tasks, *self.keep_labels):
            if task not in REGISTRY:
                raise UserError(unknown_task(task))
        if "asr" in self.keep_labels:
            raise UserError("--keep-labels asr: every cut is labelled for asr")
        for task, part in self.keep_labels.items():
            if not 0 <= part <= 1:
                raise UserError(f"--keep-labels {task}={part:g}: expected a share from 0 to 1")

    def takes(self, row: ManifestRow) -> bool:
        """Whether a row passes the filters."""
        if self.ids is not None and row.id not in self.ids:
            return False
        if self.tasks and not self.tasks <= set(tasks_of(row)):
            return False
        if self.without_tasks and self.without_tasks & set(tasks_of(row)):
            return False
        if self.corpora and str(custom_of(row.data).get("corpus")) not in self.corpora:
            return False
        if not self.languages:
            return True
        found = {str(supervision.get("language")) for supervision in supervisions_of(row.data)}
        return bool(found) and all(
            any(code == wanted or compatible_languages(code, wanted) for wanted in self.languages) for code in found
        )


@dataclass
class Report:
    """Counts of a subset: cuts and hours, and for each task of ``keep_labels`` the cuts that kept and lost it."""

    cuts: int = 0
    hours: float = 0.0
    kept: Dict[str, int] = field(default_factory=dict)
    lost: Dict[str, int] = field(default_factory=dict)


def write_subset(path: PathLike, output: PathLike, wanted: Wanted, bar: Any = None) -> Report:
    """Write the wanted cuts of a manifest to another. It is read twice; memory: a few bytes per cut.

    Raises:
        UserError: if no cut is wanted, an id of ``ids`` is missing, or a row is not a cut. Nothing is written.
    """
    seconds = array("d")  # of the cuts that pass the filters
    labelled: Dict[str, array[int]] = {task: array("q") for task in wanted.keep_labels}  # their numbers
    missing = set(wanted.ids or ())
    for row in read_rows(path, bar):
        missing.discard(row.id)
        if not wanted.takes(row):
            continue
        for task, where in labelled.items():
            if task in tasks_of(row):
                where.append(len(seconds))
        seconds.append(duration_of(row))
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{path}: no cut {min(missing)!r}, which --ids asks for{more}")
    taken = _take(seconds, wanted)
    if not taken:
        raise UserError(f"{path}: no cut to write: {len(seconds)} fit the filters, and of these none the hours")
    losing: Dict[str, Set[int]] = {}
    for task, where in labelled.items():  # all but a random share, rounded to the nearest number of cuts
        numbers = sorted(taken & set(where))
        random.Random(f"{wanted.seed}/{task}").shuffle(numbers)
        losing[task] = set(numbers[round(wanted.keep_labels[task] * len(numbers)) :])
    report = Report(kept=dict.fromkeys(losing, 0), lost={task: len(lost) for task, lost in losing.items()})
    with writing_rows(output) as writer:
        for number, row in enumerate(filter(wanted.takes, read_rows(path, bar))):
            if number not in taken:
                continue
            dropped = [task for task, lost in losing.items() if number in lost]
            for task in losing:
                report.kept[task] += task in tasks_of(row) and task not in dropped
            if dropped:
                drop_tasks(row.data, dropped)
            writer.write(row.data if dropped else row)
            report.cuts += 1
            report.hours += duration_of(row) / SECONDS_PER_HOUR
    return report


def _take(seconds: Sequence[float], wanted: Wanted) -> Set[int]:
    """Numbers of the selected cuts among those that pass the filters."""
    order: List[int] = list(range(len(seconds)))
    if wanted.at_random:
        random.Random(wanted.seed).shuffle(order)
    order = order[: wanted.cuts]
    if wanted.hours is None:
        return set(order)
    taken, left = set(), wanted.hours * SECONDS_PER_HOUR + 1e-6
    for number in order:
        left -= seconds[number]
        if left < 0:
            break
        taken.add(number)
    return taken


def read_ids(path: PathLike, cuts: Optional[PathLike] = None) -> FrozenSet[str]:
    """The ids in a file: the first word of every line, or the whole line if a cut has that id.

    Args:
        cuts: the manifest of the cuts; it is read if a line has several words.

    Raises:
        UserError: if there are none.
    """
    lines = {line.strip(BLANKS) for _, line in text_lines(Path(path))} - {""}
    longer = {line for line in lines if len(fields(line)) > 1}
    known = {row.id for row in read_rows(cuts) if row.id in longer} if longer and cuts is not None else set()
    if not lines:
        raise UserError(f"{path}: expected an id in every line, found none")
    return frozenset(line if line in known else fields(line)[0] for line in lines)
