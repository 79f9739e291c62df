"""Change the tasks that cuts are labelled for, and label entities automatically, row by row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from tokenverse_pp import __version__
from tokenverse_pp.base.engine import Parts, current_engine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import feed
from tokenverse_pp.base.languages import canonical_tag, compatible_languages, language_problem
from tokenverse_pp.data.editing.entity_finders import Gazetteer, SpacyEntities, Span
from tokenverse_pp.data.labels import LABEL_SOURCE, MACHINE, check_cut, labelled_cut
from tokenverse_pp.data.manifests import (
    ManifestRow,
    custom_of,
    row_bytes,
    supervision_custom,
    supervisions_of,
    tasks_of,
)
from tokenverse_pp.tasks.registry import REGISTRY, unknown_task

CHUNKS = 32  # per shard
CHUNK = 32  # rows per call of a finder; with more, Python's garbage collector dominates the time


class GazetteerEntities:
    """A gazetteer with the methods of `SpacyEntities`; ``name`` is its file name."""

    def __init__(self, gazetteer: Gazetteer, name: str):
        self.gazetteer = gazetteer
        self.source = f"gazetteer/{name}"

    def find(self, texts: Iterable[str], languages: Iterable[Optional[str]] = ()) -> Iterator[List[Span]]:
        """The phrases in each text, by the rules of its language."""
        return map(self.gazetteer.find, texts, chain(languages, repeat(None)))


EntityFinder = Union[GazetteerEntities, SpacyEntities]


@dataclass(frozen=True)
class LabelChange:
    """The operations of `label_rows` on each cut, in this order."""

    only: Optional[Tuple[str, ...]] = None
    """Drop all tasks but these (and asr)."""
    drop: Tuple[str, ...] = ()
    """Tasks to drop, e.g. ner, with the fields that hold only their labels."""
    add: Tuple[str, ...] = ()
    """Tasks to add, e.g. lid,scd. Their labels must be in the cuts (or come from --language)."""
    language: Optional[str] = None
    """Write this code (e.g. fr) into the turns that have no language, in its canonical form (fr for FRA)."""
    replace_labels: bool = False
    """Replace languages and entities that are there already."""

    def __post_init__(self) -> None:
        for task in (*(self.only or ()), *self.drop, *self.add):
            if task not in REGISTRY:
                raise UserError(unknown_task(task))
        if "asr" in self.drop:
            raise UserError("asr cannot be dropped: every cut is labelled for it")
        both = sorted({*self.add} & {*self.drop})
        if both:
            raise UserError(f"{', '.join(both)}: cannot be both added and dropped")


def label_rows(
    rows: Iterable[ManifestRow], change: LabelChange, finder: Optional[EntityFinder] = None
) -> Iterator[Dict]:
    """Yield the data of the rows with changed labels.

    Args:
        finder: labels the entities of every cut, as machine labels (see `tokenverse_pp.data.labels`).

    Raises:
        UserError: naming a cut that does not have the labels of a task to be added, or already has other labels
            (without ``replace_labels``).
    """
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        for row in chunk:
            if change.language:
                _write_language(row, change.language, change.replace_labels)
            labelled, unwanted = tasks_of(row), set(change.drop)
            if change.only is not None:
                unwanted |= set(labelled) - {"asr", *change.only}
            if unwanted:
                drop_tasks(row.data, unwanted)
            if change.add:
                custom_of(row.data)["tasks"] = in_order([*tasks_of(row), *change.add])
        if finder is not None:
            _find_entities(chunk, finder, change.replace_labels)
        for row in chunk:
            if change.add or change.language:
                problems = check_cut(labelled_cut(row))
                if problems:
                    raise UserError(f"{row.where}: cut {row.id}: {problems[0]}")
            yield row.data


def labelling_digest(*about: Any) -> str:
    """Return a digest of everything besides the rows that the labels depend on; files count by their content.

    Args:
        about: values, and names of files.
    """
    digest = hashlib.sha256(__version__.encode())
    for value in about:
        digest.update(repr(value).encode())
        if isinstance(value, str) and Path(value).is_file():
            feed(digest, Path(value))
    return digest.hexdigest()


def label_by_cluster(
    rows: Iterable[ManifestRow],
    change: LabelChange,
    make_finder: Callable[[], Optional[EntityFinder]],
    run: str,
    parts: Parts,
) -> Iterator[List[bytes]]:
    """`label_rows` on the workers of the current engine; yields some lines at a time.

    Args:
        make_finder: called in the workers.
        run: the `labelling_digest` of the run.
    """
    rows = iter(rows)
    groups = iter(lambda: list(islice(rows, CHUNKS * CHUNK)), [])  # whole chunks: finders get the same batches
    lines = ((group, [row.line.rstrip(b"\r\n") for row in group]) for group in groups)
    shards = ((hashlib.sha256(b"\n".join([run.encode(), *found])).hexdigest(), group) for group, found in lines)
    for line in current_engine().run(partial(_start, change, make_finder), shards, parts):
        yield [text.encode() for text in line["lines"]]


def _start(change: LabelChange, make_finder: Callable[[], Optional[EntityFinder]]) -> Callable[[Any], Dict[str, Any]]:
    finder = make_finder()
    return lambda rows: {"lines": [row_bytes(data).decode().rstrip("\n") for data in label_rows(rows, change, finder)]}


def in_order(tasks: Iterable[str]) -> List[str]:
    """Return tasks without repetition, in the order of the registry, then unknown ones."""
    named = set(tasks)
    return [task for task in REGISTRY if task in named] + sorted(named - set(REGISTRY))


def drop_tasks(data: Dict[str, Any], tasks: Iterable[str]) -> None:
    """Remove tasks from the task list of a cut, with their own fields and label sources.

    Fields that other tasks use (speaker, language) stay. A later `label --add` cannot restore dropped labels.
    """
    tasks, custom = set(tasks), custom_of(data)
    custom["tasks"] = [task for task in custom.get("tasks", ["asr"]) if task not in tasks]
    sources = {task: name for task, name in _sources(custom, data["id"]).items() if task not in tasks}
    if sources:
        custom[LABEL_SOURCE] = sources
    else:
        custom.pop(LABEL_SOURCE, None)
    own = [name for task in tasks if task in REGISTRY for name in REGISTRY[task].own_fields]
    for supervision in supervisions_of(data) if own else ():
        for name in own:
            supervision_custom(supervision, data["id"]).pop(name, None)


def _write_language(row: ManifestRow, language: str, replace: bool) -> None:
    """Write a code, in its canonical form, into the turns of a row; another spelling of it is not changed."""
    problem = language_problem(language)
    code = canonical_tag(language) or language
    for i, supervision in enumerate(supervisions_of(row.data)):
        if problem:
            raise UserError(f"{row.where}: cut {row.id}: supervision {i}, field 'language': {problem}")
        found = supervision.get("language")
        if found and not replace:
            if not compatible_languages(str(found), code):
                raise UserError(
                    f"{row.where}: cut {row.id}: its language is {found!r} already, not {language!r}; "
                    "--replace-labels replaces it"
                )
        else:
            supervision["language"] = code


def _find_entities(rows: Sequence[ManifestRow], finder: EntityFinder, replace: bool) -> None:
    turns = []
    for row in rows:
        found = list(supervisions_of(row.data))
        # Automatic labels neither replace those of people nor mix with them unless requested.
        if not replace and (
            "ner" in tasks_of(row) or any("entities" in supervision_custom(turn, row.id) for turn in found)
        ):
            maker = _sources(custom_of(row.data), row.id).get("ner", "people")
            raise UserError(
                f"{row.where}: cut {row.id}: has entities by {maker} already; --replace-labels replaces them by a "
                "machine's"
            )
        if not all(isinstance(turn.get("text"), str) for turn in found):
            raise UserError(f"{row.where}: cut {row.id}: field 'text': expected words in every turn")
        turns.append(found)
    source = MACHINE + finder.source
    every = [turn for found in turns for turn in found]
    languages = (code if isinstance(code, str) else None for code in (turn.get("language") for turn in every))
    spans = finder.find((turn["text"] for turn in every), languages)
    for row, found in zip(rows, turns):
        for turn in found:
            supervision_custom(turn, row.id)["entities"] = [
                {"start": s.start, "end": s.end, "type": s.type, "source": source, "confidence": s.confidence}
                for s in next(spans)
            ]
        custom = custom_of(row.data)
        custom["tasks"] = in_order([*tasks_of(row), "ner"])
        custom[LABEL_SOURCE] = {**_sources(custom, row.id), "ner": source}


def _sources(custom: Dict[str, Any], cut_id: str) -> Dict[str, Any]:
    """The label sources of a cut (raises UserError if they are no mapping)."""
    sources = custom.get(LABEL_SOURCE) or {}
    if not isinstance(sources, dict):
        raise UserError(f"cut {cut_id}: field 'custom.{LABEL_SOURCE}': expected a mapping, found {sources!r}")
    return sources
