"""Hugging Face `datasets` folders: what `save_to_disk` wrote, or folders of parquet that `load_dataset` reads."""

from __future__ import annotations

import copy
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple, Union

from tokenverse_pp.audio.containers import container_of
from tokenverse_pp.errors import UserError
from tokenverse_pp.files import yaml_of
from tokenverse_pp.manifests.importing.audio_out import AudioOut
from tokenverse_pp.manifests.importing.fields import FieldMap
from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, RowOrRejected
from tokenverse_pp.manifests.importing.textfiles import safe_id
from tokenverse_pp.manifests.reading import reason_of


def read_dataset(folder: Path, fields: FieldMap, split: Optional[str], audio_out: AudioOut) -> Iterator[RowOrRejected]:
    """The rows of a data set. Class labels become their names.

    Audio that stands in the data set itself is written, undecoded, to ``audio_out``.

    Args:
        split: which part; needed where there are several.

    Raises:
        UserError: where `datasets` is not installed, cannot read the folder, or has no such split or column.
    """
    with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as cache:
        data = _load(folder, split, cache)
        yield from _rows(data, folder, fields, audio_out)


def _rows(data: Any, folder: Path, fields: FieldMap, audio_out: AudioOut) -> Iterator[RowOrRejected]:
    features = dict(data.features or {})
    fields.check(list(features), str(folder))
    columns = fields.over(features)
    names = {column: features[column] for column in columns.values() if column in features}
    for number, cells in _each(data):
        place = Place(str(folder), number, "row")
        if isinstance(cells, str):
            yield Rejected(place, cells)
            continue
        try:
            values = {column: _plain(cells[column], feature) for column, feature in names.items()}
            if isinstance(values.get(columns.get("audio", "")), dict):
                values[columns["audio"]] = _audio(values[columns["audio"]], audio_out, number)
        except BadRow as error:
            yield Rejected(place, str(error))
            continue
        yield fields.row(place, f"{safe_id(folder.name)}-{number}", values)


def _each(data: Any) -> Iterator[Tuple[int, Union[Dict[str, Any], str]]]:
    """The rows of a data set, or why one cannot be read (a text that is not UTF-8, say)."""
    number = 0
    try:
        for cells in data:
            yield number, cells
            number += 1
    except Exception:  # whatever a column's type throws; the iterator is at its end then
        pass
    for later in range(number, len(data)):
        try:
            yield later, data[later]
        except Exception as error:
            yield later, f"cannot be read: {reason_of(error)}"


def _load(folder: Path, split: Optional[str], cache: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("--hf: needs the package datasets: pip install 'tokenverse_pp[datasets]'") from None
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of Hugging Face datasets")
    _check_folder(folder)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        data = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder), cache_dir=cache)
    except Exception as error:  # the library has no common type for what it throws
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [repr(cause)])[0]
        hint = "; an audiofolder's metadata.csv is a table: --table" if (folder / "metadata.csv").is_file() else ""
        raise UserError(f"{folder}: datasets cannot read it: {reason}{hint}") from None
    if hasattr(data, "keys"):
        if split is None and len(data) == 1:
            split = next(iter(data))
        if split not in data:
            raise UserError(f"{folder}: --hf-split: expected one of {', '.join(data)}, found {split}")
        data = data[split]
    for name, feature in dict(data.features or {}).items():
        if isinstance(feature, datasets.Audio):
            data = data.cast_column(name, datasets.Audio(decode=False))
        elif getattr(feature, "decode", False):  # images, videos, ..: nobody asks for them
            undecoded = copy.copy(feature)
            undecoded.decode = False
            data = data.cast_column(name, undecoded)
    return data


def _check_folder(folder: Path) -> None:
    """See that `datasets` will neither run code of the folder nor fetch what it names (raises UserError).

    Versions before 4 run a script of the folder's name, and all take the addresses of data files from its README.md.
    """
    for name in (folder.name, folder.resolve().name):
        script = folder / f"{name}.py"
        if script.is_file():
            raise UserError(f"{script}: a loading script, which is not run; export the data as parquet")
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\r?\n(.*?\n)---", text, re.DOTALL)
    try:
        about = yaml_of(head[1]) if head else None
    except UserError as error:
        raise UserError(f"{card}: {error}") from None
    configs = about.get("configs") if isinstance(about, dict) else None
    if "://" in str(configs):
        raise UserError(f"{card}: 'configs' names data files on other machines, which are not fetched")


def _plain(value: Any, feature: Any) -> Any:
    """Names in place of the numbers of class labels, also within lists."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    if isinstance(value, list) and inner is not None:
        return [_plain(item, inner) for item in value]
    if hasattr(feature, "int2str") and isinstance(value, int):
        return feature.int2str(value) if value >= 0 else None
    return value


def _audio(value: Dict[str, Any], audio_out: AudioOut, number: int) -> str:
    """A path: that of the data, or of a file with the bytes that the data hold."""
    data, path = value.get("bytes"), value.get("path")
    if data is None:
        if not path:
            raise BadRow("field 'audio': neither a path nor audio")
        return str(path)
    ending = Path(str(path or "")).suffix.lower()
    if not re.fullmatch(r"\.[a-z0-9]{1,5}", ending):
        ending = _ending_of(data)
    target = audio_out.folder() / f"{number:08d}{ending}"
    target.write_bytes(data)
    return str(target)


def _ending_of(data: bytes) -> str:
    container = container_of(data[:8192])
    return {"matroska": ".mka", "sphere": ".sph", "adts": ".aac", "unknown": ".mp3"}.get(container, f".{container}")
