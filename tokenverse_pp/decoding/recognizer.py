"""Decoding of batches: encoder and search. `Recognizer` is the only place that does so.

Batch decoding, long audio (`tokenverse_pp.decoding.long_form`), `search`, validation in training and the Python API
call it, so options and defaults have the same meaning everywhere. `search_frames` takes a padded batch of encoder
output, `search` takes a model and audio or features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from lhotse.cut import Cut
from torch import Tensor

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, Inactive, Numbers, SearchOptions
from tokenverse_pp.data.dataset import SAMPLING_RATE, audio_files, collate, load_inputs, wrong_length
from tokenverse_pp.decoding.beam import beam_search
from tokenverse_pp.decoding.constraints import Constraints, constraints_for
from tokenverse_pp.decoding.full_beam import full_beam_search
from tokenverse_pp.decoding.greedy import greedy_search
from tokenverse_pp.decoding.hypothesis import NOTHING, Hypothesis, read_calibration
from tokenverse_pp.decoding.inactive import Selection, inactive_of, select, stripped
from tokenverse_pp.decoding.k2_fast_beam import k2_fast_beam_search
from tokenverse_pp.decoding.language_models import bonus_for
from tokenverse_pp.decoding.long_form import Merger, windows_of
from tokenverse_pp.decoding.pauses import PauseReader, pause_reader_of
from tokenverse_pp.decoding.scorer import (
    ConstraintTable,
    FusionScorer,
    Scorer,
    biased_joiner,
    check_bonus,
    inference,
    project,
)
from tokenverse_pp.losses.devices import autocast
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders.base import length_mask
from tokenverse_pp.models.predictor import Predictor
from tokenverse_pp.models.stored_features import batches_of
from tokenverse_pp.models.transducer import Joiner, Transducer
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.punct import settled_text
from tokenverse_pp.tasks.result import Transcript, TranscriptReader

METHODS = {
    "greedy": greedy_search,
    "beam": beam_search,
    "full_beam": full_beam_search,
    "k2_fast_beam": k2_fast_beam_search,
}
Record = Dict[str, Any]
NBest = List[Hypothesis]  # best score first
NOT_FINITE = "the encoder gave NaN or infinity; do its inputs or the model hold any?"


def search_frames(
    predictor: Predictor,
    joiner: Joiner,
    encoder_out: Tensor,
    lens: Tensor,
    options: Optional[SearchOptions] = None,
    constraints: Union[Constraints, Sequence[Constraints], None] = None,
    bonus: Optional[FusionScorer] = None,
) -> List[List[Hypothesis]]:
    """Decode a batch of encoder output.

    Args:
        predictor: the predictor, on the device of ``encoder_out``.
        encoder_out: (N, T, C), padded.
        lens: (N,) valid frames; 0 gives one empty hypothesis.
        constraints: what may be written (`constraints_for`), for all utterances or one for each; None for anything.
        bonus: for hotwords, length, a language model (`bonus_for`); needed if and only if the options use them.

    Returns:
        For each utterance 1 to ``options.nbest`` distinct hypotheses, best score first. There are fewer than ``nbest``
        if the beam holds fewer, since hypotheses with the same tokens are merged.

    Raises:
        UserError: if valid frames of the encoder output contain NaN or infinity.
    """
    options = options or SearchOptions()
    check_bonus(options, bonus)
    with inference(encoder_out.device):
        lengths = [int(n) for n in lens.tolist()]
        if not lengths:
            return []
        # Longest first: the utterances that still have frames are always the first n. The sort is stable.
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        longest = max(lengths)
        rows = torch.tensor(order, device=encoder_out.device)
        frames = project(joiner, encoder_out.transpose(0, 1)[:longest].index_select(1, rows), options)
        ordered = [lengths[i] for i in order]
        _refuse_nan(frames, ordered, order)
        scorer = Scorer(predictor, joiner, frames, options, bonus)
        batch = None
        if constraints is not None:
            each = [constraints] * len(order) if isinstance(constraints, Constraints) else constraints
            batch = ConstraintTable(scorer.vocab_size, encoder_out.device).batch([each[i] for i in order])
        found = dict(zip(order, METHODS[options.method](scorer, ordered, options, batch)))
        ranked = [sorted(found[i], key=lambda h: (-h.score, h.tokens)) for i in range(len(lengths))]
        return [hypotheses[: options.nbest] for hypotheses in ranked]


def _refuse_nan(frames: Tensor, lengths: Sequence[int], order: Sequence[int]) -> None:
    bad = ~torch.isfinite(frames.sum(-1))
    valid = torch.arange(frames.size(0), device=frames.device)[:, None] < torch.tensor(lengths, device=frames.device)
    refuse_rows(sorted(order[i] for i in (bad & valid).any(0).nonzero().flatten().tolist()))


def refuse_rows(rows: Sequence[int]) -> None:
    """Raise UserError if there are ``rows``: utterances of a batch whose frames hold NaN or infinity."""
    if rows:
        which = ", ".join(map(str, rows))
        raise UserError(f"utterance {which} of the batch: the encoder gave NaN or infinity; is the audio valid?")


def vector_weights(loaded: ModelBundle, active: TaskSet, scales: Numbers = ()) -> Tensor:
    """Return the factor of each task's vector, (K + 1,): 1 (or its scale) for an active task, 0 for an inactive one.

    The search allows the tokens of all active tasks, whatever their scale.

    Raises:
        UserError: for a scale of a task that is not decoded, and for a model without one vector per task.
    """
    weights = torch.tensor(loaded.tasks.mask(active.names), dtype=torch.float32)
    if not scales:
        return weights
    vectors = loaded.config.model.vectors
    if vectors.placement == "none" or vectors.strategy != "sum":
        raise UserError(
            f"--vector-scale: needs a model with one vector per task (vectors.strategy=sum); this one has "
            f"placement={vectors.placement}, strategy={vectors.strategy}"
        )
    for task, scale in scales:
        if task not in active:
            raise UserError(
                f"--vector-scale {task}={scale:g}: expected one of the decoded tasks {', '.join(active.names)}"
            )
        weights[loaded.tasks.names.index(task)] = scale
    return weights


@dataclass
class RecognizedBatch:
    """The results of a batch: lines of hyps.jsonl, lines of failures.jsonl (id, files, reason), and transcripts."""

    records: List[Record] = field(default_factory=list)
    failures: List[Record] = field(default_factory=list)
    transcripts: List[Transcript] = field(default_factory=list)

    def refuse(self, cut: Cut, error: UserError) -> None:
        """Add a failure."""
        reason = str(error)
        if cut.id not in reason:
            reason = f"cut {cut.id}: {reason}"
        self.failures.append({"id": cut.id, "files": [str(path) for path in audio_files(cut)], "reason": reason})


def plan_batches(cuts: Sequence[Cut], options: DecodeOptions) -> List[List[Cut]]:
    """Group cuts into batches, longest first, so that a lack of memory shows at once.

    A cut longer than the window is a batch of its own. The batches depend only on cuts and options, not on the number
    of processes or on what was decoded before, so these cannot change a result by a rounding error.
    """
    ordered = sorted(cuts, key=lambda cut: (cut.duration, cut.id))
    long = [[cut] for cut in ordered if is_long(cut, options)]
    short = list(batches_of((cut for cut in ordered if not is_long(cut, options)), options.max_duration))
    return (short + long)[::-1]


def is_long(cut: Cut, options: DecodeOptions) -> bool:
    """Whether a cut is decoded in windows."""
    return not options.stored_features and not options.in_chunks and cut.duration > options.window


def untold(cut: Cut, done: int, total: int) -> None:
    """Default of `Recognizer.on_windows`: does nothing."""


class Recognizer:
    """A model with decoding options.

    Called with a batch of cuts it returns a `RecognizedBatch`; `recognize` takes audio or features. The model must be
    in eval mode.

    Args:
        loaded: the model, on its device.
        weights: (K + 1,) factors of the task vectors; by default `vector_weights`.

    Attributes:
        on_windows: called while a long cut is decoded, with the cut, the number of windows that are done, and of all.
        on_settled: called then with the cut and its written text that later windows do not change (`settled_text`).
            None: no call.

    Raises:
        UserError: for tasks, languages, hotword characters or a language model that the model cannot use.
    """

    def __init__(self, loaded: ModelBundle, options: DecodeOptions, weights: Optional[Tensor] = None):
        self.loaded = loaded
        self.options = options
        self.active = loaded.tasks.chosen(options.tasks or loaded.tasks.names, "--tasks: ")
        self.inactive = inactive_of(loaded, options.inactive)
        self.names = self.active.names
        self._selections: Dict[Tuple[str, ...], Selection] = {}
        self.decoded = loaded.tasks.subset(self.selection_of(self.names).decoded)
        self.device = next(loaded.model.parameters()).device
        self.shift = loaded.model.encoder.output_frame_shift
        self._constraints: Dict[Tuple[str, ...], Constraints] = {}
        self.constraints = self.constraints_of(self.names)
        self.bonus = bonus_for(options.search, loaded.tokenizer, self.decoded)
        self.joiner = biased_joiner(loaded.model.joiner, options.search, loaded.tokenizer)
        self.calibration = read_calibration(loaded.folder)
        self.reader = self.active.reader
        self.pieces = loaded.tokenizer.pieces()
        if weights is None:
            weights = vector_weights(loaded, self.decoded, options.vector_scale)
        self.weights = weights.to(self.device)
        if options.pauses and "endp" not in self.active:
            raise UserError("--pauses: the probabilities of endpoints need the task endp, which is not decoded")
        self.on_windows: Callable[[Cut, int, int], None] = untold
        self.on_settled: Optional[Callable[[Cut, str], None]] = None

    @cached_property
    def pause_reader(self) -> Optional[PauseReader]:
        """The reader of the model's pauses; see `pause_reader_of`."""
        return pause_reader_of(self.loaded, self.options.search)

    def selection_of(self, names: Sequence[str]) -> Selection:
        """Return what is decoded if these tasks are requested."""
        key = tuple(names)
        if key not in self._selections:
            loaded, languages = self.loaded, self.options.search.languages
            self._selections[key] = select(loaded.tasks, key, loaded.tokenizer, self.inactive, languages)
        return self._selections[key]

    def constraints_of(self, names: Sequence[str]) -> Constraints:
        """Return the constraints of the search if these tasks are requested; compiled once."""
        key = self.selection_of(names).decoded
        if key not in self._constraints:
            o, loaded = self.options.search, self.loaded
            self._constraints[key] = constraints_for(loaded.tasks, key, loaded.tokenizer, o.languages, o.force_language)
        return self._constraints[key]

    @torch.no_grad()
    def encode(
        self, inputs: Tensor, lens: Tensor, weights: Tensor, stored: bool, chunks: Optional[ChunkOptions]
    ) -> Tuple[Tensor, Tensor]:
        """`Transducer.encode` in the precision of the options; ``weights``: (N, K + 1) factors of the task vectors."""
        with autocast(self.device, self.options.precision):
            out, lens = self.loaded.model.encode(inputs.to(self.device), lens, weights.to(self.device), stored, chunks)
        return out, lens

    @torch.no_grad()
    def search(
        self, out: Tensor, lens: Tensor, active: Optional[Sequence[Sequence[str]]] = None, strip: bool = True
    ) -> List[Optional[NBest]]:
        """Search a batch of encoder output.

        Args:
            out: (N, T', C), padded; encoded with the tasks of `selection_of`.
            lens: (N,) valid frames.
            active: for each utterance the names of the requested tasks; None for those of the options.
            strip: remove the tokens of other tasks, if they were decoded (``DecodeOptions.inactive``).

        Returns:
            For each utterance its n-best list, or None if its frames contain NaN or infinity.
        """
        finite = (torch.isfinite(out).all(-1) | ~length_mask(lens, out.size(1), out.device)).all(-1)
        lengths, is_finite = lens.tolist(), finite.tolist()
        found: List[Optional[NBest]] = [None] * len(lengths)
        good = [row for row, fine in enumerate(is_finite) if fine]
        if good:
            constraints = self.constraints if active is None else [self.constraints_of(active[row]) for row in good]
            best = search_frames(
                self.loaded.model.predictor,
                self.joiner,
                (out if len(good) == len(found) else out[good]).float(),
                torch.tensor([lengths[row] for row in good]),
                self.options.search,
                constraints,
                self.bonus,
            )
            self._read_pauses(out, lengths, good, best, active)
            for row, hypotheses in zip(good, best):
                removed = self.selection_of(self.names if active is None else active[row]).removed
                found[row] = stripped(hypotheses, removed) if strip and removed else hypotheses
        return found

    def _read_pauses(
        self,
        out: Tensor,
        lengths: Sequence[int],
        rows: Sequence[int],
        best: Sequence[NBest],
        active: Optional[Sequence[Sequence[str]]],
    ) -> None:
        """Add `Hypothesis.pauses` to the best hypotheses of rows of ``out``, if requested.

        With bonuses of word lists or language models, endpoints are first moved to where the model alone would write
        them. Only rows with the requested task ``endp`` change.
        """
        o = self.options
        named = [self.names if active is None else active[row] for row in rows]
        chosen = [i for i, names in enumerate(named) if "endp" in names and lengths[rows[i]] > 0]
        reader = self.pause_reader if chosen and (o.pauses or o.search.earns) else None
        if reader is None:
            return
        found = [best[i][0] for i in chosen]
        if not o.pauses and not any(reader.endpoint in one.tokens for one in found):
            return
        lens = [lengths[rows[i]] for i in chosen]
        parts = reader.remaining(out[[rows[i] for i in chosen]].float(), lens, found)
        for i, one, part in zip(chosen, found, parts):
            one = reader.retimed(one, part) if o.search.earns else one
            best[i][0] = reader.with_pauses(one, part) if o.pauses else one

    def recognize(self, items: Sequence[Tensor], strip: bool = True) -> List[Optional[NBest]]:
        """Recognize audio (S,), or features (T, F) under ``DecodeOptions.stored_features``, as one batch.

        Returns the n-best list of each: one empty hypothesis if it is shorter than a frame, and None if the encoder's
        output contains NaN or infinity.
        """
        found: List[Optional[NBest]] = [[NOTHING]] * len(items)
        # With some encoders an utterance shorter than a frame would fail its whole batch.
        rows = [row for row, item in enumerate(items) if self.input_frames(item) > 0]
        if rows:
            inputs, lens = collate([items[row] for row in rows])
            weights = self.weights.expand(len(rows), -1)
            o = self.options
            out, out_lens = self.encode(inputs, lens, weights, o.stored_features, o.chunks)
            for row, best in zip(rows, self.search(out, out_lens, strip=strip)):
                found[row] = best
        return found

    def recognize_long(self, cut: Cut, at_once: int) -> Hypothesis:
        """The best hypothesis of a cut of any length, decoded with ``at_once`` windows per batch (raises UserError)."""

        # Windows are merged with all tokens of the search: task tokens show where sentences end.
        def best_of(parts: Sequence[Cut]) -> List[Hypothesis]:
            found = self.recognize([load_inputs(part, convert=True) for part in parts], strip=False)
            if None in found:
                raise UserError(f"cut {cut.id}: {NOT_FINITE}")
            return [best[0] for best in found if best is not None]

        o, loaded = self.options, self.loaded
        removed = self.selection_of(self.names).removed
        if cut.duration <= o.window:
            return stripped(best_of([cut]), removed)[0]
        merger = Merger(self.pieces, self.decoded, self.shift, self.constraints)
        windows = list(windows_of(cut, o.window, o.overlap, self.shift))  # without their audio
        self.on_windows(cut, 0, len(windows))
        for first in range(0, len(windows), at_once):
            group = windows[first : first + at_once]
            for (start, part), best in zip(group, best_of([part for _, part in group])):
                merger.add(start, start + round(part.duration / self.shift), best)
            done = first + len(group)
            self.on_windows(cut, done, len(windows))
            if self.on_settled is not None and done < len(windows):
                settled = stripped([Hypothesis(*merger.result(windows[done][0]), 0.0, 0.0)], removed)[0]
                self.on_settled(cut, settled_text([self.pieces[token] for token in settled.tokens], self.reader))
        tokens, frames, log_probs = merger.result()
        log_prob = sum(log_probs)
        score = o.search.normalised(log_prob, len(tokens) + loaded.model.predictor.context_size)
        pauses = merger.pauses() if o.pauses else None
        return stripped([Hypothesis(tokens, frames, log_probs, log_prob, score, pauses)], removed)[0]

    def __call__(self, group: Sequence[Cut]) -> RecognizedBatch:
        """Decode a batch of `plan_batches`. An error of one cut does not affect the others."""
        done = RecognizedBatch()
        o = self.options
        if is_long(group[0], o):
            for cut in group:
                try:
                    best = self.recognize_long(cut, max(1, int(o.max_duration // o.window)))
                except UserError as error:
                    done.refuse(cut, error)
                else:
                    self._add(done, cut, [best])
            return done
        cuts: List[Cut] = []
        items: List[Tensor] = []
        for cut in group:
            try:
                items.append(self.load(cut))
                cuts.append(cut)
            except UserError as error:
                done.refuse(cut, error)
        for cut, found in zip(cuts, self.recognize(items)):
            if found is None:
                done.refuse(cut, UserError(NOT_FINITE))
            else:
                self._add(done, cut, found)
        return done

    def load(self, cut: Cut) -> Tensor:
        """Return the audio (S,) or the stored features (T, F) of a cut (raises UserError if that is impossible)."""
        o = self.options
        item = load_inputs(cut, o.stored_features, convert=True, chunks=o.chunks)
        problem = wrong_length(cut, len(item), self.frames(cut)) if o.stored_features else ""
        if problem:
            raise UserError(f"cut {cut.id}: {problem}")
        return item

    def transcript(self, cut: Cut, best: Hypothesis, reader: Optional[TranscriptReader] = None) -> Transcript:
        """Return the transcript of a hypothesis; ``reader``: of the active tasks, by default those of the options."""
        pieces = [self.pieces[token] for token in best.tokens]
        return (reader or self.reader).read_tokens(
            pieces,
            best.frames,
            best.log_probs,
            self.shift,
            self.calibration,
            best.score,
            cut.duration,
            cut.id,
            best.pauses if self.options.pauses else None,
        )

    def _add(self, done: RecognizedBatch, cut: Cut, found: Sequence[Hypothesis]) -> None:
        """Add the n-best list of a cut to the results."""
        transcript = self.transcript(cut, found[0])
        record = transcript.to_record()
        if self.options.search.nbest > 1:
            record["nbest"] = [
                {"text": self.loaded.tokenizer.decode(h.tokens), "score": h.score, "log_prob": h.log_prob}
                for h in found
            ]
        done.transcripts.append(transcript)
        done.records.append(record)

    def frames(self, cut: Cut) -> int:
        """Return the number of frames at the seam for a cut's audio."""
        samples = torch.tensor([round(cut.duration * SAMPLING_RATE)])
        return max(0, int(self.loaded.model.encoder.feature_lens(samples)))

    def input_frames(self, item: Tensor) -> int:
        """Return the number of frames at the seam for audio (S,) or stored features (T, F)."""
        if self.options.stored_features:
            return len(item)
        return int(self.loaded.model.encoder.feature_lens(torch.tensor([len(item)]))) if len(item) else 0


def decode(loaded: ModelBundle, cuts: Sequence[Cut], options: DecodeOptions) -> Iterator[RecognizedBatch]:
    """Decode cuts in this process, batch by batch (`plan_batches`)."""
    recognizer = Recognizer(loaded, options)
    for group in plan_batches(cuts, options):
        yield recognizer(group)


def search(
    model: ModelBundle,
    inputs: Sequence[Any],
    tasks: Optional[Sequence[str]] = None,
    options: Optional[SearchOptions] = None,
    inactive: Optional[Inactive] = None,
) -> List[List[Hypothesis]]:
    """Decode utterances in one padded batch. Each result is the same as if the utterance were decoded alone.

    Args:
        model: as returned by `tokenverse_pp.models.bundle.load_model`.
        inputs: arrays or tensors of floats: all 1-D (audio at 16 kHz in [-1, 1]), or all 2-D (frames, F), stored
            features at the encoder's seam (`Encoder.extract`). They are one batch in memory.
        tasks: names of the tasks to decode, None for all of the model's; tokens of others are not returned.
        inactive: how other tasks are handled: see `DecodeOptions.inactive`.

    Returns:
        For each input 1 to ``options.nbest`` hypotheses, best score first. Their frames are those of the encoder's
        output, ``model.model.encoder.output_frame_shift`` seconds each.

    Raises:
        UserError: for a task that the model does not know, a hotword that it cannot write, or an input (named by its
            number) that is not such an array, contains NaN or infinity, or is too short for one frame.
    """
    network, known = model.model, model.tasks
    items = [_checked(item, number, network) for number, item in enumerate(inputs)]
    if len({item.dim() for item in items}) > 1:
        raise UserError("inputs: expected all audio (1-D) or all stored features (2-D), got both")
    stored = any(item.dim() == 2 for item in items)
    active = known.names if tasks is None else known.chosen(tasks).names
    decoding = DecodeOptions(options or SearchOptions(), active, stored_features=stored, inactive=inactive)
    recognizer = Recognizer(model, decoding)
    training = network.training
    network.eval()
    try:
        found = recognizer.recognize(items)
    finally:
        network.train(training)
    refuse_rows([row for row, best in enumerate(found) if best is None])
    return [best for best in found if best is not None]


def _checked(item: Any, number: int, network: Transducer) -> Tensor:
    """Input ``number`` as a float32 tensor (S,) or (T, F) (raises UserError)."""
    tensor = torch.as_tensor(item)
    if not tensor.is_floating_point() or tensor.dim() not in (1, 2):
        kind = f"{str(tensor.dtype).replace('torch.', '')} of shape {tuple(tensor.shape)}"
        raise UserError(f"input {number}: expected floats, 1-D audio or 2-D stored features, got {kind}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"input {number}: holds NaN or infinity")
    encoder = network.encoder
    if tensor.dim() == 2 and tensor.size(1) != encoder.feature_dim:
        raise UserError(f"input {number}: expected features of {encoder.feature_dim} numbers, got {tensor.size(1)}")
    frames = torch.tensor([len(tensor)])
    if tensor.dim() == 1:
        frames = encoder.feature_lens(frames)
    if int(frames) < 1:
        raise UserError(f"input {number}: too short for one frame: it holds {len(tensor)}")
    return tensor.float()
