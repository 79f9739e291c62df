"""Reruns of `tokenverse-pp manifest prepare`: existing output is kept, missing or incomplete output is prepared.

A corpus is prepared in groups of parts that belong together (a language, a part of LibriSpeech, all of AMI). A group's
manifests are renamed into place when all of them are complete. Then ``OUT/prepared.json`` gets an entry for the group
under the corpus's name: the options, the contents of the corpus (`contents`), the size of each file, and the number of
its lines in ``left_out.jsonl``. A rerun skips a group whose entry has the same options and contents and whose files and
lines exist. Everything else is prepared again, except audio in ``OUT/audio``, which is kept file by file: an audio file
exists only if it was written completely.

Several runs may write into one folder at once if their files have different names (languages of a corpus). A run does
not replace the manifests of another group or corpus that are recorded when it begins; it replaces those of another data
set only with ``--force``. Names are not reserved: if two runs at once write a file of one name, the last one wins.
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
ALL = "all"  # the group of a corpus that has only one
DATA_SET = ("dataset", "config")  # options that name a data set of Hugging Face's library
Paths = Dict[str, Path]


@dataclass(frozen=True)
class CorpusGroup:
    """Parts of a corpus that are prepared together.

    Attributes:
        parts: the names of the parts.
        read: the folders and files that they are made of; missing ones count as empty.
        more: further values that the cuts depend on.
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
    """Prepare the groups that no earlier run prepared with the same options; print the corpus's licence at the end.

    Args:
        run: its normaliser and ``written`` also count as options.
        groups: by name.
        prepare: function that writes all manifests of a group, or none, and returns them by part.
        options: further options of the command that the cuts depend on; not the number of processes.
        licence: the licence, if it is not that of `LICENCES`.

    Returns:
        The manifests by part, including those of earlier runs.

    Raises:
        UserError: if a file to be written belongs to another corpus, group or data set (``run.force`` replaces that of
            a data set at another path), or if ``prepare`` raises it. Groups completed before are kept.
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

    A data set is identified by its path, which changes when it is moved; ``run.force`` then replaces its manifests.
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
    """Return the number of files in folders, their bytes and the time of the newest, to detect changes of a corpus.

    Args:
        paths: folders and files; missing ones count as empty.
        output_dir: not counted if it lies in the corpus.
    """
    found = {"files": 0, "bytes": 0, "newest": 0}
    seen = {(about.st_dev, about.st_ino) for about in [output_dir.stat()]} if output_dir.is_dir() else set()
    rest: List[os.PathLike[str]] = [path for path in paths if path.exists()]
    while rest:
        path = rest.pop()
        try:
            about = path.stat() if isinstance(path, os.DirEntry) else os.stat(path)
            inside = list(os.scandir(path)) if stat.S_ISDIR(about.st_mode) else None
        except OSError:  # a broken link, or a folder that may not be read: the reader reports it if it matters
            continue
        if inside is None:
            found["files"] += 1
            found["bytes"] += about.st_size
            found["newest"] = max(found["newest"], about.st_mtime_ns)
        elif (about.st_dev, about.st_ino) not in seen:  # links may form cycles
            seen.add((about.st_dev, about.st_ino))
            rest += inside
    return found


def _read(path: Path) -> Dict[str, Dict[str, Any]]:
    """Return the record of earlier runs, corpus -> group -> entry; empty if it is missing or cannot be read."""
    try:
        record = json_of(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, UserError):
        return {}
    items = record.items() if isinstance(record, dict) else ()
    return {name: groups for name, groups in items if isinstance(groups, dict)}


def _whole(output_dir: Path, entry: Any, wanted: Mapping[str, Any]) -> Optional[Paths]:
    """Return the files of a group if it was prepared with these options and all files are complete."""
    paths = _files(output_dir, entry)
    if not paths or entry["options"] != wanted or len(paths) < len(entry["files"]):
        return None
    listed = (output_dir / LEFT_OUT).is_file() and len(left_out_lines(output_dir, paths)[0]) == entry.get("left_out")
    return paths if listed else None


def _files(output_dir: Path, entry: Any) -> Paths:
    """Return, by part, the files of an entry that exist with their recorded size."""
    paths: Paths = {}
    files, options = (entry.get("files"), entry.get("options")) if isinstance(entry, dict) else (None, None)
    for part, about in files.items() if isinstance(files, dict) and isinstance(options, dict) else ():
        path = output_dir / Path(str(about.get("file"))).name if isinstance(about, dict) else output_dir
        if path.is_file() and path.stat().st_size == about.get("bytes"):
            paths[part] = path
    return paths


def _plain(options: Mapping[str, Any]) -> Dict[str, Any]:
    """Convert options to JSON types, with absolute paths."""
    plain = {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in options.items()}
    return json.loads(json.dumps(plain, sort_keys=True, default=str))
