"""Task vectors made stronger or weaker at decoding: a dial between precision and recall of a task.

What decides the hypotheses, beside the model and the cuts.

Batches of cuts through encoder and search: records for hyps.jsonl, and what had to be refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from lhotse.cut import Cut
from torch import Tensor

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.data.dataset import SAMPLING_RATE, audio_files, collate, load_inputs
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.hypothesis import Hypothesis, read_calibration, to_record
from tokenverse_pp.decoding.long_form import check_windows, decode_long
from tokenverse_pp.decoding.scorer import bonus_for
from tokenverse_pp.decoding.search import search_frames
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.compat import autocast
from tokenverse_pp.models.stored_features import batches_of
from tokenverse_pp.tasks.base import TaskSet

Scales = Tuple[Tuple[str, float], ...]  # task, what its vector is multiplied by


def read_scales(words: Sequence[str]) -> Scales:
    """``ner=1.5`` -> (ner, 1.5) (raises UserError).

    >>> read_scales(["ner=1.5", "scd=0"])
    (('ner', 1.5), ('scd', 0.0))
    """
    scales = []
    for word in words:
        task, _, number = word.partition("=")
        try:
            scale = float(number)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise UserError(f"--vector-scale: expected TASK=NUMBER such as ner=1.5, got {word!r}")
        scales.append((task, scale))
    return tuple(scales)


def vector_weights(loaded: ModelBundle, active: TaskSet, scales: Scales = ()) -> Tensor:
    """What each task's vector is multiplied by, (K + 1,): 1 for an active task, 0 for another, or its scale.

    The search goes on allowing the tokens of all active tasks, whatever their scale.

    Raises:
        UserError: for a scale of a task that is not decoded, and for a model without a vector for each task.
    """
    weights = torch.tensor(loaded.tasks.mask(active.names), dtype=torch.float32)
    if not scales:
        return weights
    vectors = loaded.config.model.vectors
    if vectors.placement == "none" or vectors.strategy != "sum":
        raise UserError(
            f"--vector-scale: needs a model with one vector a task (vectors.strategy=sum); this one has "
            f"placement={vectors.placement}, strategy={vectors.strategy}"
        )
    for task, scale in scales:
        if task not in active:
            raise UserError(f"--vector-scale {task}={scale:g}: decoded are {', '.join(active.names)}")
        weights[loaded.tasks.names.index(task)] = scale
    return weights


def choose_tasks(tasks: TaskSet, names: Sequence[str]) -> TaskSet:
    """The tasks to decode: those named, or all that the model knows (raises UserError for one it does not)."""
    for name in names:
        if name not in tasks:
            raise UserError(f"--tasks: {name!r} is not a task of this model, which knows {', '.join(tasks.names)}")
    return tasks.subset(names or tasks.names)


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode a CutSet.

    Args:
        search: options of the search.
        tasks: names of the tasks to decode, none for all that the model knows; the tokens of others are barred.
        max_duration: seconds of padded audio in a batch.
        stored_features: take the cuts' stored features in place of their audio.
        precision: of the encoder: fp32, bf16 or fp16.
        window: longer cuts (seconds) are decoded in windows of this length (`tokenverse_pp.decoding.long_form`).
        overlap: seconds that two windows have in common.
        chunks: what each frame sees, as in streaming; None: full context. Cuts of any length are then decoded whole, in
            memory that grows with the square of their length.
        vector_scale: (task, factor) of the task vectors that are not to be added as they are (`vector_scale`).
    """

    search: SearchOptions = field(default_factory=SearchOptions)
    tasks: Tuple[str, ...] = ()
    max_duration: float = 120.0
    stored_features: bool = False
    precision: str = "fp32"
    window: float = 28.0
    overlap: float = 6.0
    chunks: Optional[ChunkOptions] = None
    vector_scale: Tuple[Tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.max_duration < math.inf:
            raise UserError(f"--max-duration: expected seconds above 0, got {self.max_duration:g}")
        check_windows(self.window, self.overlap)

    @property
    def in_chunks(self) -> bool:
        """Whether frames see less than the whole cut."""
        return self.chunks is not None and not self.chunks.full


Record = Dict[str, Any]
NOTHING = Hypothesis(tokens=(), frames=(), log_probs=(), log_prob=0.0, score=0.0)


@dataclass
class RecognizedBatch:
    """What a batch gave: lines of hyps.jsonl, and lines of failures.jsonl (id, files, reason)."""

    records: List[Record] = field(default_factory=list)
    failures: List[Record] = field(default_factory=list)

    def refuse(self, cut: Cut, error: UserError) -> None:
        """Note that a cut could not be decoded."""
        reason = str(error)
        if cut.id not in reason:
            reason = f"cut {cut.id}: {reason}"
        self.failures.append({"id": cut.id, "files": [str(path) for path in audio_files(cut)], "reason": reason})


def plan_batches(cuts: Sequence[Cut], options: DecodeOptions) -> List[List[Cut]]:
    """Cuts -> batches, the longest first (if memory is too small, that shows at once).

    A cut longer than the window is a batch of its own. The batches depend on nothing but cuts and options: neither on
    the number of processes nor on what was decoded before, so that these cannot change a result by a rounding error.
    """
    ordered = sorted(cuts, key=lambda cut: (cut.duration, cut.id))
    long = [[cut] for cut in ordered if is_long(cut, options)]
    short = list(batches_of((cut for cut in ordered if not is_long(cut, options)), options.max_duration))
    return (short + long)[::-1]


def is_long(cut: Cut, options: DecodeOptions) -> bool:
    """Whether a cut is decoded in windows."""
    return not options.stored_features and not options.in_chunks and cut.duration > options.window


class Recognizer:
    """A model with decoding options: batches in, `RecognizedBatch` out.

    Args:
        loaded: the model, on the device that it is to run on.
        options: how to decode.

    Raises:
        UserError: for tasks, languages, characters of hotwords or a language model that the model cannot use.
    """

    def __init__(self, loaded: ModelBundle, options: DecodeOptions):
        self.loaded = loaded
        self.options = options
        self.active = choose_tasks(loaded.tasks, options.tasks)
        self.device = next(loaded.model.parameters()).device
        self.shift = loaded.model.encoder.output_frame_shift
        search = options.search
        self.constraints = constraints_for(
            loaded.tasks, self.active.names, loaded.tokenizer, search.languages, search.force_language
        )
        self.bonus = bonus_for(search, loaded.tokenizer, self.active)
        self.calibration = read_calibration(loaded.folder)
        self.mask = vector_weights(loaded, self.active, options.vector_scale).to(self.device)

    @torch.no_grad()
    def __call__(self, group: Sequence[Cut]) -> RecognizedBatch:
        """Decode one batch. What is wrong with one cut leaves the others as they are."""
        done = RecognizedBatch()
        if is_long(group[0], self.options):
            for cut in group:
                self._decode_long(cut, done)
            return done
        loaded: List[Tuple[Cut, Tensor]] = []
        for cut in group:
            try:
                inputs = load_inputs(cut, self.options.stored_features, convert=True, chunks=self.options.chunks)
                loaded.append((cut, inputs))
            except UserError as error:
                done.refuse(cut, error)
        # An utterance shorter than a frame would be an error of its whole batch in some encoders.
        heard = [(cut, item) for cut, item in loaded if self._frames(item) > 0]
        done.records.extend(self.record(cut, [NOTHING]) for cut, item in loaded if self._frames(item) <= 0)
        if heard:
            self._decode([cut for cut, _ in heard], [item for _, item in heard], done)
        return done

    def record(self, cut: Cut, found: Sequence[Hypothesis]) -> Record:
        """The n-best list of a cut -> its line of hyps.jsonl."""
        record = to_record(cut.id, found[0], self.loaded.tokenizer, self.active, self.shift, self.calibration)
        if self.options.search.nbest > 1:
            record["nbest"] = [self._candidate(hypothesis) for hypothesis in found]
        return record

    def _candidate(self, hypothesis: Hypothesis) -> Record:
        words = hypothesis.words(self.loaded.tokenizer.pieces(hypothesis.tokens), self.shift)
        return {
            "text": " ".join(word.text for word in words),
            "score": hypothesis.score,
            "log_prob": hypothesis.log_prob,
        }

    def frames(self, cut: Cut) -> int:
        """Frames at the seam that the audio of a cut has."""
        samples = torch.tensor([round(cut.duration * SAMPLING_RATE)])
        return max(0, int(self.loaded.model.encoder.feature_lens(samples)))

    def _frames(self, item: Tensor) -> int:
        """Frames at the seam that audio (S,) or stored features (T, F) have."""
        if self.options.stored_features:
            return len(item)
        return int(self.loaded.model.encoder.feature_lens(torch.tensor([len(item)]))) if len(item) else 0

    def _decode_long(self, cut: Cut, done: RecognizedBatch) -> None:
        """Decode a cut in windows, as many at a time as a batch holds."""
        o = self.options
        at_once = max(1, int(o.max_duration // o.window))
        try:
            best = decode_long(
                self.loaded, cut, self.active, o.search, o.window, o.overlap, at_once, o.precision, self.mask
            )
        except UserError as error:
            done.refuse(cut, error)
        else:
            done.records.append(self.record(cut, [best]))

    def _decode(self, group: Sequence[Cut], items: Sequence[Tensor], done: RecognizedBatch) -> None:
        """Encoder and search over inputs that are all valid."""
        model, stored = self.loaded.model, self.options.stored_features
        inputs, lens = collate(items)
        with autocast(self.device, self.options.precision):
            out, lens = model.encode(
                inputs.to(self.device),
                lens.to(self.device),
                self.mask.expand(len(group), -1),
                stored,
                self.options.chunks,
            )
        good = []
        for row, (cut, frames, length) in enumerate(zip(group, out, lens.tolist())):
            if torch.isfinite(frames[:length]).all():
                good.append(row)
            else:
                done.refuse(cut, UserError("the encoder gave NaN or infinity; do its inputs or the model hold any?"))
        if good:
            out, lens = out[good].float(), lens[good]
            found = search_frames(
                model.predictor, model.joiner, out, lens, self.options.search, self.constraints, self.bonus
            )
            done.records.extend(self.record(group[row], best) for row, best in zip(good, found))


def decode(loaded: ModelBundle, cuts: Sequence[Cut], options: DecodeOptions) -> Iterator[RecognizedBatch]:
    """Decode cuts in this process, batch by batch (`plan_batches`)."""
    decoder = Recognizer(loaded, options)
    for group in plan_batches(cuts, options):
        yield decoder(group)
