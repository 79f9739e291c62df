"""Read and write manifests of cuts: as lhotse objects, or row by row as dictionaries.

Errors name the file and the line. Manifests are written to a temporary file and renamed, so they are never partial.
Commands that change or move labels work on rows: this is several times faster than building lhotse objects, keeps
unknown fields, and copies unchanged cuts byte for byte.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Dict, Iterable, Iterator, List, Sequence, Tuple, Union

from lhotse import CutSet, load_manifest
from lhotse.cut import Cut, MixedCut
from lhotse.serialization import deserialize_item
from tqdm import tqdm

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike, is_finite, json_of, replacing, url_of
from tokenverse_pp.base.languages import language_group
from tokenverse_pp.base.storage import local_path
from tokenverse_pp.data.lines import BOM, CONTROL, raw_lines, text_lines, text_of

LINES = (".jsonl", ".jsonl.gz")
FORMATS = (*LINES, ".json", ".json.gz", ".yaml", ".yaml.gz")
# Custom field of a cut: what its recording was, if its channels were separated.
ORIGINAL_RECORDING = "original_recording"
OF_CUT = ("tasks", "label_source")  # custom fields that label a whole cut
UNKNOWN = "unknown"  # the language of turns that name none
COMPRESSION = 6  # gzip's default; lhotse's 9 takes four times as long and saves a tenth

_encode = json.JSONEncoder(ensure_ascii=False).encode
_encode_ascii = json.JSONEncoder().encode


def read_cuts(path: PathLike) -> Iterator[Cut]:
    """The cuts of a lhotse manifest, one at a time if the format allows it (JSON lines).

    Raises:
        UserError: if the file is missing or is no manifest of cuts, naming the line.
    """
    name, file = _manifest(path)
    if name.endswith(LINES):
        lines = ((number, line) for number, line in text_lines(file) if line.strip())
        return (cut_of_line(line, f"{name}, line {number}") for number, line in lines)
    return iter(load_kind(file, CutSet, name, "cuts"))


def _manifest(path: PathLike) -> Tuple[str, Path]:
    """The name of an existing manifest of a known format, for messages, and its file (raises UserError)."""
    name = url_of(path) or str(path)
    if not name.endswith(FORMATS):
        is_shar = url_of(path) is None and any(Path(path).glob("cuts.*.jsonl*"))
        way = f"; of a Shar folder, name its files: {name}/cuts.*" if is_shar else ""
        raise UserError(f"{name}: expected a cut manifest ({', '.join(FORMATS)}){way}")
    file = local_path(path)
    if not file.is_file():
        raise UserError(f"{name}: no such file; expected a cut manifest")
    return name, file


def cut_of_line(line: str, where: str) -> Cut:
    """The cut of a line of a manifest (raises UserError)."""
    data = json_of(line, where)
    try:
        cut = deserialize_item(data)
        if isinstance(cut, MixedCut):
            _ = cut.duration, cut.supervisions, cut.custom  # computed from its tracks, which may be invalid
    except Exception as error:  # lhotse defines no exceptions for invalid manifests
        raise UserError(f"{where}: not a lhotse cut: {type(error).__name__}: {reason_of(error)}") from error
    if not isinstance(cut, Cut):
        raise UserError(f"{where}: expected a cut, found a {type(cut).__name__}")
    return cut


def cut_of(data: Dict[str, Any], where: str) -> Any:
    """Return the lhotse cut of a row's data, which is not changed (raises UserError if lhotse cannot read it)."""
    return cut_of_line(_encode_ascii(data), where)


def load_whole(name: str) -> Any:
    """`lhotse.load_manifest` for files that may begin with a byte order mark."""
    with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
        if file.read(len(BOM)) != BOM:
            return load_manifest(name)
        with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
            path = Path(folder) / Path(name).name
            with gzip.open(path, "wb") if name.endswith(".gz") else open(path, "wb") as copy:
                shutil.copyfileobj(file, copy)
            return load_manifest(path)


def load_kind(file: PathLike, kind: Any, name: str, expected: str) -> Any:
    """`load_whole` of a manifest of class ``kind`` (raises UserError with ``name`` and what was ``expected``)."""
    try:
        manifest = load_whole(str(file))
    except Exception as error:
        raise UserError(f"{name}: not a lhotse manifest: {reason_of(error)}") from error
    if not isinstance(manifest, kind):
        raise UserError(f"{name}: expected {expected}, found a {type(manifest).__name__}")
    return manifest


def reason_of(error: Exception) -> str:
    """The first line of a library's error, shortened."""
    return shortened((str(error).strip().splitlines() or [type(error).__name__])[0])


def shortened(text: str, limit: int = 600) -> str:
    """Prepare a value from the data for a message: escape control characters, omit the middle if it is long."""
    text = CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
    return text if len(text) <= limit else f"{text[: limit // 2]} .. {text[-limit // 3 :]}"


