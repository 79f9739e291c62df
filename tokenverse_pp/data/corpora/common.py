"""Shared by all corpora: check transcript tables, run lhotse's recipes, convert audio, write labelled cuts.

Audio that is not 16 kHz with one channel is written once as 16 kHz FLAC. Rows of a table that cannot be read (a
carriage return within a cell, a missing cell, invalid UTF-8) are listed as left out, and affect no other row.
"""

from __future__ import annotations

import contextlib
import csv
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import soundfile
import torch
from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.audio import Recording
from lhotse.augmentation import get_or_create_resampler
from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment
from tqdm import tqdm

from tokenverse_pp.base.engine import current_engine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned, check_shared, locked, replacing
from tokenverse_pp.data.access import check_access
from tokenverse_pp.data.dataset import SAMPLING_RATE
from tokenverse_pp.data.editing.mix import shuffle_manifest
from tokenverse_pp.data.editing.stats import SECONDS_PER_HOUR, Statistics
from tokenverse_pp.data.labels import check_cut
from tokenverse_pp.data.lines import fields, number_of, raw_lines, stray_control
from tokenverse_pp.data.manifests import reason_of
from tokenverse_pp.data.normalise import check_written
from tokenverse_pp.tasks.punct import read_written
from tokenverse_pp.tasks.registry import REGISTRY

LEFT_OUT = "left_out.jsonl"
LeftOutRow = Tuple[str, str]  # an id (or a line, if there is no id), and why it is in no cut


@dataclass(frozen=True)
class Form:
    """The format of a table's rows.

    Args:
        delimiter: cell delimiter; None: a row is a name, blanks and a text.
        cells: number of cells; 0: as many as in the header.
        quoting: read quotes as the csv module does by default.
        numbers: columns of the header that contain decimal numbers.
        proofs: empty cells at the end may be missing if these columns contain integers, which shows that the other
            cells are in their places.
    """

    delimiter: Optional[str] = "\t"
    cells: int = 0
    quoting: bool = False
    numbers: Tuple[str, ...] = ()
    proofs: Tuple[str, ...] = ()

    def split(self, text: str) -> Optional[List[str]]:
        """Return the cells of a row; None if its quoting is broken."""
        if self.delimiter is None:
            return fields(text, maxsplit=1)
        if not self.quoting:
            return text.split(self.delimiter)
        try:
            return next(csv.reader([text], delimiter=self.delimiter, strict=True), [])
        except csv.Error:
            return None


@dataclass
class Table:
    """A transcript table that was checked, with the problems of its lines."""

    path: Path
    form: Form
    bad: Dict[int, str] = field(default_factory=dict)

    def left_out(self) -> List[LeftOutRow]:
        """Return the bad rows and the reasons."""
        return [(f"{self.path}, line {number}", why) for number, why in self.bad.items()]

    def rows(self) -> Iterator[Tuple[int, List[str]]]:
        """Yield number and cells of each readable line that is not blank, including the header."""
        for number, line in raw_lines(self.path):
            if number not in self.bad and line.strip():
                yield number, self.form.split(line.decode("utf-8")) or []

    def records(self, columns: Sequence[str], layout: str) -> Iterator[Tuple[int, Dict[str, str]]]:
        """Yield `rows` below the header by column (UserError with ``layout`` if one of ``columns`` is missing)."""
        rows = self.rows()
        for number, header in rows:
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(f"{self.path}, line {number}: no column {missing[0]!r}; expected {layout}")
            yield from ((below, dict(zip(header, cells))) for below, cells in rows)


def check_table(path: Path, form: Form) -> Table:
    """Check a table and return it with its problems."""
    table = Table(path, form)
    header: List[str] = []
    for number, line in raw_lines(path):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            table.bad[number] = "not UTF-8"
            continue
        problem = _problem(text, form, header) if text.strip() else None
        if problem is not None:
            table.bad[number] = problem
        elif not header and not form.cells:
            header = form.split(text) or []
    return table


def _problem(text: str, form: Form, header: Sequence[str]) -> Optional[str]:
    stray = stray_control(text)
    if stray is not None:
        return f"holds a {stray}"
    cells = form.split(text)
    if cells is None:
        return "broken quoting"
    wanted = form.cells or len(header) or len(cells)
    row = dict(zip(header, cells))
    short = form.proofs and len(cells) < wanted and all(row.get(name, "").isdigit() for name in form.proofs)
    if len(cells) != wanted and not short:
        return f"expected {wanted} cells, found {len(cells)}"
    for name, cell in row.items():
        if name in form.numbers and number_of(cell.strip()) is None:
            return f"column {name}: expected a number, found {cell[:60]!r}"
    return None


