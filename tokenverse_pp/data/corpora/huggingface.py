"""Prepare a data set of the Hugging Face library, on disk or on the hub; each split becomes a file of cuts.

Rows become cuts as in `manifest import --hf` (`tokenverse_pp.data.importing`). A row that cannot be mapped is left out
and listed, as in all corpora, and audio is kept between runs.
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
from tokenverse_pp.data.corpora.common import LeftOut, Preparation, write_files
from tokenverse_pp.data.corpora.resume import CorpusGroup, in_groups
from tokenverse_pp.data.importing.audio import AudioOut
from tokenverse_pp.data.importing.fields import FieldMap
from tokenverse_pp.data.importing.rows import Ledger, Rejected
from tokenverse_pp.data.importing.run import import_cuts
from tokenverse_pp.data.importing.sources import ImportOptions
from tokenverse_pp.data.importing.tables import licence_of, loaded

DEV_NAMES = ("validation", "valid", "dev")


class _Listed(Ledger):
    """A ledger that also notes each rejected row in `LeftOut`."""

    def __init__(self, left_out: LeftOut):
        super().__init__()
        self.left_out = left_out

    def reject(self, item: Rejected) -> None:
        """Add a rejected row."""
        super().reject(item)
        self.left_out.note(str(item.place), 0.0, item.reason)


def prepare_huggingface(
    run: Preparation,
    config: Optional[str] = None,
    splits: Sequence[str] = (),
    columns: Mapping[str, str] = {},
    constants: Mapping[str, Any] = {},
    widen: bool = False,
) -> Dict[str, Path]:
    """Write ``cuts_<part>.jsonl.gz`` for each split; the part of ``validation`` is ``dev``.

    Args:
        run: its ``corpus_dir`` is a folder (`save_to_disk`, parquet) or a name on the hub.
        config: the configuration, if there are several.
        splits: splits to prepare; from the hub no others are downloaded. Empty: all.
        columns: field -> column, as for `FieldMap`.
        constants: fields of all rows, as returned by `constants_of`.
        widen: extend entities that are part of a word to the whole word.

    Raises:
        UserError: if the data set cannot be read, or has no such split or column.
    """
    dataset = run.corpus_dir
    with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as cache:
        options = ImportOptions(
            hf=dataset,
            hf_config=config,
            hf_cache=Path(cache),
            hf_only=bool(splits),
            fields=FieldMap(columns, needs_text=True),
            constants=constants,
            normaliser=run.normaliser,
            written=run.written,
            widen=widen,
            jobs=run.jobs,
        )
        with loaded(dataset, config, Path(cache), splits) as found:
            sizes = {name: len(data) for name, data in found.items()}
        unknown = [name for name in splits if name not in sizes]
        if unknown:
            raise UserError(f"{dataset}: --split {unknown[0]}: expected one of {', '.join(sizes)}")
        name = str(dataset.absolute() if dataset.is_dir() else dataset)
        # A name on the hub must not become an absolute path.
        given = {"corpus_dir": name, "dataset": name, "config": config, "columns": columns, "constants": constants,
                 "widen": widen}  # fmt: skip
        read = [dataset] if dataset.is_dir() else []
        groups = {split: CorpusGroup([part_name(split)], read, {"rows": sizes[split]}) for split in splits or sizes}
        write = partial(_write_split, run=run, options=options)
        return in_groups(run, "huggingface", groups, write, given, licence_of(dataset))


def _write_split(split: str, run: Preparation, options: ImportOptions) -> Dict[str, Path]:
    part, left_out = part_name(split), LeftOut()
    ledger = _Listed(left_out)

    def cuts() -> Iterator[MonoCut]:
        audio_out = AudioOut(run.output_dir / "audio" / part, kept=True)
        for cut, _ in import_cuts(replace(options, hf_split=split), ledger, audio_out):
            cut.custom = {**cut.custom, "corpus": options.source.name}
            yield cut

    paths = write_files(run, {part: (cuts(), left_out)})
    ledger.tell_again(run.say)
    return paths


def part_name(split: str) -> str:
    """Return the part name of a split: ``dev`` for what the library calls validation.

    >>> part_name("validation"), part_name("train.clean.100")
    ('dev', 'train_clean_100')
    """
    return "dev" if split in DEV_NAMES else re.sub(r"\W+", "_", split)
