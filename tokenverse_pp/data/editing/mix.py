"""Mix corpora: sampling weights, the resulting shares, and one interleaved manifest; shuffle a manifest.

Weights are relative numbers of *cuts* drawn from each manifest, as in ``data.weights`` of the training configuration
and lhotse's ``CutSet.mux``. Shares are relative hours of speech, so a corpus of long cuts has a smaller weight than
share.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

import yaml
from lhotse.lazy import LazyIteratorMultiplexer

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike, aligned, cache_folder, url_of
from tokenverse_pp.base.storage import local_path
from tokenverse_pp.data.editing.stats import SECONDS_PER_HOUR, corpus_names
from tokenverse_pp.data.lines import NameSet
from tokenverse_pp.data.manifests import (
    ManifestRow,
    check_output,
    duration_of,
    language_of,
    read_rows,
    row_bytes,
    supervisions_of,
    tasks_of,
    writing_rows,
)
from tokenverse_pp.tasks.registry import REGISTRY

PART_BYTES = 4 << 20  # bytes of the manifest file per part of a shuffle; unpacked from gzip, about ten times as many
MOST_PARTS = 512  # files that are open at once


@dataclass(frozen=True)
class MixCounts:
    """Counts of a manifest for mixing: cuts, hours, hours by language, and hours labelled for each task."""

    cuts: int
    hours: float
    languages: Mapping[str, float]
    labelled: Mapping[str, float]


def count_each(paths: Sequence[PathLike], bar: Any = None) -> List[MixCounts]:
    """Cuts and hours of each manifest (raises UserError for one without cuts, and a cut without duration or tasks)."""
    counts = []
    for path in paths:
        hours: Dict[str, float] = {}
        labelled = dict.fromkeys(REGISTRY, 0.0)
        cuts = 0
        for row in read_rows(path, bar):
            cuts += 1
            part = duration_of(row) / SECONDS_PER_HOUR
            language = language_of(row)
            hours[language] = hours.get(language, 0.0) + part
            for task in tasks_of(row):
                if task in labelled:
                    labelled[task] += part
        if not cuts:
            raise UserError(f"{path}: expected cuts, found none")
        counts.append(MixCounts(cuts, sum(hours.values()), hours, labelled))
    return counts


def shares_by_hours(counts: Sequence[MixCounts], temperature: float) -> List[float]:
    """p_i ~ hours_i^T: with T = 1 every hour is drawn equally often, with T = 0 every corpus."""
    return _normalised([each.hours**temperature for each in counts])


def shares_by_language(counts: Sequence[MixCounts], temperature: float) -> List[float]:
    """p_l ~ hours_l^T over the languages of all corpora, divided among corpora by their hours of language l.

    This is exact if every corpus has one language; the mix within a corpus of several languages cannot change.
    """
    languages = sorted({language for each in counts for language in each.languages})
    hours = {language: sum(each.languages.get(language, 0.0) for each in counts) for language in languages}
    wanted = dict(zip(languages, _normalised([hours[language] ** temperature for language in languages])))
    return [sum(wanted[lang] * each.languages.get(lang, 0.0) / hours[lang] for lang in languages) for each in counts]


def weights_for(shares: Sequence[float], counts: Sequence[MixCounts]) -> List[float]:
    """Weights (of cuts) that give the shares (of hours): share / mean duration, adding up to 1."""
    return _normalised([share * c.cuts / c.hours for share, c in zip(shares, counts)])


def shares_of(weights: Sequence[float], counts: Sequence[MixCounts]) -> List[float]:
    """The inverse of `weights_for`."""
    return _normalised([weight * c.hours / c.cuts for weight, c in zip(weights, counts)])


def mix_table(names: Sequence[str], weights: Sequence[float], counts: Sequence[MixCounts]) -> str:
    """The expected mix as a table: each corpus's weight, its share of the hours drawn and of each task's labels.

    The last line shows the share of all hours drawn that is labelled for each task.
    """
    shares = shares_of(weights, counts)
    rows = [["corpus", "cuts", "hours", "weight", "of hours", *(f"of {task}" for task in REGISTRY)]]
    given = {task: [s * c.labelled[task] / c.hours for s, c in zip(shares, counts)] for task in REGISTRY}
    for i, (name, each) in enumerate(zip(names, counts)):
        row = [name, str(each.cuts), f"{each.hours:.2f}", f"{weights[i]:.4g}", _percent(shares[i])]
        rows.append(row + [_percent(part[i] / sum(part)) if part[i] else "-" for part in given.values()])
    rows.append(["labelled", "", "", "", "", *(_percent(sum(part)) for part in given.values())])
    return aligned(rows)


def languages_table(weights: Sequence[float], counts: Sequence[MixCounts]) -> str:
    """The share of each language in the hours drawn."""
    shares = shares_of(weights, counts)
    languages = sorted({language for each in counts for language in each.languages})
    rows = [["language", "of hours"]]
    for language in languages:
        part = sum(s * each.languages.get(language, 0.0) / each.hours for s, each in zip(shares, counts))
        rows.append([language, _percent(part)])
    return aligned(rows)


def training_yaml(paths: Sequence[PathLike], weights: Sequence[float]) -> str:
    """An additional ``--config`` for recipes/train.py: the manifests and their weights."""
    data = {"data": {"train": [str(path) for path in paths], "weights": [float(f"{w:.6g}") for w in weights]}}
    head = "# Written by `tokenverse-pp manifest mix`: a further --config for recipes/train.py. Weights: cuts drawn.\n"
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def mixed_rows(
    paths: Sequence[PathLike], weights: Sequence[float], seed: int, prefix: bool = False, bar: Any = None
) -> Iterator[ManifestRow]:
    """All rows of the manifests, each once, interleaved at random by weight (lhotse's ``CutSet.mux``).

    Args:
        prefix: put the manifest's name and a dash before the ids of cuts and supervisions.

    Raises:
        UserError: naming a repeated id.
    """
    streams = [_named_rows(path, name if prefix else None, bar) for path, name in zip(paths, corpus_names(paths))]
    mixed: Any = (
        streams[0] if len(streams) == 1 else LazyIteratorMultiplexer(*streams, weights=list(weights), seed=seed)
    )
    seen = NameSet()
    for row in mixed:
        if not seen.add(row.id):
            raise UserError(f"{row.where}: cut {row.id}: another cut has this id already; --prefix keeps ids apart")
        yield row


def shuffle_manifest(path: PathLike, output: PathLike, seed: int = 0, bar: Any = None) -> int:
    """Write the cuts of a manifest in random order; return their number. ``output`` may be ``path``.

    Each row goes to one of several temporary files at random, which are then shuffled in memory one by one: every
    order is equally likely. About 1/512 of a large manifest is in memory; its rows are kept uncompressed on the disk of
    ``output`` until the end. The same file and seed give the same order.

    Raises:
        UserError: if a row is not a cut, or the output cannot be written. Then nothing is written.
    """
    check_output(output)
    file = local_path(path)
    count = max(1, min(MOST_PARTS, os.path.getsize(file) // PART_BYTES)) if file.is_file() else 1
    rng = random.Random(seed)
    folder = Path(output).absolute().parent if url_of(output) is None else cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".shuffle-", dir=folder) as temporary:
        names = [Path(temporary, str(number)) for number in range(count)]
        with contextlib.ExitStack() as stack:
            parts = [stack.enter_context(open(name, "wb")) for name in names]
            for row in read_rows(path, bar):
                parts[rng.randrange(count)].write(row.line.rstrip(b"\n") + b"\n")
        with writing_rows(output) as writer:
            for name in names:
                lines = name.read_bytes().split(b"\n")[:-1]
                name.unlink()
                rng.shuffle(lines)
                writer.write_lines(lines)
    return writer.count


def _named_rows(path: PathLike, prefix: Optional[str], bar: Any) -> Iterator[ManifestRow]:
    """The rows of a manifest, with ``prefix`` and a dash before every id."""
    for row in read_rows(path, bar):
        if prefix is None:
            yield row
            continue
        row.data["id"] = f"{prefix}-{row.id}"
        for supervision in supervisions_of(row.data):
            supervision["id"] = f"{prefix}-{supervision.get('id')}"
        yield ManifestRow(row.where, row_bytes(row.data), row.data)


def _normalised(numbers: Sequence[float]) -> List[float]:
    total = sum(numbers)
    return [number / total for number in numbers]


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