def channel_name(number: int) -> str:
    """Return the name of a channel, counted from 0: a letter as for telephone calls, a number after ``Z``.

    >>> channel_name(0), channel_name(2), channel_name(26)
    ('A', 'C', '27')
    """
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def at_16_khz(
    recordings: Iterable[Recording], folder: Path, jobs: int = 1, channel: Optional[int] = None
) -> Dict[str, Recording]:
    """Return recordings by id, 16 kHz with one channel: unchanged, or written to ``folder`` (existing files are kept).

    Resampling at every training step would cost more than the disk, SPHERE files may need another program, and seeking
    in an MP3 file means decoding everything before the position.

    Args:
        jobs: number of processes; a cluster (`current_engine`) has its own number of workers.
        channel: channel to keep if there are several; None: their mean.

    Raises:
        UserError: if a file cannot be decoded; the message names it.
    """
    folder = folder.absolute()
    kept: Dict[str, Recording] = {}
    others = []
    for recording in recordings:
        kept[recording.id] = recording
        slow = any(str(source.source).lower().endswith((".sph", ".wv1", ".mp3")) for source in recording.sources)
        if recording.sampling_rate != SAMPLING_RATE or recording.num_channels != 1 or slow:
            others.append(recording)
    if not others:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    convert = partial(write_16_khz, folder=folder, channel=channel)
    # One thread per process: OpenMP's threads of this process do not exist in a forked one.
    written = current_engine().map(convert, others, jobs, 8, torch.set_num_threads)
    progress = tqdm(
        zip(others, written), total=len(others), desc=f"16 kHz {folder.name}", mininterval=1.0, disable=None
    )
    for recording, new in progress:
        check_shared(source.source for source in new.sources)
        kept[recording.id] = new
    return kept


def write_16_khz(
    recording: Recording, folder: Path, channel: Optional[int] = None, rate: int = SAMPLING_RATE
) -> Recording:
    """Write a recording as 16-bit FLAC; return its recording with the same id (plus ``-A``, .. for a channel).

    An existing file is kept, unless the recording's own file is newer.

    Args:
        channel: counted from 0; None: the mean of all.
        rate: rate of the written file, in Hz.

    Raises:
        UserError: if the recording cannot be decoded; the message names its file.
    """
    suffix = "" if channel is None else f"-{channel_name(channel)}"
    path = folder / f"{recording.id}{suffix}.flac"
    if not _is_current(path, recording):
        with torch.inference_mode():
            samples = torch.from_numpy(_decode(recording, channel))
            if recording.sampling_rate != rate:
                samples = get_or_create_resampler(recording.sampling_rate, rate)(samples[None])[0]
        with replacing(path) as temporary:
            soundfile.write(temporary, samples.clamp(-1.0, 1.0).numpy(), rate, format="FLAC", subtype="PCM_16")
    return Recording.from_file(path, recording_id=f"{recording.id}{suffix}")


def _is_current(path: Path, recording: Recording) -> bool:
    """Whether a file exists and is not older than its source files."""
    if not path.is_file():
        return False
    written = path.stat().st_mtime
    files = (Path(str(source.source)) for source in recording.sources if source.type == "file")
    return all(file.stat().st_mtime <= written for file in files if file.is_file())


def _decode(recording: Recording, channel: Optional[int]) -> np.ndarray:
    """Return samples (S,) of one channel, or of the mean of all channels."""
    check_access(recording, f"recording {recording.id}")
    try:
        samples = recording.load_audio(channels=channel)
    except Exception as error:  # audio backends raise errors of any type
        source = str(recording.sources[0].source)
        raise UserError(f"{source}: cannot be decoded: {reason_of(error).replace(f'{source}: ', '', 1)}") from error
    return np.ascontiguousarray(samples.mean(axis=0), dtype=np.float32)


Say = Callable[[str], None]


@dataclass(frozen=True)
class Preparation:
    """The arguments that all functions ``prepare_<corpus>`` share. All raise UserError if a folder is not the corpus.

    Attributes:
        corpus_dir: folder of the corpus; a Hugging Face data set may also be a name on the hub.
        output_dir: folder for the manifests, and for audio that must be written.
        normaliser: one of `NORMALISERS`.
        written: also label punct, from the written texts that have the same words as the plain ones.
        force: prepare again what exists from an earlier run (see `in_groups`).

    Raises:
        UserError: if ``written`` is set and the normaliser is not ``words``.
    """

    corpus_dir: Path
    output_dir: Path
    normaliser: str = "words"
    written: bool = False
    jobs: int = 1
    force: bool = False
    say: Say = print

    def __post_init__(self) -> None:
        check_written(self.written, self.normaliser)


