"""CutSet -> batches: audio or stored features, active tasks, token ids."""

from __future__ import annotations

import hashlib
import json
import random
import weakref
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import torch
from lhotse import CutSet
from lhotse.augmentation import get_or_create_resampler
from lhotse.cut import Cut, MixedCut, PaddingCut
from torch.utils.data import Dataset

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import (
    allow_sources,
    check_access,
    check_files,
    current_access,
    recording_files,
    recordings,
    undecodable,
)
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.tokenizer import UNK_ID, Tokenizer
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.transcript import is_task_token, transcript_of

SAMPLING_RATE = SAMPLE_RATE  # Hz
FEATURES = "encoder_features"  # cut.custom key of the stored features at the seam
MOST_OFF = 2  # frames by which stored features may differ from the cut's duration: the ends of cuts are rounded
NAMED = 5  # most characters or cut ids that a message lists
REPORTED = 100  # most left-out cuts that a rank reports to the others by name at a time
# cut.custom key: index of the file in data.train, and earlier passes through it in this epoch; absent if both are 0
PASS = "pass_of_epoch"
NO_CORPUS = "-"  # for cuts without a custom field "corpus" whose file is not known either
Batch = Dict[str, Any]


def features_key(chunks: Optional[ChunkOptions] = None) -> str:
    """The cut.custom key of stored features whose frames saw only their chunk and its left context."""
    if chunks is None or chunks.full:
        return FEATURES
    form = "" if chunks.strict else "_not_strict"
    left = "all" if chunks.left_chunks < 0 else chunks.left_chunks
    return f"{FEATURES}_{chunks.chunk_ms}ms_left_{left}_sinks_{chunks.sinks}{form}"


def marked(cut: Cut, file: int, passes: int) -> Cut:
    """Return the cut with its `PASS` mark: its file, and the earlier passes through this file in the epoch.

    Of a mixed cut, the first track that is not padding gets the mark: lhotse merges the custom fields of the tracks.
    """
    mark = f"{file}.{passes}" if file or passes else None
    if (cut.custom or {}).get(PASS) == mark:
        return cut
    if isinstance(cut, MixedCut):
        number = next(i for i, track in enumerate(cut.tracks) if not isinstance(track.cut, PaddingCut))
        track = cut.tracks[number]
        tracks = [*cut.tracks]
        tracks[number] = replace(track, cut=marked(track.cut, file, passes))
        return replace(cut, tracks=tracks)
    custom = {key: value for key, value in (cut.custom or {}).items() if key != PASS}
    return replace(cut, custom=custom if mark is None else {**custom, PASS: mark})


def draw_id(cut: Cut) -> str:
    """Return the key of a cut's random draws besides seed and epoch: its id and its `PASS` mark."""
    mark = (cut.custom or {}).get(PASS)
    return cut.id if mark is None else f"{cut.id}\n{mark}"


class Activation:
    """Selects which of the labelled tasks are active for an utterance in training (DESIGN 3.5).

    Args:
        mode: ``labelled`` (all), ``subset`` (a uniformly random subset) or ``bernoulli`` (each with ``prob``).
        prob: probability of each task, for ``bernoulli``.
        seed: the choice depends on seed, epoch and cut (`draw_id`), not on rank, batch or worker.
        paired: see `sets`.
    """

    def __init__(self, mode: str = "labelled", prob: float = 0.5, seed: int = 0, paired: bool = False):
        self.mode = mode
        self.paired = paired
        self.prob = {"labelled": 1.0, "subset": 0.5, "bernoulli": prob}[mode]  # 0.5 for each task: a uniform subset
        self.seed = seed

    def __call__(self, tasks: Sequence[str], cut_id: str, epoch: int) -> List[str]:
        """Return those of the labelled ``tasks`` that are active."""
        if self.mode == "labelled":
            return list(tasks)
        rng = random.Random(hashlib.sha256(f"{self.seed}/{epoch}/{cut_id}".encode()).digest())
        return [task for task in tasks if rng.random() < self.prob]

    def sets(self, tasks: Sequence[str], cut_id: str, epoch: int) -> List[List[str]]:
        """Return the active tasks for each occurrence of the utterance in its batch.

        There is one occurrence, or two if ``paired``: the second has those of ``tasks`` that are inactive in the first,
        so that the model sees the same audio with each task on and off, and only the task vectors tell it which.
        ``asr`` is active in both. A cut labelled only for ``asr`` also occurs twice: the corpora keep their shares.
        """
        first = self(tasks, cut_id, epoch)
        if not self.paired:
            return [first]
        return [first, [task for task in tasks if task == "asr" or task not in first]]


