"""Import tables: CSV, TSV and JSON Lines with one row per line, and Hugging Face `datasets`.

`datasets` are folders written by `save_to_disk`, folders of parquet files that `load_dataset` reads, or names on the
hub.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import io
import re
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Deque, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import numpy as np
import soundfile

from tokenverse_pp.base.errors import UserError, needing
from tokenverse_pp.base.files import json_of, replacing, yaml_of
from tokenverse_pp.data.audio.source import container_of
from tokenverse_pp.data.importing.audio import AudioOut
from tokenverse_pp.data.importing.fields import FieldMap
from tokenverse_pp.data.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected, safe_id, shown, unpacked
from tokenverse_pp.data.lines import MAX_LINE, number_of, raw_lines, text_of
from tokenverse_pp.data.manifests import reason_of

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")  # NeMo's manifests end in .json
_ENDING = re.compile(r"\.[A-Za-z0-9]{2,5}$")  # file extension
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MOST_LINES = 1000  # maximum lines of one CSV row, whose quoted cells may contain line ends


@dataclass(frozen=True)
class _Record:
    """A row of a CSV or TSV file: the line on which it begins, its cells as far as known, and its problem if any."""

    line: int
    cells: List[str]
    problem: Optional[str] = None


def read_table(path: Path, fields: FieldMap, delimiter: Optional[str] = None) -> Iterator[RowOrRejected]:
    """Return an iterator over the rows of a table; ``.gz`` is unpacked.

    CSV has quoting, and line ends within quotes; TSV has no quoting (as in Common Voice). A row that cannot be read
    (broken quoting, a carriage return within a line, too many cells) is rejected and affects no other row.

    Args:
        delimiter: cell delimiter, ``\\t`` for a tab; default: by the file extension.

    Raises:
        UserError: if the file as a whole cannot be read (invalid header, missing columns).
    """
    name = unpacked(path)
    ending = name.suffix.lower()
    if ending in JSON_LINES:
        return _json_rows(path, fields, name.stem)
    if delimiter is None and ending not in DELIMITERS:
        known = ", ".join([*DELIMITERS, *JSON_LINES])
        raise UserError(f"{path}: expected a table ({known}, also with .gz), or --delimiter")
    delimiter = DELIMITERS[ending] if delimiter is None else "\t" if delimiter == "\\t" else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise UserError(f"--delimiter {delimiter!r}: expected one character that is no quote, such as ';'")
    return _delimited_rows(path, fields, name.stem, delimiter)


def _json_rows(path: Path, fields: FieldMap, stem: str) -> Iterator[RowOrRejected]:
    seen: Set[str] = set()
    number = 0
    for number, line in raw_lines(path):
        if not line.strip():
            continue
        place = Place(str(path), number)
        try:
            data = json_of(text_of(line, str(place)), str(place))
        except UserError as error:
            yield Rejected(place, str(error).replace(f"{place}: ", "", 1))
            continue
        if not isinstance(data, dict):
            yield Rejected(place, f"expected a JSON object, found {shown(data)}")
            continue
        seen.update(data)
        yield fields.row(place, f"{stem}-{number}", data)
    if number:
        fields.check(sorted(seen), str(path))


def _delimited_rows(path: Path, fields: FieldMap, stem: str, delimiter: str) -> Iterator[RowOrRejected]:
    records = _Records(path, delimiter)
    header: Optional[List[str]] = None
    for record in records:
        place, number = Place(str(path), record.line), len(record.cells)
        if header is None:
            if record.problem is not None:
                raise UserError(f"{place}: expected a header line with the names of the columns: {record.problem}")
            header = records.columns = record.cells
            # Spreadsheets write several columns without a name.
            twice = next((name for name in header if name and header.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{place}: column {twice!r} is there twice")
            fields.check(header, str(path))
            continue
        cells = dict(zip(header, record.cells))
        problem = record.problem
        if problem is None and number != len(header):
            problem = f"expected {len(header)} cells, found {number}"
        if problem is None:
            yield fields.row(place, f"{stem}-{place.line}", cells)
        else:
            yield Rejected(place, problem, fields.recording(place, cells) if number == len(header) else None)
    if header is None:
        raise UserError(f"{path}: empty; expected a header line with the names of the columns")


class _Records:
    """The records of a CSV or TSV file.

    If the quotes of a record are broken (not closed, or closed by one that opens another cell), the record is its first
    line alone and the next one begins after it, so that one quote cannot swallow the rest of the file.

    ``columns``: the header, once it is known.
    """

    def __init__(self, path: Path, delimiter: str):
        self.delimiter = delimiter
        self.columns: List[str] = []
        self._file = raw_lines(path)
        self._ahead: Deque[Tuple[int, bytes]] = deque()  # lines that were read but belong to later records

    def __iter__(self) -> Iterator[_Record]:
        for number, line in iter(self._line, None):
            if b'"' in line and self.delimiter != "\t":
                yield self._quoted(number, line)
            elif line.strip(b" "):
                yield _checked(number, line.decode("utf-8", "surrogateescape").split(self.delimiter), quoted=False)

    def _line(self) -> Optional[Tuple[int, bytes]]:
        return self._ahead.popleft() if self._ahead else next(self._file, None)

    def _quoted(self, number: int, line: bytes) -> _Record:
        """Return a record with quotes, which may continue on the next lines."""
        taken = [(number, line)]

        def lines() -> Iterator[str]:
            size = 0
            while len(taken) <= MOST_LINES and size <= MAX_LINE:
                size += len(taken[-1][1])
                yield _text(taken[-1][1])
                following = self._line()
                if following is None:
                    return
                taken.append(following)

        try:
            with _long_cells():
                cells = next(csv.reader(lines(), delimiter=self.delimiter, strict=True))
            problem = self._swallowed(taken, cells)
        except csv.Error as error:
            problem = _reason(str(error), taken[-1][0] if len(taken) > 1 else None)
        if problem is None:
            return _checked(number, cells, quoted=True)
        self._ahead.extendleft(reversed(taken[1:]))
        return _Record(number, [], problem)

    def _swallowed(self, taken: Sequence[Tuple[int, bytes]], cells: List[str]) -> Optional[str]:
        """Return what is wrong with a record of several lines if it seems to contain other records."""
        if len(taken) == 1 or not self.columns:
            return None
        if len(cells) != len(self.columns):
            return f"expected {len(self.columns)} cells, found {len(cells)} in lines up to {taken[-1][0]}"
        # The last line of a good record may look like a row, if the quote is opened in the first column.
        suspects = taken[1:] if len(self._alone(taken[0][1], strict=False)) == len(cells) else taken[1:-1]
        for number, line in suspects:
            inner = self._alone(line, strict=True)
            if len(inner) == len(cells) and _are_alike(inner, cells):
                return f"a quote is not closed before line {number}, which is a row of its own"
        return None

    def _alone(self, line: bytes, strict: bool) -> List[str]:
        """Return the cells of a line as if no quote were open before it; empty if it cannot be a row."""
        with _long_cells():
            try:
                return next(csv.reader([_text(line)], delimiter=self.delimiter, strict=strict), [])
            except csv.Error:
                return []


def _text(line: bytes) -> str:
    # Invalid UTF-8 is passed through the csv module and reported with its row.
    return line.decode("utf-8", "surrogateescape") + "\n"


def _reason(error: str, end: Optional[int]) -> str:
    """Turn an error of the csv module into a message; ``end``: last line of the record if it has several."""
    if "new-line character" in error:
        return "holds a carriage return (U+000D) outside of quotes; expected lines that end in LF or CRLF"
    if "NUL" in error:  # up to Python 3.10
        return "expected text, found a NUL byte"
    if "unexpected end of data" in error:
        return "a quote is not closed"
    if end is not None:
        return f"a quote is not closed: the next one, in line {end}, opens another"
    return f"broken quoting: {error}"


def _are_alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two rows have file names with the same extension in one column, or numbers in two."""
    numbers = 0
    for a, b in zip(one, other):
        ending, wanted = _ENDING.search(a), _ENDING.search(b)
        if ending is not None and wanted is not None and ending[0] == wanted[0] and number_of(a) is None:
            return True
        numbers += number_of(a) is not None and number_of(b) is not None
    return numbers > 1


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Let the csv module read cells up to the maximum line length; its limit is global to the process."""
    before = csv.field_size_limit(min(MAX_LINE, sys.maxsize))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _checked(number: int, cells: List[str], quoted: bool) -> _Record:
    text = "".join(cells)
    problem = None
    if "\0" in text:
        problem = "expected text, found a NUL byte"
    elif "\r" in text and not quoted:
        problem = "holds a carriage return (U+000D); expected lines that end in LF or CRLF"
    else:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            problem = "not UTF-8"
    return _Record(number, cells, problem)


def read_recordings(
    path: Path, fields: FieldMap, delimiter: Optional[str] = None
) -> Tuple[Dict[str, Union[Row, Rejected]], List[Rejected]]:
    """Read a table with one row per recording into memory, keyed by ``recording`` or by the name of the audio file.

    Returns:
        The recordings (including rejected ones), and the rows that cannot be read, have neither field, or repeat a
        recording.
    """
    found: Dict[str, Union[Row, Rejected]] = {}
    bad: List[Rejected] = []
    for item in read_table(path, fields, delimiter):
        row = item.row if isinstance(item, Rejected) else item
        name = (row.recording or (Path(row.audio).stem if row.audio else None)) if row is not None else None
        if isinstance(item, Row) and (name is None or name in found):
            item = Rejected(item.place, f"field 'recording': expected a name of its own, found {shown(name)}", item)
        if isinstance(item, Rejected):
            bad.append(Rejected(item.place, item.reason, harmless=True))  # turns without it are reported themselves
        if name is not None:
            found[name] = item
    return found, bad


def read_dataset(
    source: Path,
    fields: FieldMap,
    split: Optional[str],
    audio_out: AudioOut,
    config: Optional[str] = None,
    cache: Optional[Path] = None,
    only: bool = False,
) -> Iterator[RowOrRejected]:
    """Yield the rows of a data set. Class labels become names; embedded audio is written unchanged to ``audio_out``.

    Args:
        source: a folder, or a name on the hub.
        split: split to read; required if there are several.
        cache: folder for the library's copy of a data folder; None: a temporary one.
        only: download no other split of a data set on the hub.

    Raises:
        UserError: if `datasets` is not installed or cannot read the data set, or the split or a column is missing.
    """
    with loaded(source, config, cache, [split] if only and split is not None else []) as splits:
        if split is None and len(splits) == 1:
            split = next(iter(splits))
        if split not in splits:
            raise UserError(f"{source}: --hf-split: expected one of {', '.join(splits)}, found {split}")
        yield from _rows(splits[split], source, fields, audio_out)


@contextlib.contextmanager
def loaded(
    source: Path, config: Optional[str] = None, cache: Optional[Path] = None, only: Sequence[str] = ()
) -> Iterator[Dict[str, Any]]:
    """Give the splits of a data set by name, without decoding audio; see `read_dataset`.

    Args:
        only: the splits to download if the data set is on the hub; empty: all.
    """
    with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
        splits = _load(source, config, str(cache or folder), only)
        yield {name: _undecoded(data) for name, data in splits.items()}


def is_hub_name(source: Path) -> bool:
    """Whether a path that does not exist may be the name of a data set on the hub, ``owner/name``."""
    return bool(_HUB_NAME.fullmatch(str(source))) and not source.exists()


def _rows(data: Any, folder: Path, fields: FieldMap, audio_out: AudioOut) -> Iterator[RowOrRejected]:
    features = dict(data.features or {})
    fields.check(list(features), str(folder))
    columns = fields.over(features)
    names = {column: features[column] for column in columns.values() if column in features}
    downloaded = is_hub_name(folder)
    for number, cells in _each(data):
        place = Place(str(folder), number, "row")
        if isinstance(cells, str):
            yield Rejected(place, cells)
            continue
        try:
            values = {column: _plain(cells[column], feature) for column, feature in names.items()}
            if isinstance(values.get(columns.get("audio", "")), dict):
                values[columns["audio"]] = _audio(values[columns["audio"]], audio_out, number, downloaded)
        except BadRow as error:
            yield Rejected(place, str(error))
            continue
        yield fields.row(place, f"{safe_id(folder.name)}-{number}", values)


def _each(data: Any) -> Iterator[Tuple[int, Union[Dict[str, Any], str]]]:
    """Yield number and cells of each row, or the reason if it cannot be read (e.g. text that is not UTF-8)."""
    number = 0
    try:
        for cells in data:
            yield number, cells
            number += 1
    except Exception:  # column types raise errors of any type; the iterator then ends
        pass
    for later in range(number, len(data)):
        try:
            yield later, data[later]
        except Exception as error:
            yield later, f"cannot be read: {reason_of(error)}"


def _load(source: Path, config: Optional[str], cache: str, only: Sequence[str]) -> Dict[str, Any]:
    with needing("--hf: needs the package datasets", "datasets"):
        import datasets
    options: Dict[str, Any] = {"cache_dir": cache}
    if is_hub_name(source):
        # What was downloaded stays in the library's own cache. Versions before 4 can run code of the data set.
        options = {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}
    elif not source.is_dir():
        raise UserError(f"{source}: expected a folder of Hugging Face datasets, or a name on the hub (owner/name)")
    else:
        _check_folder(source)
    saved = any((source / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            data = datasets.load_from_disk(str(source))
        elif only and is_hub_name(source):
            return _load_only(source, config, only, options)
        else:
            data = datasets.load_dataset(str(source), config, **options)
    except UserError:
        raise
    except Exception as error:  # the library's exceptions have no common type
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [repr(cause)])[0]
        hint = "; an audiofolder's metadata.csv is a table: --table" if (source / "metadata.csv").is_file() else ""
        hint = "; it is no folder here, and was looked for on the hub" if is_hub_name(source) else hint
        raise UserError(f"{source}: datasets cannot read it: {reason}{hint}") from None
    return dict(data) if hasattr(data, "keys") else {str(data.split or "train"): data}


def _load_only(source: Path, config: Optional[str], only: Sequence[str], options: Dict[str, Any]) -> Dict[str, Any]:
    """Load splits from the hub by their files, as ``load_dataset(split=..)`` downloads the files of all splits."""
    import datasets

    files = datasets.load_dataset_builder(str(source), config, **options).config.data_files
    if not files:  # no connection: use what an earlier run downloaded
        return dict(datasets.load_dataset(str(source), config, **options))
    unknown = [name for name in only if name not in files]
    if unknown:
        raise UserError(f"{source}: --split {unknown[0]}: expected one of {', '.join(map(str, files))}")
    # Some versions require all splits of the card.
    options = {**options, "verification_mode": "no_checks"}
    return {
        name: datasets.load_dataset(str(source), config, data_files={name: list(files[name])}, split=name, **options)
        for name in only
    }


def _undecoded(data: Any) -> Any:
    """Return a split with audio, images and videos left as files or bytes."""
    import datasets

    for name, feature in dict(data.features or {}).items():
        if isinstance(feature, datasets.Audio):
            data = data.cast_column(name, datasets.Audio(decode=False))
        elif getattr(feature, "decode", False):  # images, videos, ..: not needed
            undecoded = copy.copy(feature)
            undecoded.decode = False
            data = data.cast_column(name, undecoded)
    return data


def _check_folder(folder: Path) -> None:
    """Check that `datasets` neither runs code from the folder nor downloads anything (raises UserError).

    Versions before 4 run a script with the folder's name, and all versions read URLs of data files from its README.md.
    """
    for name in (folder.name, folder.resolve().name):
        script = folder / f"{name}.py"
        if script.is_file():
            raise UserError(f"{script}: a loading script, which is not run; export the data as parquet")
    if "://" in str(_card(folder).get("configs")):
        raise UserError(f"{folder / 'README.md'}: 'configs' names data files on other machines, which are not fetched")


def _card(folder: Path) -> Dict[str, Any]:
    """The metadata at the head of a folder's README.md."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\r?\n(.*?\n)---", text, re.DOTALL)
    try:
        about = yaml_of(head[1]) if head else None
    except UserError as error:
        raise UserError(f"{card}: {error}") from None
    return about if isinstance(about, dict) else {}