def is_written(written: Optional[str], text: str) -> bool:
    """Whether a written text has the words of a plain text, so that it can label them for punct.

    >>> is_written("Bonjour, Amélie!", "bonjour amélie"), is_written("21", "twenty one"), is_written(None, "yes")
    (True, False, False)
    """
    if not written:
        return False
    try:
        read_written(written, text.split())
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class CorpusPart:
    """A pair of lhotse manifests that becomes ``cuts_<name>.jsonl.gz``.

    Attributes:
        name: the split, and what distinguishes the part from others of the split: ``train``, ``train_de``.
        language: ISO 639 code of all its supervisions.
        unread: rows of its transcripts that cannot be read, or have no audio.
    """

    name: str
    recordings: RecordingSet
    supervisions: SupervisionSet
    language: str
    unread: Sequence[LeftOutRow] = ()


@dataclass
class LeftOut:
    """Turns that are in no cut, each with the reason: nothing is dropped silently."""

    items: List[Dict[str, Any]] = field(default_factory=list)

    def add(self, turn: SupervisionSegment, reason: str) -> None:
        """Add a turn."""
        self.note(turn.id, turn.duration, reason)

    def note(self, name: str, seconds: float, reason: str) -> None:
        """Add an item that is not a turn."""
        self.items.append({"id": name, "seconds": round(seconds, 3), "reason": reason})

    def by_reason(self) -> Dict[str, List[float]]:
        """Return the seconds of the turns by reason, the most frequent reason first."""
        found: Dict[str, List[float]] = {}
        for item in self.items:
            found.setdefault(item["reason"], []).append(item["seconds"])
        return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


NO_AUDIO = "its audio is not there"


def split_tables(
    corpus_dir: Path, folders: Sequence[str], splits: Sequence[str], pattern: str
) -> Dict[str, Dict[str, Path]]:
    """Return the existing tables as folder name (a language) -> split -> table, from the first of ``folders`` with it.

    Args:
        pattern: glob in one of the folders, with ``{split}``: ``*/{split}.tsv``.
    """
    tables: Dict[str, Dict[str, Path]] = {}
    for folder in folders:
        for split in splits:
            for path in sorted(corpus_dir.glob(f"{folder}/{pattern.format(split=split)}")):
                tables.setdefault(path.parent.name, {}).setdefault(split, path)
    return tables


@contextlib.contextmanager
def lhotse_recipe(corpus: str, corpus_dir: Path, layout: str) -> Iterator[None]:
    """Run a lhotse recipe; any exception becomes a one-line UserError that says what was expected."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the recipes assert, index and open files: any type may be raised
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{corpus_dir}: lhotse's recipe for {corpus} cannot read it ({type(error).__name__}: {reason}); "
            f"expected {layout}"
        ) from error


def require(corpus_dir: Path, patterns: Sequence[str], layout: str) -> None:
    """Check that each glob pattern matches something under a folder (raises UserError with what was expected)."""
    if not corpus_dir.is_dir():
        raise UserError(f"{corpus_dir}: no such folder; expected {layout}")
    for pattern in patterns:
        if next(corpus_dir.glob(pattern), None) is None:
            raise UserError(f"{corpus_dir}: found no {pattern}; expected {layout}")


def write_parts(
    run: Preparation, parts: Sequence[CorpusPart], to_cuts: Callable[[CorpusPart, LeftOut], Iterable[Cut]]
) -> Dict[str, Path]:
    """Check the cuts of all parts against the label schema, write all or none of them, and print a summary.

    The cuts of training parts (``train..``) are written in random order, as training shuffles only within a buffer.
    ``left_out.jsonl`` lists the supervisions that are in no cut (``part``, ``id``, ``seconds``, ``reason``).

    Args:
        to_cuts: function that gives the cuts of a part and notes what it leaves out.

    Raises:
        UserError: if a part has no cuts, or a cut breaks the schema. Nothing is written then.
    """
    files: Dict[str, Tuple[Iterable[Cut], LeftOut]] = {}
    for part in parts:
        left_out = LeftOut()
        for name, reason in part.unread:
            left_out.note(name, 0.0, reason)
        files[part.name] = (to_cuts(part, left_out), left_out)
    return write_files(run, files)


def file_of(part: str) -> str:
    """The name of a part's manifest."""
    return f"cuts_{part}.jsonl.gz"


