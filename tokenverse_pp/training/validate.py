"""Validation: the loss with all labelled tasks active, and the WER of a greedy search."""

from __future__ import annotations

from typing import Dict, List, Sequence

import kaldialign
import torch
from lhotse import CutSet
from lhotse.cut import Cut

from tokenverse_pp.config import Config
from tokenverse_pp.dataset import Activation, TransducerDataset
from tokenverse_pp.manifests.stored_features import batches_of
from tokenverse_pp.model.transducer import Transducer
from tokenverse_pp.search import SearchOptions, search_frames
from tokenverse_pp.tasks.text import parse
from tokenverse_pp.training.data import shard
from tokenverse_pp.training.distributed import World, autocast
from tokenverse_pp.training.steps import forward, to_device


class Validator:
    """Runs over a fixed list of cuts, sharded over the ranks."""

    def __init__(self, cuts: Sequence[Cut], dataset: TransducerDataset, config: Config, world: World):
        self.dataset = TransducerDataset(dataset.tasks, dataset.tokenizer, Activation(), dataset.stored_features)
        mine = sorted(shard(cuts, world), key=lambda cut: cut.duration)
        self.batches: List[CutSet] = [CutSet.from_cuts(b) for b in batches_of(mine, config.data.max_duration)]
        self.config = config
        self.world = world

    @torch.no_grad()
    def __call__(self, model: Transducer) -> Dict[str, float]:
        """Loss a frame and a token (nats), and WER; the same on all ranks."""
        model.eval()
        sums = [0.0] * 5  # pruned loss, frames, tokens, word errors, reference words
        for cuts in self.batches:
            batch = to_device(self.dataset[cuts], self.world.device)
            with autocast(self.world.device, self.config.training.precision):
                losses = forward(model, batch, self.dataset.stored_features)
                errors, words = self._errors(model, batch)
            values = [
                losses.pruned.sum().item(),
                losses.frames.sum().item(),
                batch["token_lens"].sum().item(),
            ]
            sums = [a + b for a, b in zip(sums, [*values, errors, words])]
        model.train()
        pruned, frames, tokens, total_errors, total_words = self.world.sum(sums)
        return {
            "loss": pruned / max(1, frames),
            "loss_per_token": pruned / max(1, tokens),
            "wer": total_errors / max(1, total_words),
        }

    def _errors(self, model: Transducer, batch: Dict) -> tuple[int, int]:
        """Word errors and reference words of a batch."""
        out, lens = model.encode(batch["inputs"], batch["lens"], batch["active"], self.dataset.stored_features)
        found = search_frames(model.predictor, model.joiner, out, lens, SearchOptions(method="greedy"))
        tokenizer, tasks = self.dataset.tokenizer, self.dataset.tasks
        errors = words = 0
        for hypotheses, ids, length in zip(found, batch["tokens"].tolist(), batch["token_lens"].tolist()):
            ref = parse(tokenizer.decode(ids[:length]), tasks).words
            hyp = parse(tokenizer.decode(hypotheses[0].tokens), tasks).words
            errors += kaldialign.edit_distance(ref, hyp)["total"]
            words += len(ref)
        return errors, words