def write_cuts(cuts: CutSet, path: Path) -> None:
    """Write a CutSet under a temporary name, then rename it. The same cuts give the same bytes.

    Raises:
        UserError: if the path cannot be written, or is not named ``.jsonl`` or ``.jsonl.gz``.
    """
    check_output(path)
    try:
        with replacing(path) as temporary, _open_to_write(temporary) as file:
            file.writelines(row_bytes(cut.to_dict()) for cut in cuts)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


@dataclass
class ManifestRow:
    """One cut of a manifest: its place (for messages), its bytes and their parsed content.

    ``problem`` says why there is no ``data``; `read_rows` raises instead.
    """

    where: str
    line: bytes
    data: Dict[str, Any]
    problem: str = ""

    @property
    def id(self) -> str:
        """The cut's id."""
        return self.data["id"]


def read_rows(path: PathLike, bar: Any = None, part: Tuple[int, int] = (0, 1)) -> Iterator[ManifestRow]:
    """The cuts of a manifest, one at a time.

    Args:
        bar: a progress bar of the bytes read (see `reading_bar`).
        part: (r, n): every n-th line from line r + 1 on; the others are not parsed.

    Raises:
        UserError: if the file is missing, or a line is no cut with an id, naming the line.
    """
    for row in scan_rows(path, bar, part):
        if row.problem:
            raise UserError(f"{row.where}: {row.problem}")
        yield row


def scan_rows(path: PathLike, bar: Any = None, part: Tuple[int, int] = (0, 1)) -> Iterator[ManifestRow]:
    """`read_rows`, but yield lines that are not cuts too, each with its problem, instead of raising UserError."""
    name, file = _manifest(path)
    if name.endswith(LINES):
        for number, line in raw_lines(file, None if bar is None else bar.update):
            if (number - 1) % part[1] == part[0] and line and not line.isspace():
                yield _row_of(line, f"{name}, line {number}")
        return
    for number, cut in enumerate(read_cuts(path), start=1):
        if (number - 1) % part[1] != part[0]:
            continue
        data, where = cut.to_dict(), f"{name}, cut number {number}"
        try:
            yield ManifestRow(where, row_bytes(data), data)
        except TypeError as error:  # bytes and dates, which YAML has
            yield ManifestRow(where, b"", {}, f"holds what JSON cannot: {error}")


def _row_of(line: bytes, where: str) -> ManifestRow:
    try:
        data = json_of(text_of(line, where), where)
    except UserError as error:
        return ManifestRow(where, line, {}, str(error)[len(where) + 2 :])
    if not isinstance(data, dict) or not isinstance(data.get("type"), str) or not data["type"].endswith("Cut"):
        return ManifestRow(
            where, line, {}, "not a lhotse cut: expected a cut, a JSON object with a 'type' such as MonoCut"
        )
    if not isinstance(data.get("id"), str) or not data["id"] or CONTROL.search(data["id"]):
        return ManifestRow(where, line, {}, shortened(f"field 'id': expected a name, found {data.get('id')!r}"))
    return ManifestRow(where, line, data)


def row_bytes(data: Dict[str, Any]) -> bytes:
    """A cut as one line of JSON."""
    try:
        return _encode(data).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can represent and UTF-8 cannot
        return _encode_ascii(data).encode("ascii") + b"\n"


@dataclass
class RowWriter:
    """Writes rows to an open file and counts them."""

    file: IO[bytes]
    count: int = 0

    def write(self, row: Union[ManifestRow, Dict[str, Any]]) -> None:
        """Write a row unchanged, or changed data."""
        line = row.line if isinstance(row, ManifestRow) else row_bytes(row)
        self.file.write(line if line.endswith(b"\n") else line + b"\n")
        self.count += 1

    def write_lines(self, lines: Sequence[bytes]) -> None:
        """Write rows given as lines without newlines."""
        self.file.writelines(line + b"\n" for line in lines)
        self.count += len(lines)


@contextlib.contextmanager
def writing_rows(path: PathLike) -> Iterator[RowWriter]:
    """Open a writer of a manifest, which is renamed into place only if the block ends without an error.

    Raises:
        UserError: if the path cannot be written, or is not named ``.jsonl`` or ``.jsonl.gz``.
    """
    check_output(path)
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(replacing(path))
            file = stack.enter_context(_open_to_write(temporary))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        yield RowWriter(file)


def check_output(path: PathLike) -> None:
    """Check that a path can name a manifest of rows (raises UserError)."""
    if not str(path).endswith(LINES):
        raise UserError(f"{path}: a CutSet file is named .jsonl or .jsonl.gz")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; expected a file to write")


@contextlib.contextmanager
def _open_to_write(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "wb", buffering=1 << 20) as raw:
        if not path.name.endswith(".gz"):
            yield raw
            return
        # Without name and time in the gzip header, the same cuts give the same bytes.
        with gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as file:
            yield file  # type: ignore[misc]