class Target(NamedTuple):
    """The token ids of a cut with the tokens of some tasks."""

    tasks: Tuple[str, ...]
    ids: Tuple[int, ...]


class KeptTargets:
    """The targets of cuts, as long as the cuts exist: a target is tokenised once an epoch.

    They are no attributes of the cuts: lhotse copies a cut with everything in its ``__dict__``, taking all for fields.
    """

    def __init__(self) -> None:
        self._of: Dict[int, Tuple[weakref.ref[Cut], Target]] = {}

    def put(self, cut: Cut, target: Target) -> None:
        """Keep the target of a cut."""
        number, of = id(cut), self._of
        of[number] = (weakref.ref(cut, lambda _: of.pop(number, None)), target)

    def get(self, cut: Cut) -> Optional[Target]:
        """The target of a cut, if it is kept."""
        return self._of[id(cut)][1] if id(cut) in self._of else None

    def pop(self, cut: Cut) -> Optional[Target]:
        """`get`, and forget it."""
        return self._of.pop(id(cut), (None, None))[1]

    def __reduce__(self) -> Tuple[Any, ...]:
        """Worker processes have other cuts; they get the targets with these (`samplers.FromPlace`)."""
        return KeptTargets, ()


@dataclass(eq=False, repr=False)
class TransducerDataset(Dataset):
    """Maps a CutSet (a batch drawn by a lhotse sampler) to tensors.

    With paired activation each cut gives two consecutive rows (`Activation.sets`).

    Args:
        activation: selects the active tasks among those of a cut.
        stored_features: read the features stored with each cut instead of its audio.
        chunks: draws the chunks of a batch, and of its stored features, from its cut ids and the epoch
            (`tokenverse_pp.training.validation`). None: full context.
        augment: loads the augmented audio of a cut in an epoch (`tokenverse_pp.data.augment`). None: no augmentation.
        files: a name for each file of data.train, under which the log counts cuts without a custom field ``corpus``.
    """

    tasks: TaskSet
    tokenizer: Tokenizer
    activation: Activation
    stored_features: bool = False
    chunks: Optional[Callable[[Sequence[str], int], Optional[ChunkOptions]]] = None
    augment: Optional[Callable[[Cut, int], torch.Tensor]] = None
    files: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.epoch = 0
        self.access = current_access()  # of sources, for worker processes
        self.kept = KeptTargets()

    def __getitem__(self, cuts: CutSet) -> Batch:
        """Return inputs (N, S) or (N, T, F), lens (N,), active (N, K + 1), tokens (N, U), token_lens (N,); the id,
        corpus and seconds of each cut; the sum of seconds; the batch's chunks (ChunkOptions or None)."""
        chunks = self.chunks([draw_id(cut) for cut in cuts], self.epoch) if self.chunks else None
        items: List[Cut] = []
        loaded, targets, active = [], [], []
        with allow_sources(self.access.commands, self.access.urls):
            for cut in cuts:
                if self.augment is not None:
                    audio = self.augment(cut, self.epoch)
                else:
                    audio = load_inputs(cut, self.stored_features, chunks=chunks)
                for names in self.activation.sets(labelled_tasks(cut), draw_id(cut), self.epoch):
                    items.append(cut)
                    loaded.append(audio)
                    targets.append(self.target(cut, names))
                    active.append(self.tasks.mask(names))
        inputs, lens = collate(loaded)
        tokens, token_lens = collate(targets)
        return {
            "inputs": inputs,
            "lens": lens,
            "active": torch.tensor(active, dtype=torch.float32),
            "tokens": tokens,
            "token_lens": token_lens,
            "cut_ids": [cut.id for cut in items],
            "corpora": [self.corpus_of(cut) for cut in items],
            "durations": [float(cut.duration) for cut in items],
            "seconds": float(sum(cut.duration for cut in items)),
            "chunks": chunks,
        }

    def corpus_of(self, cut: Cut) -> str:
        """Return the corpus that a cut names, or else the name of its file, known from its `PASS` mark."""
        custom = cut.custom or {}
        file = int(str(custom.get(PASS, "0")).partition(".")[0])
        return str(custom.get("corpus", self.files[file] if self.files else NO_CORPUS))

    def target(self, cut: Cut, active: Sequence[str]) -> torch.Tensor:
        """Return the token ids (U,) of a cut with the tokens of the active tasks only; forget those that are kept."""
        kept = self.kept.pop(cut)
        if kept is None or kept.tasks != tuple(active):
            return torch.tensor(self.tokenizer.encode(self.target_text(cut, active)), dtype=torch.int64)
        return torch.tensor(kept.ids, dtype=torch.int64)

    def count_tokens(self, cut: Cut) -> int:
        """Count the target tokens of a cut with all tasks it is labelled for, and keep them for `target`."""
        tasks = tuple(labelled_tasks(cut))
        kept = self.kept.get(cut)
        if kept is None or kept.tasks != tasks:
            kept = Target(tasks, tuple(self.tokenizer.encode(self.target_text(cut, tasks))))
            self.kept.put(cut, kept)
        return len(kept.ids)

    def target_text(self, cut: Cut, active: Sequence[str]) -> str:
        """The words of a cut with the tokens of the active tasks."""
        return self.tasks.subset(active).render(transcript_of(cut, self.tasks))