def write_files(run: Preparation, files: Dict[str, Tuple[Iterable[Cut], LeftOut]]) -> Dict[str, Path]:
    """`write_parts` for cuts given by the name of their part. ``left_out.jsonl`` keeps the lines of other parts."""
    paths = {name: run.output_dir / file_of(name) for name in files}
    by_path = {paths[name]: pair for name, pair in files.items()}
    write_checked_files(by_path, run.output_dir / LEFT_OUT, run.say, run.corpus_dir)
    return paths


def left_out_lines(output_dir: Path, parts: Iterable[str]) -> Tuple[List[str], List[str]]:
    """Return the lines of ``left_out.jsonl`` about these parts, and those about others."""
    path = output_dir / LEFT_OUT
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    here = tuple(f'{{"part": {json.dumps(part, ensure_ascii=False)}, ' for part in parts)
    return [line for line in lines if line.startswith(here)], [line for line in lines if not line.startswith(here)]


def write_checked_files(
    files: Dict[Path, Tuple[Iterable[Cut], LeftOut]], list_file: Path, say: Say, corpus_dir: Optional[Path] = None
) -> None:
    """Write cuts to their files, all of the files or none; see `write_parts`.

    Args:
        files: by path, an iterable of cuts and the list that is filled while they are made.
        list_file: JSON lines file of what was left out.
        corpus_dir: the corpus, if the files are parts of one: training parts are shuffled, and ``list_file`` keeps its
            lines about other parts.
    """
    statistics = Statistics()
    with contextlib.ExitStack() as stack:
        for path, (cuts, left_out) in files.items():
            temporary = stack.enter_context(replacing(path))
            if not _write_checked(cuts, temporary, path, statistics):
                why = "; ".join(f"{len(turns)} turns: {reason}" for reason, turns in left_out.by_reason().items())
                raise UserError(f"{corpus_dir or path}: no cut is left for {path.name} ({why or 'no turns'})")
            if corpus_dir is not None and stem(path).startswith("train"):
                shuffle_manifest(temporary, temporary)
        others: List[str] = []
        if corpus_dir is not None:
            stack.enter_context(locked(list_file.parent))  # other runs may write about their parts
            _, others = left_out_lines(list_file.parent, map(stem, files))
        with open(stack.enter_context(replacing(list_file)), "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in others)
            for path, (_, left_out) in files.items():
                for item in left_out.items:
                    file.write(json.dumps({"part": stem(path), **item}, ensure_ascii=False) + "\n")
    say(summary(statistics.by_corpus(), {str(path): left_out for path, (_, left_out) in files.items()}))


def stem(path: Path) -> str:
    """Return the name of a cuts file without its extensions and ``cuts_``."""
    name = path.name.split(".")[0]
    return name[len("cuts_") :] if name.startswith("cuts_") else name


def _write_checked(cuts: Iterable[Cut], temporary: Path, path: Path, statistics: Statistics) -> int:
    """Check and write cuts one by one; return their number."""
    with CutSet.open_writer(temporary) as writer:
        seen: Set[str] = set()
        for cut in cuts:
            problems = check_cut(cut) or (["field 'id': another cut has it already"] if cut.id in seen else [])
            if problems:
                raise UserError(f"{path}: cut {cut.id}: {problems[0]}")
            seen.add(cut.id)
            statistics.add(cut, str(path))
            try:
                writer.write(cut)
            except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can hold
                raise UserError(f"{path}: cut {cut.id}: expected valid Unicode: {error.reason}") from None
    return len(seen)


def summary(counts: Dict[str, Any], left_out: Dict[str, LeftOut]) -> str:
    """Return a table of the contents of each file (`Statistics.by_corpus`, by file), and why turns were left out."""
    tasks = [
        name
        for name in REGISTRY
        if name != "asr" and any(group["tasks"][name]["labelled"]["cuts"] for group in counts.values())
    ]
    rows = [["file", "cuts", "hours", "turns", "words", "speakers", *tasks, "turns left out"]]
    lines = []
    for path, items in left_out.items():
        group = counts[path]
        numbers = [str(group[key]) for key in ("turns", "words", "speakers")]
        tokens = [str(group["tasks"][name]["tokens"]) for name in tasks]
        rows.append([path, str(group["cuts"]), f"{group['hours']:.2f}", *numbers, *tokens, str(len(items.items))])
        for reason, seconds in items.by_reason().items():
            hours = sum(seconds) / SECONDS_PER_HOUR
            lines.append(f"{path}: {len(seconds)} turns ({hours:.2f} h) left out: {reason}")
    return "\n".join([aligned(rows), *lines])