def custom_of(data: Dict[str, Any]) -> Dict[str, Any]:
    """Return a row's custom fields, created if missing; for a mixed cut its first real track's.

    lhotse reads the custom fields of all tracks of a mixed cut, and those of later tracks replace those of earlier
    ones. So the fields `OF_CUT` are moved to the first track: otherwise a change of them there would have no effect.

    Raises:
        UserError: if they are not a mapping, if all tracks are padding, or if tracks differ in a field of `OF_CUT`.
    """
    cuts = _cuts_in(data)
    where = f"cut {data['id']}: field 'custom"
    if not cuts:
        raise UserError(f"cut {data['id']}: field 'tracks': expected a track that is not padding")
    custom = _custom(cuts[0], f"{where}'")
    for fields in (cut["custom"] for cut in cuts[1:] if isinstance(cut.get("custom"), dict)):
        for key in OF_CUT:
            if key in fields and custom.setdefault(key, fields[key]) != fields[key]:
                both = f"{custom[key]!r:.60} and {fields[key]!r:.60}"
                raise UserError(f"{where}.{key}': the tracks of this mixed cut differ, expected the same: {both}")
            fields.pop(key, None)
    return custom


def _custom(holder: Dict[str, Any], where: str) -> Dict[str, Any]:
    custom: Any = holder.get("custom")
    if custom is None:
        custom = holder["custom"] = {}
    if not isinstance(custom, dict):
        raise UserError(f"{where}: expected a mapping, found {custom!r}")
    return custom


def _cuts_in(data: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The row itself, or the cuts in the tracks of a mixed cut, without padding."""
    if "tracks" not in data:
        return [data]
    tracks = [track for track in data["tracks"] if isinstance(track, dict)] if isinstance(data["tracks"], list) else []
    cuts = [track.get("cut") for track in tracks if track.get("type") != "PaddingCut"]
    return [cut for cut in cuts if isinstance(cut, dict)]


def supervisions_of(data: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """The supervisions of a row's cut, as dictionaries that may be changed (raises UserError if they are none)."""
    for holder in _cuts_in(data):
        supervisions = holder.get("supervisions") or []
        if not isinstance(supervisions, list) or not all(isinstance(s, dict) for s in supervisions):
            raise UserError(f"cut {data['id']}: field 'supervisions': expected a list of turns")
        yield from supervisions


def supervision_custom(supervision: Dict[str, Any], cut_id: str) -> Dict[str, Any]:
    """The custom fields of a supervision, created if there are none (raises UserError if they are no mapping)."""
    return _custom(supervision, f"cut {cut_id}: field 'custom' of a supervision")


def recordings_of(data: Dict[str, Any]) -> Iterator[str]:
    """The ids of the recordings of a row's cut; channels of one recording that are separate files have the same."""
    for holder in _cuts_in(data):
        recording, custom = holder.get("recording"), holder.get("custom")
        original = custom.get(ORIGINAL_RECORDING) if isinstance(custom, dict) else None
        if isinstance(original, str):
            yield original
        elif isinstance(recording, dict):
            yield str(recording.get("id"))
        else:
            yield from {str(sup["recording_id"]) for sup in supervisions_of(holder) if sup.get("recording_id")}


def duration_of(row: ManifestRow) -> float:
    """The duration in seconds; lhotse computes that of a mixed cut (raises UserError if there is none)."""
    seconds: Any = row.data.get("duration") if "tracks" not in row.data else cut_of(row.data, row.where).duration
    if not is_finite(seconds) or seconds <= 0:
        raise UserError(f"{row.where}: cut {row.id}: field 'duration': expected seconds > 0, found {seconds!r:.60}")
    return float(seconds)


def tasks_of(row: ManifestRow) -> List[str]:
    """The tasks that a row is labelled for (raises UserError if they are no list of names)."""
    tasks = custom_of(row.data).get("tasks", ["asr"])
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise UserError(f"{row.where}: cut {row.id}: field 'custom.tasks': expected a list, found {tasks!r}")
    return tasks


def language_of(row: ManifestRow) -> str:
    """The language of a row's turns; several joined by ``+``, as `stats` does."""
    return languages_joined(sup.get("language") for sup in supervisions_of(row.data))


def languages_joined(codes: Iterable[Any]) -> str:
    """The languages of a cut's turns, regardless of region and spelling: ``fr``, ``cs+nl``, ``unknown``."""
    return "+".join(sorted({language_group(str(code or "")) or UNKNOWN for code in codes}))


def reading_bar(paths: Sequence[PathLike], what: str, passes: int = 1) -> Any:
    """A progress bar for reading ``paths`` ``passes`` times; it is shown only if stderr is a terminal."""
    files = [local_path(path) for path in paths]
    total = passes * sum(file.stat().st_size for file in files if file.is_file())
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False)