def licence_of(source: Path) -> str:
    """Return the licence that the card of a data set names, in a folder or on the hub."""
    licence: Any = None
    if source.is_dir():
        licence = _card(source).get("license")
    elif is_hub_name(source):
        try:
            from huggingface_hub import dataset_info

            licence = getattr(dataset_info(str(source)).card_data, "license", None)
        except Exception:  # no connection, or another version: the user is referred to the card
            pass
    names = ", ".join(map(str, licence)) if isinstance(licence, list) else licence
    return str(names) if names else "none is named; see the data set's card"


def _plain(value: Any, feature: Any) -> Any:
    """Replace the numbers of class labels by their names, also within lists."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    if isinstance(value, list) and inner is not None:
        return [_plain(item, inner) for item in value]
    if hasattr(feature, "int2str") and isinstance(value, int):
        return feature.int2str(value) if value >= 0 else None
    return value


def _audio(value: Dict[str, Any], audio_out: AudioOut, number: int, downloaded: bool = False) -> str:
    """Return the audio path given in the data, or write the audio bytes in the data to a file and return its path.

    In a folder that is kept between runs, files are named by their content, so a later run reuses only equal files.

    Args:
        downloaded: paths in the data are in the library's cache; such files are copied.
    """
    data, path = value.get("bytes"), value.get("path")
    if data is None and path and downloaded:
        data = _downloaded(Path(path))
    if data is None and value.get("array") is not None:
        data = _wave(value)
    if data is None:
        if not path:
            raise BadRow("field 'audio': neither a path nor audio")
        return str(path)
    ending = Path(str(path or "")).suffix.lower()
    if not re.fullmatch(r"\.[a-z0-9]{1,5}", ending):
        ending = _ending_of(data)
    name = hashlib.sha256(data).hexdigest()[:32] if audio_out.kept else f"{number:08d}"
    target = audio_out.folder() / f"{name}{ending}"
    if not (audio_out.kept and target.is_file()):
        with replacing(target) as temporary:
            temporary.write_bytes(data)
    return str(target)


def _downloaded(path: Path) -> bytes:
    """Read a file from the library's caches; downloaded data must not name other files of this machine (BadRow)."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    real, config = path.resolve(), datasets.config
    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE)
    if not any(Path(folder).resolve() in real.parents for folder in caches):
        raise BadRow(f"field 'audio': {shown(str(path))} is not among the downloaded files")
    try:
        return real.read_bytes()
    except OSError as error:
        raise BadRow(f"field 'audio': {reason_of(error)}") from None


def _wave(value: Dict[str, Any]) -> bytes:
    """Return a WAV file of the samples ``array``, (S,) or (C, S), of a row, with ``sampling_rate`` in Hz."""
    file = io.BytesIO()
    try:
        samples = np.asarray(value["array"], dtype=np.float32)
        soundfile.write(file, samples.T, int(value["sampling_rate"]), format="WAV", subtype="FLOAT")
    except (KeyError, TypeError, ValueError, soundfile.SoundFileError) as error:
        raise BadRow(f"field 'audio': expected 'array' and 'sampling_rate': {reason_of(error)}") from None
    return file.getvalue()


def _ending_of(data: bytes) -> str:
    container = container_of(data[:8192])
    return {"matroska": ".mka", "sphere": ".sph", "adts": ".aac", "unknown": ".mp3"}.get(container, f".{container}")
