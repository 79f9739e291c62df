"""Validation: losses with all labelled tasks active, and a greedy search scored for every task.

The search treats unlabelled tasks as decoding does by default (`tokenverse_pp.decoding.inactive`).

Also the chunks that multi-chunk training draws for each batch (XLSR-Transducer, arXiv 2407.04439).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor

from tokenverse_pp.base.config import ChunkOptions, Config, StreamingConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.data.dataset import Activation, Batch, TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.decoding.recognizer import NOT_FINITE, Recognizer
from tokenverse_pp.evaluation.scoring import score_hypotheses
from tokenverse_pp.losses.devices import autocast
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders.base import length_mask
from tokenverse_pp.models.stored_features import batches_of
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.steps import to_device

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ChunkDraw:
    """Draws chunk size, left context and sinks, each uniformly from its list.

    The draw depends only on seed, epoch and the cuts of the batch: a resumed run repeats it, and ranks may differ.
    """

    config: StreamingConfig
    seed: int = 0

    def __call__(self, cut_ids: Sequence[str], epoch: int) -> Optional[ChunkOptions]:
        """The chunks of a batch, or None for full context."""
        # "chunks": not the draw of the active tasks (`Activation`), which a batch of one cut would share.
        key = hashlib.sha256(f"chunks/{self.seed}/{epoch}/{'/'.join(cut_ids)}".encode()).digest()
        rng = random.Random(key)
        chunk_ms, left, sinks = (
            rng.choice(choices) for choices in (self.config.chunk_ms, self.config.left_chunks, self.config.sinks)
        )
        return ChunkOptions(chunk_ms, left, sinks, self.config.strict) if chunk_ms else None


def training_chunks(config: Config) -> Optional[ChunkDraw]:
    """The `ChunkDraw` of training batches; None for training only in full context."""
    streaming = config.model.streaming
    return ChunkDraw(streaming, config.training.seed) if streaming.chunk_ms else None


def validation_chunks(config: Config) -> Optional[ChunkDraw]:
    """The `ChunkDraw` of validation: full context if training includes it, else the first value of each list."""
    c = config.model.streaming
    if not c.chunk_ms or 0 in c.chunk_ms:
        return None
    first = dataclasses.replace(c, chunk_ms=c.chunk_ms[:1], left_chunks=c.left_chunks[:1], sinks=c.sinks[:1])
    return ChunkDraw(first)


Record = Dict[str, Any]


class Validator:
    """Scores a model on a fixed list of cuts, split over the ranks."""

    def __init__(self, cuts: Sequence[Cut], dataset: TransducerDataset, config: Config, world: DistributedContext):
        chunks = validation_chunks(config)
        self.dataset = TransducerDataset(
            dataset.tasks, dataset.tokenizer, Activation(), dataset.stored_features, chunks
        )
        self.cuts = list(cuts)
        mine = sorted(self.cuts[world.rank :: world.size], key=lambda cut: cut.duration)
        self.batches: List[CutSet] = [CutSet.from_cuts(b) for b in batches_of(mine, config.data.max_duration)]
        self.config = config
        self.world = world

    @torch.no_grad()
    def __call__(self, model: Transducer) -> Dict[str, float]:
        """Return scores by name, the same on all ranks.

        ``loss``, ``loss_per_token``: the pruned loss in nats per frame and per token. ``log_prob_<task>``: mean
        expected log-probability of that task's target tokens (``asr``: of all others), over the cuts labelled for it.
        ``wer``, ``<task>_f1``, ``<task>_accuracy``: scores of a greedy search with each cut's labelled tasks.

        Raises:
            UserError: the model gives NaN or infinity, or no cut is left (`_loaded`).
        """
        model.eval()
        for vectors in model.task_vectors:
            vectors.refuses = False  # training may use a combination of these cuts later, or never
        names, stored, precision = (
            self.dataset.tasks.names,
            self.dataset.stored_features,
            self.config.training.precision,
        )
        sums = [0.0] * (3 + 2 * len(names))  # pruned loss, frames, tokens; log-probabilities and tokens of each task
        records: List[Record] = []
        bundle = ModelBundle(self.config, self.dataset.tasks, self.dataset.tokenizer, model)
        search = SearchOptions(method="greedy")
        recognizer = Recognizer(bundle, DecodeOptions(search, stored_features=stored, precision=precision))
        for cuts, batch in self._loaded():
            out, lens = recognizer.encode(batch["inputs"], batch["lens"], batch["active"], stored, batch["chunks"])
            with autocast(self.world.device, precision):
                losses = model.losses(out, lens, batch["tokens"], batch["token_lens"])
                log_probs = model.token_log_probs(out, lens, batch["tokens"], batch["token_lens"])
            lengths = [float(losses.frames.sum()), float(batch["token_lens"].sum())]  # on the CPU
            found = torch.stack([x.double() for x in (losses.pruned.sum(), *self._by_task(batch, log_probs))]).tolist()
            sums = [a + b for a, b in zip(sums, [found[0], *lengths, *found[1:]])]
            if recognizer.inactive == "strip" and not bool(batch["active"].all()):
                everything = torch.ones_like(batch["active"])
                out, lens = recognizer.encode(batch["inputs"], batch["lens"], everything, stored, batch["chunks"])
            records += self._search(recognizer, cuts, out, lens)
        model.train()
        pruned, frames, tokens, *by_task = self.world.sum(sums)
        means = {
            f"log_prob_{name}": total / count for name, total, count in zip(names, by_task[::2], by_task[1::2]) if count
        }
        everyone = [record for part in self.world.gather(records) for record in part]
        if not everyone:
            raise UserError("--data.valid: no cut is left: all have samples or features of NaN or infinity")
        scored = {record["id"] for record in everyone}
        return {
            "loss": pruned / max(1, frames),
            "loss_per_token": pruned / max(1, tokens),
            **means,
            **headline(score_hypotheses([c for c in self.cuts if c.id in scored], everyone, self.dataset.tasks)),
        }

    def _loaded(self) -> Iterator[Tuple[List[Cut], Batch]]:
        """Yield the cuts of each batch, and the batch on the device.

        Cuts with samples or features of NaN or infinity are left out from then on, with a warning: in training too, a
        bad file does not end a run.
        """
        for number, cuts in enumerate(self.batches):
            batch = self.dataset[cuts]
            finite = torch.isfinite(batch["inputs"]).flatten(1).all(1).tolist()
            if not all(finite):
                for cut in (cut for cut, is_finite in zip(cuts, finite) if not is_finite):
                    what = "features" if self.dataset.stored_features else "samples"
                    log.warning(f"data.valid: cut {cut.id} is left out: it has {what} of NaN or infinity")
                cuts = self.batches[number] = CutSet.from_cuts(cut for cut, fine in zip(cuts, finite) if fine)
                batch = self.dataset[cuts] if any(finite) else {}
            if batch:
                yield list(cuts), to_device(batch, self.world.device)
        self.batches = [cuts for cuts in self.batches if len(cuts)]

    def _by_task(self, batch: Batch, log_probs: Tensor) -> List[Tensor]:
        """Return two scalars per task: the sum of its log-probabilities (N, U), and its number of target tokens."""
        tokens: Tensor = batch["tokens"]
        valid = length_mask(batch["token_lens"], tokens.shape[1], tokens.device)
        is_task_token = torch.zeros_like(valid)
        masks: Dict[str, Tensor] = {}
        for task in self.dataset.tasks.tasks:
            ids = torch.tensor([self.dataset.tokenizer.id_of(symbol) for symbol in task.symbols], device=tokens.device)
            masks[task.name] = valid & torch.isin(tokens, ids)
            is_task_token |= masks[task.name]
        masks["asr"] = valid & ~is_task_token
        pairs = [(log_probs.masked_fill(~mask, 0.0).sum(), mask.sum()) for mask in masks.values()]
        return [number for pair in pairs for number in pair]

    def _search(self, recognizer: Recognizer, cuts: Sequence[Cut], out: Tensor, lens: Tensor) -> List[Record]:
        """Return the hypotheses of a batch, out (N, T', C) and lens (N,), as records of hyps.jsonl."""
        tasks = self.dataset.tasks
        active = [tuple(name for name in tasks.names if name in labelled_tasks(cut)) for cut in cuts]
        records = []
        for cut, names, found in zip(cuts, active, recognizer.search(out, lens, active)):
            if found is None:
                raise UserError(f"cut {cut.id}: {NOT_FINITE}")
            records.append(recognizer.transcript(cut, found[0], tasks.subset(names).reader).to_record())
        return records


def headline(scores: Mapping[str, Any]) -> Dict[str, float]:
    """One number for each task in the result of `score_hypotheses`: ``wer``, ``<task>_f1`` or ``<task>_accuracy``."""
    found = {"wer": float(scores["wer"]["all"]["wer"])} if "wer" in scores else {}
    for task, result in scores.items():
        if not task.startswith("wer") and isinstance(result, Mapping):
            for name in ("f1", "accuracy"):
                value = first_value(result, name)
                if value is not None:
                    found[f"{task}_{name}"] = value
    return found


def first_value(nested: Mapping[str, Any], name: str) -> Optional[float]:
    """The value of the first key ``name`` in nested dictionaries."""
    if name in nested:
        return float(nested[name])
    for value in nested.values():
        if isinstance(value, Mapping):
            found = first_value(value, name)
            if found is not None:
                return found
    return None


def describe(scores: Mapping[str, float]) -> str:
    """One line for the terminal."""
    rates = [f"{name} {value:.1%}" for name, value in scores.items() if name.endswith(("_f1", "_accuracy"))]
    return ", ".join([f"valid loss {scores['loss']:.4f} a frame", f"WER {scores['wer']:.2%}", *rates])