def collate(items: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad tensors of shape (L, ...) with zeros -> (N, L, ...), and their lengths (N,)."""
    lens = torch.tensor([len(item) for item in items], dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(list(items), batch_first=True), lens


def load_inputs(
    cut: Cut, stored_features: bool = False, convert: bool = False, chunks: Optional[ChunkOptions] = None
) -> torch.Tensor:
    """Audio (S,) of a cut, or its stored features (T, F), as float32.

    Args:
        cut: has audio or stored features.
        stored_features: read the stored features instead of the audio.
        convert: accept any sampling rate and number of channels, and reject NaN. Channels are averaged, then resampled
            to 16 kHz (torchaudio's windowed sinc, through lhotse). Training does not convert, since corpora are
            prepared once; it skips a step whose loss is not finite, so that one bad file does not end a run.
        chunks: chunk options of the stored features.

    Raises:
        UserError: naming cut and file, if the audio is missing, truncated, not audio, or not 16 kHz mono (with
            ``convert`` instead: has NaN or infinity), if features are not stored, or if a source may not be opened
            (`tokenverse_pp.data.access`).
    """
    if stored_features:
        key = features_key(chunks)
        manifest = features_manifest(cut, key)
        try:
            return torch.from_numpy(np.asarray(cut.load_custom(key), dtype=np.float32))
        except (OSError, ValueError, EOFError) as error:
            where = f"{manifest.storage_path}/{manifest.storage_key}"
            raise UserError(f"cut {cut.id}: stored features {where}: cannot be read: {error}") from None
    check_recording(cut, convert)
    try:
        audio = cut.load_audio()
    except Exception as error:  # audio backends raise errors of any type
        raise UserError(f"cut {cut.id}: {undecodable(cut, error)}") from error
    samples = torch.from_numpy(np.ascontiguousarray(audio.mean(axis=0) if len(audio) > 1 else audio[0], np.float32))
    if convert and not torch.isfinite(samples).all():
        raise UserError(f"cut {cut.id}: field 'recording': {recording_files(cut)}: holds samples of NaN or infinity")
    if cut.sampling_rate != SAMPLING_RATE:
        samples = get_or_create_resampler(cut.sampling_rate, SAMPLING_RATE)(samples[None])[0]
    return samples


def features_manifest(cut: Cut, key: str) -> Any:
    """The manifest of the array of a cut's stored features.

    Raises:
        UserError: the cut has no features under this key (`features_key`), or they may not be opened.
    """
    if key not in (cut.custom or {}):
        what = "no stored features" if key == FEATURES else f"no stored features of these chunks ({key})"
        raise UserError(f"cut {cut.id}: {what}; run `tokenverse-pp manifest store-features` first")
    manifest = (cut.custom or {})[key]
    check_access(manifest, f"cut {cut.id}")
    return manifest


def wrong_length(cut: Cut, found: int, expected: int) -> str:
    """Return why a cut's stored features of ``found`` frames are not of its audio, which has ``expected`` frames."""
    if abs(found - expected) <= MOST_OFF:
        return ""
    return (
        f"its stored features have {found} frames, but {cut.duration:.2f} s are {expected} frames: was it cut after "
        "`tokenverse-pp manifest store-features`? run that again"
    )


def audio_files(cut: Cut) -> List[Path]:
    """The audio files of a cut; none for audio in memory, in an archive, or from a command or URL."""
    return [Path(str(s.source)) for recording in recordings(cut) for s in recording.sources if s.type == "file"]


def batch_digest(run: str, group: Sequence[Cut], stored_features: bool) -> str:
    """Return the digest of a batch: of ``run``, the cuts, and size and modification time of their audio files."""
    digest = hashlib.sha256(run.encode())
    for cut in group:
        digest.update(json.dumps(cut.to_dict(), sort_keys=True, default=_described).encode())
        for path in () if stored_features else audio_files(cut):
            if path.is_file():
                stat = path.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _described(value: Any) -> str:
    """Convert a value that JSON does not support; audio in memory, possibly hours, becomes a digest."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def check_recording(cut: Cut, convert: bool = False) -> None:
    """Check by manifest and file headers that audio exists and, unless ``convert``, is 16 kHz mono (or UserError)."""
    problems = check_files(cut)
    if problems:
        raise UserError(f"cut {cut.id}: {problems[0]}")
    if convert:
        return
    source = f"cut {cut.id}: field 'recording': {recording_files(cut)}"
    if cut.sampling_rate != SAMPLING_RATE:
        raise UserError(f"{source}: expected {SAMPLING_RATE} Hz, found {cut.sampling_rate} Hz")
    if cut.num_channels != 1:
        raise UserError(f"{source}: expected one channel, found {cut.num_channels}")


@dataclass
class UnknownCounts:
    """What `Unknown` counts."""

    tokens: int = 0
    unknown: int = 0
    cuts: int = 0
    first: List[str] = field(default_factory=list)  # ids of the first cuts
    characters: Counter = field(default_factory=Counter)


class Unknown:
    """Counts the target tokens that are ``<unk>`` during a pass over cuts, which `finish` ends."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.told: Set[str] = set()  # characters that `finish` has reported
        self.counts = UnknownCounts()
        self._lacking: Dict[str, bool] = {}

    def take(self) -> UnknownCounts:
        """Return the counts since the last call, and reset them."""
        taken, self.counts = self.counts, UnknownCounts()
        return taken

    def put(self, taken: UnknownCounts) -> None:
        """Add the counts of this or another process."""
        counts = self.counts
        counts.tokens += taken.tokens
        counts.unknown += taken.unknown
        counts.cuts += taken.cuts
        counts.first = (counts.first + taken.first)[:NAMED]
        counts.characters.update(taken.characters)

    def add(self, cut_id: str, text: str, ids: Sequence[int]) -> None:
        """Count a target: its text with task tokens, and its token ids."""
        self.counts.tokens += len(ids)
        if UNK_ID not in ids:
            return
        words = "".join(word for word in text.split() if not is_task_token(word))
        for char in set(words):
            if char not in self._lacking:
                self._lacking[char] = UNK_ID in self.tokenizer.encode(char)
        lacking = Counter(char for char in words if self._lacking[char])
        self.put(UnknownCounts(0, sum(i == UNK_ID for i in ids), 1, [cut_id], lacking))

    def describe(self) -> str:
        """One line with the share, the characters and the first cuts; empty if there is no ``<unk>``."""
        c = self.counts
        if not c.unknown:
            return ""
        lacking = sorted(c.characters, key=lambda char: (-c.characters[char], char))
        names = [f"{char!r} (U+{ord(char):04X})" for char in lacking]
        cuts = "1 cut" if c.cuts == 1 else f"{c.cuts} cuts"
        return (
            f"{c.unknown} of {c.tokens} target tokens ({c.unknown / c.tokens:.2%}), in {cuts}, are <unk>: "
            f"the vocabulary lacks {_some(names, len(names))}; first in {_some(c.first, c.cuts)}"
        )

    def finish(self, option: str, say: Callable[[str], None], max_share: float = 1.0) -> None:
        """End a pass: report its counts if they have a new character, and reset them.

        Args:
            option: the option that names the cuts.
            say: called with the report, one line.
            max_share: the largest share of tokens that may be ``<unk>``.

        Raises:
            UserError: if the share is larger.
        """
        line, counts = self.describe(), self.counts
        if counts.unknown > max_share * counts.tokens:
            raise UserError(
                f"--{option}: {line}; --data.max_unk_share={max_share:g} allows no more: bring the texts into the form "
                "of those that the vocabulary was trained on, or use another --tokenizer.model"
            )
        if set(counts.characters) - self.told:
            say(f"{option}: {line}")
        self.told.update(counts.characters)
        self.take()


def _some(names: Sequence[str], count: int) -> str:
    """The first of ``count`` names, and how many more there are."""
    shown = ", ".join(names[:NAMED])
    return shown if count <= NAMED else f"{shown} and {count - NAMED} more"


@dataclass(eq=False, repr=False)
class Usable:
    """A predicate for cuts whose duration is within limits and whose target fits into their frames.

    The pruned lattice has a path only if there are no more tokens than frames (U <= T); the tokens of all labelled
    tasks count. Each cut left out is reported once. For the others, ``unknown`` counts the ``<unk>`` tokens, and the
    dataset keeps the token ids, so that a target is tokenised once per epoch.

    Args:
        dataset: encodes the targets.
        frames_of: seconds -> encoder output frames.
        report: called with one line for each cut left out.
        max_tokens: the length of the longest target allowed, or None.
        stored_frames_of: seconds -> frames at the seam, which stored features must have; None: audio is read.
    """

    dataset: TransducerDataset
    frames_of: Callable[[float], int]
    min_seconds: float
    max_seconds: float
    report: Callable[[str], None]
    max_tokens: Optional[int] = None
    stored_frames_of: Optional[Callable[[float], int]] = None

    def __post_init__(self) -> None:
        self.left_out: Dict[str, str] = {}
        self.unknown = Unknown(self.dataset.tokenizer)
        self._lines: List[str] = []  # the first lines reported since `take`
        self._reported = 0

    def take(self) -> Tuple[UnknownCounts, List[str]]:
        """Return the counts of `unknown` and the lines reported since the last call, `REPORTED` of them at most."""
        more = self._reported - len(self._lines)
        lines = [*self._lines, f"{more} more cuts left out"] if more else self._lines
        self._lines, self._reported = [], 0
        return self.unknown.take(), lines

    def __call__(self, cut: Cut) -> bool:
        """Whether the cut can be trained on."""
        reason = self.reason(cut)
        if reason and cut.id not in self.left_out:
            self.left_out[cut.id] = reason
            line = f"cut {cut.id} left out: {reason}"
            self._lines += [line] if len(self._lines) < REPORTED else []
            self._reported += 1
            self.report(line)
        return not reason

    def reason(self, cut: Cut) -> str:
        """Return why a cut cannot be used; if it can, count its target and return an empty string."""
        if not self.min_seconds <= cut.duration <= self.max_seconds:
            return f"{cut.duration:.2f} s is outside {self.min_seconds:g} to {self.max_seconds:g} s"
        if self.stored_frames_of is not None:
            arrays = [x for key, x in (cut.custom or {}).items() if key.startswith(FEATURES) and hasattr(x, "shape")]
            problems = (wrong_length(cut, x.shape[0], self.stored_frames_of(cut.duration)) for x in arrays)
            problem = next(filter(None, problems), "")
            if problem:
                return problem
        tasks = labelled_tasks(cut)
        text = self.dataset.target_text(cut, tasks)
        ids = self.dataset.tokenizer.encode(text)
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            return f"its target of {len(ids)} tokens is longer than {self.max_tokens}"
        frames = self.frames_of(cut.duration)
        if len(ids) > frames:
            return f"its target of {len(ids)} tokens is too long for {frames} encoder frames ({cut.duration:.2f} s)"
        self.unknown.add(cut.id, text, ids)
        self.dataset.kept.put(cut, Target(tuple(tasks), tuple(ids)))
        return ""
