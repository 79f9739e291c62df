"""Reruns of `tokenverse-pp manifest prepare`: what is there is kept, what is missing or not whole is prepared.

A corpus is prepared in groups, each of the parts that belong together (a language, a part of LibriSpeech, all of AMI).
A group's manifests are renamed into place when all of them are whole; then ``OUT/prepared.json`` gets its entry under
the corpus's name: the options, what the corpus held (`contents`), the size of each file, and the number of its lines in
``left_out.jsonl``. A rerun skips a group whose entry has the same options and contents and whose files and lines are
there. Whatever else it finds is prepared again, but for audio in ``OUT/audio``, which is kept file by file: such a file
is there only if it was written to its end.

Several runs may write into one folder at once if their files have other names (languages of a corpus). A run does not
replace the manifests of another group or corpus that are recorded when it begins, those of another data set only with
``--force``. Names are not reserved: of two runs at once that write a file of one name the last one's stays.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from tokenverse_pp import __version__
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import json_of, locked, write_json
from tokenverse_pp.data.corpora import LICENCES
from tokenverse_pp.data.corpora.common import LEFT_OUT, Preparation, file_of, left_out_lines

RECORD = "prepared.json"
ALL = "all"  # the group of a corpus that has but one
DATA_SET = ("dataset", "config")  # options that name a data set of Hugging Face's library
Paths = Dict[str, Path]


@dataclass(frozen=True)
class CorpusGroup:
    """Parts of a corpus that are prepared together.

    Attributes:
        parts: their names.
        read: the folders and files that they are made of; those that are not there count as empty.
        more: what the cuts depend on besides.
    """

    parts: Sequence[str]
    read: Sequence[Path]
    more: Mapping[str, Any] = field(default_factory=dict)


def in_groups(
    run: Preparation,
    corpus: str,
    groups: Mapping[str, CorpusGroup],
    prepare: Callable[[str], Paths],
    options: Mapping[str, Any] = {},
    licence: Optional[str] = None,
) -> Paths:
    """Prepare the groups that are not there from a run with the same options; say the corpus's licence at the end.

    Args:
        run: its normaliser and ``written`` are options too.
        groups: by name.
        prepare: writes the manifests of a group, all or none; returns them by part.
        options: further ones of the command; the cuts depend on all of them. The number of processes is none of them.
        licence: where it is not that of `LICENCES`.

    Returns:
        The manifests by part, those of earlier runs included.

    Raises:
        UserError: where a file that would be written is that of another corpus, group or data set (``run.force``
            replaces that of a data set at another path), and as ``prepare`` does. Groups that are whole by then stay.
    """
    output_dir, say = run.output_dir, run.say
    path = output_dir / RECORD
    record = _read(path)
    _check_owners(record, run, corpus, groups, options)
    given = {"corpus_dir": run.corpus_dir, "normaliser": run.normaliser, "written": run.written, **options}
    entries = record.get(corpus, {})
    found: Paths = {}
    for group, about in groups.items():
        read = contents(about.read, output_dir)
        wanted = _plain({**given, "parts": about.parts, "read": read, **about.more, "version": __version__})
        paths = None if run.force else _whole(output_dir, entries.get(group, {}), wanted)
        if paths is not None:
            names = ", ".join(sorted(str(file) for file in paths.values()))
            say(f"there from an earlier run with the same options (--force prepares them again): {names}")
        else:
            paths = prepare(group)
            files = {part: {"file": file.name, "bytes": file.stat().st_size} for part, file in paths.items()}
            left_out, _ = left_out_lines(output_dir, paths)
            with locked(output_dir):  # another run may have added groups
                record = _read(path)
                entry = {"options": wanted, "files": files, "left_out": len(left_out)}
                record.setdefault(corpus, {})[group] = entry
                write_json(path, record)
        found.update(paths)
    say(f"licence of {corpus}: {licence or LICENCES[corpus]}")
    return found


def _check_owners(
    record: Mapping[str, Mapping[str, Any]],
    run: Preparation,
    corpus: str,
    groups: Mapping[str, CorpusGroup],
    options: Mapping[str, Any],
) -> None:
    """Check that no manifest would replace that of another group, corpus or data set (raises UserError).

    A data set is known by its path, which is another one once it was moved: ``run.force`` replaces its manifests.
    """

    def title(name: str, group: str, options: Mapping[str, Any]) -> str:
        return ", ".join(str(part) for part in (name, group, *map(options.get, DATA_SET)) if part not in (None, ALL))

    owners: Dict[str, Tuple[str, str, str]] = {}  # of files: corpus, group and title
    for name, entries in record.items():
        for group, entry in entries.items():
            for path in _files(run.output_dir, entry).values():
                owners[path.name] = name, group, title(name, group, entry["options"])
    for group, about in groups.items():
        mine = corpus, group, title(corpus, group, options)
        for file in map(file_of, about.parts):
            other = owners.setdefault(file, mine)
            same_group = other[:2] == mine[:2]
            if other != mine and not (run.force and same_group):
                way = "--force replaces it, or " if same_group else ""
                where = run.output_dir / file
                raise UserError(f"{where}: is of {other[2]}; {way}prepare {mine[2]} into a folder of its own")


def contents(paths: Iterable[Path], output_dir: Path) -> Dict[str, int]:
    """How many files there are in folders, their bytes and the time of the newest: a corpus has changed if these have.

    Args:
        paths: folders and files; those that are not there count as empty.
        output_dir: not counted, where it lies in the corpus.
    """
    found = {"files": 0, "bytes": 0, "newest": 0}
    seen = {(about.st_dev, about.st_ino) for about in [output_dir.stat()]} if output_dir.is_dir() else set()
    rest: List[os.PathLike[str]] = [path for path in paths if path.exists()]
    while rest:
        path = rest.pop()
        try:
            about = path.stat() if isinstance(path, os.DirEntry) else os.stat(path)
            inside = list(os.scandir(path)) if stat.S_ISDIR(about.st_mode) else None
        except OSError:  # a link to nothing, or a folder that may not be read: the reader says so where it matters
            continue
        if inside is None:
            found["files"] += 1
            found["bytes"] += about.st_size
            found["newest"] = max(found["newest"], about.st_mtime_ns)
        elif (about.st_dev, about.st_ino) not in seen:  # links may lead round
            seen.add((about.st_dev, about.st_ino))
            rest += inside
    return found


def _read(path: Path) -> Dict[str, Dict[str, Any]]:
    """The record of earlier runs, corpus -> group -> entry; empty where there is none, or it cannot be read."""
    try:
        record = json_of(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, UserError):
        return {}
    items = record.items() if isinstance(record, dict) else ()
    return {name: groups for name, groups in items if isinstance(groups, dict)}


def _whole(output_dir: Path, entry: Any, wanted: Mapping[str, Any]) -> Optional[Paths]:
    """The files of a group if it was prepared with these options and all of them are whole."""
    paths = _files(output_dir, entry)
    if not paths or entry["options"] != wanted or len(paths) < len(entry["files"]):
        return None
    listed = (output_dir / LEFT_OUT).is_file() and len(left_out_lines(output_dir, paths)[0]) == entry.get("left_out")
    return paths if listed else None


def _files(output_dir: Path, entry: Any) -> Paths:
    """The files of an entry that are as it says, by part."""
    paths: Paths = {}
    files, options = (entry.get("files"), entry.get("options")) if isinstance(entry, dict) else (None, None)
    for part, about in files.items() if isinstance(files, dict) and isinstance(options, dict) else ():
        path = output_dir / Path(str(about.get("file"))).name if isinstance(about, dict) else output_dir
        if path.is_file() and path.stat().st_size == about.get("bytes"):
            paths[part] = path
    return paths


def _plain(options: Mapping[str, Any]) -> Dict[str, Any]:
    """Options as JSON has them, paths absolute."""
    plain = {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in options.items()}
    return json.loads(json.dumps(plain, sort_keys=True, default=str))
