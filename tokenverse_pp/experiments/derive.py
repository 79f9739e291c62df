"""Training manifests made from one manifest: parts of it, labels for a share of the cuts, labels claimed but empty."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.label import LabelChange, in_order, label_rows
from tokenverse_pp.manifests.rows import custom_of, read_rows, supervision_custom, supervisions_of, writing_rows
from tokenverse_pp.manifests.subset import Wanted, write_subset


@dataclass(frozen=True)
class Derivation:
    """How a training manifest is made, in this order.

    Args:
        corpora: only cuts of these corpora; none: of all.
        tasks: only cuts that are labelled for all of these.
        keep_labels: task -> share of its labelled cuts that keep the label, drawn anew for each seed of a run.
        only: drop the labels of all tasks but these.
        claim: say of every cut that it is labelled for these: where a label is missing, that there is nothing
            (`claim_tasks`).
    """

    corpora: Tuple[str, ...] = ()
    tasks: Tuple[str, ...] = ()
    keep_labels: Mapping[str, float] = field(default_factory=dict)
    only: Tuple[str, ...] = ()
    claim: Tuple[str, ...] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Derivation:
        """From YAML (raises UserError for a key that is none)."""
        names = {f.name for f in dataclasses.fields(cls)}
        for key in data:
            if key not in names:
                raise UserError(f"manifests: unknown key {key!r}; expected some of {', '.join(sorted(names))}")
        given: Dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**given)

    @property
    def is_drawn(self) -> bool:
        """Whether it depends on a seed."""
        return bool(self.keep_labels)

    def as_dict(self, seed: int) -> Dict[str, Any]:
        """What defines the manifest that comes of it, beside the one it is made from; empty: that one itself."""
        given = {key: value for key, value in dataclasses.asdict(self).items() if value}
        return {**given, "seed": seed} if self.is_drawn else given


def derive(source: Path, output: Path, how: Derivation, seed: int) -> None:
    """Write the manifest that ``how`` makes of ``source``; it appears whole or not at all.

    Raises:
        UserError: where no cut is left, or a claimed task cannot be empty.
    """
    wanted = Wanted(tasks=frozenset(how.tasks), corpora=frozenset(how.corpora), keep_labels=how.keep_labels, seed=seed)
    part = output.with_name(f".part{os.getpid()}.{output.name}")
    change = LabelChange(only=how.only or None)
    try:
        write_subset(source, part, wanted)
        with writing_rows(output) as writer:
            for data in _changed(part, change, how):
                writer.write(data)
    finally:
        part.unlink(missing_ok=True)


def _changed(path: Path, change: LabelChange, how: Derivation) -> Iterator[Dict[str, Any]]:
    for data in label_rows(read_rows(path), change):
        if how.claim:
            claim_tasks(data, how.claim)
        yield data


def claim_tasks(data: Dict[str, Any], tasks: Tuple[str, ...]) -> None:
    """Say of a cut that it is labelled for ``tasks``, with nothing in it of those that it lacked.

    That is what mixing corpora comes to without task vectors: a cut that nobody marked entities in then teaches that
    it has none. No speaker changes: all turns get one speaker; no endpoint: ``endpoint`` is false everywhere.

    Raises:
        UserError: for a task whose label cannot be empty (a language is always spoken).
    """
    custom = custom_of(data)
    labelled = custom.get("tasks", ["asr"])
    missing = [task for task in tasks if task not in labelled]
    for task in missing:
        if task not in EMPTY:
            raise UserError(f"cut {data['id']}: not labelled for {task}, and nothing can stand for that label")
        for supervision in supervisions_of(data):
            EMPTY[task](supervision, supervision_custom(supervision, data["id"]))
    custom["tasks"] = in_order([*labelled, *missing])


def _no_change(supervision: Dict[str, Any], custom: Dict[str, Any]) -> None:
    supervision["speaker"] = "unknown"


def _no_endpoint(supervision: Dict[str, Any], custom: Dict[str, Any]) -> None:
    custom["endpoint"] = False


def _no_entity(supervision: Dict[str, Any], custom: Dict[str, Any]) -> None:
    custom["entities"] = []


EMPTY: Mapping[str, Callable[[Dict[str, Any], Dict[str, Any]], None]] = {
    "scd": _no_change,
    "endp": _no_endpoint,
    "ner": _no_entity,
}
