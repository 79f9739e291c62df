"""A data set of the Hugging Face library, on disk or by its name on the hub, each split as a file of cuts.

Rows become cuts as `manifest import --hf` makes them (`tokenverse_pp.data.importing`). A row that cannot be mapped is
left out and listed, as in all corpora, and audio is kept from run to run.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence

from lhotse.cut import MonoCut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.corpora.common import LeftOut, Say, check_written, write_files
from tokenverse_pp.data.corpora.resume import contents, in_groups
from tokenverse_pp.data.importing.audio import AudioOut
from tokenverse_pp.data.importing.fields import FieldMap
from tokenverse_pp.data.importing.rows import Ledger, Rejected
from tokenverse_pp.data.importing.run import import_cuts
from tokenverse_pp.data.importing.sources import ImportOptions
from tokenverse_pp.data.importing.tables import licence_of, loaded

DEV_NAMES = ("validation", "valid", "dev")


class _Listed(Ledger):
    """A ledger that notes each rejected row among what is left out."""

    def __init__(self, left_out: LeftOut):
        super().__init__()
        self.left_out = left_out

    def reject(self, item: Rejected) -> None:
        """Add a rejected row."""
        super().reject(item)
        self.left_out.note(str(item.place), 0.0, item.reason)


def prepare_huggingface(
    dataset: Path,
    output_dir: Path,
    config: Optional[str] = None,
    splits: Sequence[str] = (),
    columns: Mapping[str, str] = {},
    constants: Mapping[str, Any] = {},
    normaliser: str = "words",
    written: bool = False,
    widen: bool = False,
    jobs: int = 1,
    force: bool = False,
    say: Say = print,
) -> Dict[str, Path]:
    """``cuts_<part>.jsonl.gz`` of each split; the part of ``validation`` is ``dev``.

    Args:
        dataset: a folder (`save_to_disk`, audiofolder, parquet), or a name on the hub.
        config: the configuration, where there are several.
        splits: of a data set on the hub no others are downloaded; none: all.
        columns: field -> column, as for `FieldMap`.
        constants: fields of all rows, as `constants_of` gives them.
        written: label punct too, by the texts as they are.
        widen: extend entities that are a part of a word to all of it.
        force: see `in_groups`; a split is a group.

    Raises:
        UserError: where the data set cannot be read, or has no such split or column.
    """
    check_written(written, normaliser)
    with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as cache:
        options = ImportOptions(
            hf=dataset,
            hf_config=config,
            hf_cache=Path(cache),
            hf_only=bool(splits),
            fields=FieldMap(columns, needs_text=True),
            constants=constants,
            normaliser=normaliser,
            written=written,
            widen=widen,
            jobs=jobs,
        )
        with loaded(dataset, config, Path(cache), splits) as found:
            sizes = {name: len(data) for name, data in found.items()}
        unknown = [name for name in splits if name not in sizes]
        if unknown:
            raise UserError(f"{dataset}: --split {unknown[0]}: expected one of {', '.join(sizes)}")
        name = str(dataset.absolute() if dataset.is_dir() else dataset)
        given = {"dataset": name, "config": config, "columns": columns, "constants": constants,
                 "normaliser": normaliser, "written": written, "widen": widen}  # fmt: skip
        read = contents([dataset] if dataset.is_dir() else [], output_dir)
        groups = {split: {"rows": sizes[split], "read": read} for split in splits or sizes}
        write = partial(_write_split, options=options, output_dir=output_dir, say=say)
        return in_groups("huggingface", output_dir, given, groups, write, force, say, licence_of(dataset))


def _write_split(split: str, options: ImportOptions, output_dir: Path, say: Say) -> Dict[str, Path]:
    part, left_out = part_name(split), LeftOut()

    def cuts() -> Iterator[MonoCut]:
        audio_out = AudioOut(output_dir / "audio" / part, kept=True)
        for cut, _ in import_cuts(replace(options, hf_split=split), _Listed(left_out), audio_out):
            cut.custom = {**cut.custom, "corpus": options.source.name}
            yield cut

    return write_files({part: (cuts(), left_out)}, output_dir, say)


def part_name(split: str) -> str:
    """The part of a split: ``dev`` for what the library calls validation.

    >>> part_name("validation"), part_name("train.clean.100")
    ('dev', 'train_clean_100')
    """
    return "dev" if split in DEV_NAMES else re.sub(r"\W+", "_", split)
