"""The training loop on one page: draw, forward, backward, step, log, validate, save.

`Trainer.run` is the loop, `Stepper` one optimizer step. What comes before the first step (a checkpoint or another
model to start from) is `Trainer.start`.
"""

from __future__ import annotations

import logging
import math
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import nn
from tqdm import tqdm

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.dataset import Batch, TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext, no_sync
from tokenverse_pp.data.samplers import SamplerState, TrainSampler, train_batches
from tokenverse_pp.models.bundle import load_weights, pretrained_prefixes
from tokenverse_pp.models.compat import autocast, grad_scaler
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.checkpoints import (
    Saver,
    changed_options,
    check_unchanged,
    fingerprints,
    set_later_aside,
)
from tokenverse_pp.training.log import Meter, RunLog, add_drawn, drawn_table, plot_curves, read_log
from tokenverse_pp.training.optim import FreezeSchedule, TrainedRows, loss_scales, lr_factor, make_optimizer, set_lr
from tokenverse_pp.training.scan import scan
from tokenverse_pp.training.steps import (
    LEAST_SCALE,
    Progress,
    StepResult,
    cut_ids,
    dump_batches,
    forward,
    naming_memory,
    not_finite,
    to_device,
)
from tokenverse_pp.training.transfer import Before, InitialModel, as_state, start_from
from tokenverse_pp.training.validation import Validator, describe

LOG = logging.getLogger(__name__)


class Trainer:
    """Trains a model: `start` first, then `run`.

    Args:
        config: the resolved configuration.
        model: not wrapped, on the device of ``world``.
        dataset: makes the training batches.
        sampler: draws their cuts (of this rank).
        validator: scores the model, or None.
        world: this process and the number of its peers.
        before: tasks and vocabulary of the model that the run starts from, if any.
    """

    def __init__(
        self,
        config: Config,
        model: Transducer,
        dataset: TransducerDataset,
        sampler: TrainSampler,
        validator: Optional[Validator],
        world: DistributedContext,
        before: Optional[Before] = None,
    ):
        self.config = config
        self.model = model
        self.dataset = dataset
        self.sampler = sampler
        self.validator = validator
        self.world = world
        self.exp_dir = Path(config.training.exp_dir)
        mode, names = config.training.train_only, dataset.tasks.names
        self.rows = TrainedRows(model, before, names, mode) if before and mode != "all" else None
        undecayed = self.rows.partly if self.rows else ()
        self.optimizer = make_optimizer(model, config.optim, pretrained_prefixes(config), undecayed)
        self.scaler = grad_scaler(world.device, config.training.precision)
        self.freezing = FreezeSchedule(model, config.training.freeze)
        self.saver = Saver(config, model, self.optimizer, self.scaler, dataset.tokenizer, world.size)
        self.saver.origin["before"] = as_state(before)
        self.progress = Progress()
        self.saved = 0  # step of the latest checkpoint
        self.meter = Meter(dataset.tasks.names)

    def run(self) -> Path:
        """Train to the end; return the folder of the averaged model."""
        t = self.config.training
        self.stepper = Stepper(self.model, self.optimizer, self.config, self.world, self.scaler, self.rows)
        self.model.train()
        if t.scan:
            for line in scan(self.model, self.sampler, self.dataset, self.config, self.world):
                self.say(line)
        log = RunLog(self.exp_dir, self.step) if self.world.is_first else None
        bar = tqdm(total=t.max_steps, initial=self.step, unit="step", disable=None if self.world.is_first else True)
        self.meter.start_over()
        for place, batches in self.draw():
            self.train_step(place, batches)
            bar.update()
            last = self.step >= t.max_steps
            if self.step % t.log_every == 0 or last:
                self.log(log, bar)
            validated = bool(self.validator) and (self.step % t.valid_every == 0 or last)
            if validated:
                self.validate(log)
            if self.step % t.save_every == 0 or (validated and t.keep_best):
                self.save()
            self.meter.restart()  # do not count validation and saving as training time
            if last:
                break
        bar.close()
        if self.saved < self.step:
            self.save()
        if log:
            log.close()
            self.say(drawn_table(add_drawn(r["corpora"] for r in read_log(log.path) if r["kind"] == "drawn")))
        return self.finish()

    def draw(self) -> Iterator[Tuple[SamplerState, List[Batch]]]:
        """Yield the batches of each step, and the place in the data after them.

        A step has `training.accumulate` batches, the last one of an epoch may have fewer. All ranks agree before each
        step that none has reached the end of the epoch.
        """
        t = self.config.training
        start = self.progress.place
        for epoch in range(start.epoch, t.epochs if self.step < t.max_steps else 0):
            batches = self.meter.waiting(train_batches(self.sampler, self.dataset, self.config.data, start))
            steps = 0
            while True:
                drawn = list(islice(batches, t.accumulate))
                if not self.world.all_(bool(drawn)):
                    break
                steps += 1
                yield drawn[-1][0], [batch for _, batch in drawn]
            if steps == 0 and start == SamplerState(epoch):
                raise UserError("--data.train: no cut is left to train on")
            start = SamplerState(epoch + 1)

    def train_step(self, place: SamplerState, batches: List[Batch]) -> StepResult:
        """Freeze or unfreeze layers, make one optimizer step, count it, and update the running average."""
        p = self.progress
        if self.freezing.apply(p.updates) or self.stepper.model is self.model:
            # DDP needs to know which parameters have gradients: wrap the model again when they change.
            self.stepper.model = self.model  # free the gradient buckets of the old wrapper first
            self.stepper.model = self.world.wrap(self.model)
        result = self.stepper(batches, p.step, p.skipped_steps)
        p.step, p.place, p.valid = p.step + 1, place, None
        p.skipped_steps += result.skipped
        self._check(result, batches)
        self.meter.add(result, batches)
        if self.saver.average is not None and self.world.is_first:
            self.saver.average.update(self.model.checkpoint_state(), self.step)
        return result

    def log(self, log: Optional[RunLog], bar: tqdm) -> None:
        """Write a record of the steps since the last one (first rank), with what all ranks have drawn."""
        drawn = add_drawn(self.world.gather(self.meter.drawn))
        if log:
            p, optim = self.progress, self.config.optim
            factor = lr_factor(max(0, p.updates - 1), optim, self.config.training.max_steps)
            record = {**self.meter.mean(), "epoch": p.place.epoch, "lr": optim.lr * factor}
            record.update(bad_steps=p.bad_steps, skipped_steps=p.skipped_steps)
            log.write("train", self.step, record)
            log.note("drawn", self.step, {"corpora": drawn})
            shown = {"loss": f"{record['pruned']:.3f}", "speed": f"{record['speed']:.0f}x"}
            bar.set_postfix(epoch=p.place.epoch, **shown, wait=f"{record['data_wait']:.0%}")
        self.meter.start_over()

    def validate(self, log: Optional[RunLog]) -> None:
        """Score the model on the validation cuts."""
        self._share_trained()
        self.progress.valid = scores = self.validator(self.model)  # type: ignore[misc]
        if log:
            log.write("valid", self.step, scores)
        self.say(f"step {self.step}: {describe(scores)}")

    def save(self) -> None:
        """Write a checkpoint (first rank), and remove those that are no longer needed."""
        self._share_trained()
        if self.world.is_first:
            self.saver.save(self.progress)
        self.saved = self.step
        self.world.barrier()

    def finish(self) -> Path:
        """Average the last checkpoints into ``model/`` and score it."""
        folder = self.exp_dir / "model"
        if self.world.is_first:
            self.saver.write_model()
            plot_curves(self.exp_dir)
        self.world.barrier()
        load_weights(self.model, folder)
        if self.validator:
            self.say(f"average of the last checkpoints: {describe(self.validator(self.model))}")
        return folder

    @property
    def step(self) -> int:
        """Steps made since the run began, those before a resume included."""
        return self.progress.step

    @property
    def trained(self) -> int:
        """The number of trained parameters."""
        if self.rows:
            return self.rows.count(self.model)
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def say(self, line: str) -> None:
        """Log a message, on the first rank."""
        if self.world.is_first:
            LOG.info(line)

    def start(self, folder: Optional[Path] = None, source: Optional[InitialModel] = None) -> None:
        """Resume from a checkpoint (see `checkpoints.find_start`), or start from another model, or from scratch.

        All input is checked before the experiment folder is written to.
        """
        corpora = self.world.from_first(lambda: fingerprints(self.sampler.rounds.sources))
        if folder:
            self._resume(folder, corpora)
        elif source:
            added = start_from(source, self.model, self.dataset.tasks, self.dataset.tokenizer, self.say)
            self.say(f"starting from the weights of {source.folder}{'; new: ' if added else ''}{', '.join(added)}")
        self.sampler.look()
        self.world.barrier()  # all have read before the first writes
        if self.world.is_first:
            self.saver.prepare(corpora)
            for aside in set_later_aside(self.exp_dir, self.step):
                self.say(f"set aside: {aside}")

    def _resume(self, folder: Path, corpora: List[Dict[str, Any]]) -> None:
        """Take weights, optimiser and place in the data from a checkpoint."""
        self.progress, state = self.saver.load(folder)
        check_unchanged(folder, state, corpora, self.config)
        self.saved = self.step
        changed = changed_options(folder, self.config)
        if changed:
            self.say(f"options changed since {folder.name}: {', '.join(changed)}")
        ranks = state["world_size"]
        if ranks != self.world.size:
            # Batches are drawn for all ranks at once: as many cuts are passed over, though not quite the same ones.
            place = self.progress.place
            self.progress.place = place._replace(batch=place.batch * ranks // self.world.size)
            self.say(f"{folder.name} is of {ranks} ranks, now {self.world.size}: the rest of the round is drawn anew")
        self.say(f"resuming from {folder.name}: {self.progress.place}")

    def _share_trained(self) -> None:
        """Tell all ranks which combinations of tasks any of them has trained."""
        for name, buffer in self.model.named_buffers():
            if name.endswith("vectors.trained"):
                self.world.any_(buffer)

    def _check(self, result: StepResult, batches: List[Batch]) -> None:
        """Report and write down the cuts of a step with a loss or gradient that is not finite; stop after too many."""
        p, most = self.progress, self.config.training.max_bad_steps
        if result.overflow:
            return
        p.bad_in_a_row = p.bad_in_a_row + 1 if result.skipped else 0
        if not result.skipped:
            return
        p.bad_steps += 1
        # Where some cut's loss is not finite, that is the reason; otherwise any rank may have it.
        if result.bad_cuts or result.loss == result.loss:
            ids = ", ".join(result.bad_cuts or cut_ids(batches))
            folder = dump_batches(self.exp_dir, self.step, self.world.rank, batches, result.bad_cuts)
            LOG.warning(
                f"step {self.step} skipped: {'loss' if result.bad_cuts else 'gradient'} not finite "
                f"(rank {self.world.rank}: {ids}); see {folder}"
            )
        if p.bad_in_a_row >= most:
            raise UserError(
                f"{most} steps in a row had no finite loss and gradient, the last one step {self.step}: "
                f"see {self.exp_dir / 'bad_batches'}; lower --optim.lr?"
            )


class Stepper:
    """Makes optimiser steps.

    The loss of a step is the sum over all its utterances (all ranks, all accumulated batches) divided by the sum of
    their frames, so that neither the number of ranks nor the composition of batches changes it.

    Args:
        model: wrapped or not.
        optimizer: of its parameters.
        config: the resolved configuration.
        world: this process among its peers.
        scaler: of the loss; by default one that suits device and precision.
        rows: the rows that are trained of parameters that are trained in part, if any.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
        world: DistributedContext,
        scaler: Any = None,
        rows: Optional[TrainedRows] = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.world = world
        self.scaler = grad_scaler(world.device, config.training.precision) if scaler is None else scaler
        self.rows = rows
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batches: Sequence[Batch], step: int, skipped: int = 0) -> StepResult:
        """Forward, backward and update on this rank's batches.

        Args:
            batches: of this rank; gradients are accumulated over them.
            step: its number, from 0.
            skipped: number of earlier steps that changed no weight; the schedules do not count them.
        """
        c = self.config
        update = step - skipped
        # Dropout and masks depend on seed, step and rank alone: a resumed run draws the same without stored RNG states.
        torch.manual_seed((c.training.seed * 1_000_003 + step) * 4096 + self.world.rank)
        simple_scale, pruned_scale = loss_scales(update, c.model.loss)
        ctc_scale = c.model.loss.ctc_scale
        # Forward and backward.
        sums = torch.zeros(4, dtype=torch.float64)
        bad_cuts: List[str] = []
        for i, batch in enumerate(batches):
            with naming_memory(batch), no_sync(self.model, wait=i + 1 < len(batches)):
                batch = to_device(batch, self.world.device)
                with autocast(self.world.device, c.training.precision):
                    losses = forward(self.model, batch, c.data.stored_features)
                simple, pruned, ctc = losses.simple.sum(), losses.pruned.sum(), losses.ctc.sum()
                total = simple_scale * simple + pruned_scale * pruned + ctc_scale * ctc
                self.scaler.scale(total).backward()
            if not math.isfinite(total.item()):
                bad_cuts += not_finite(losses, batch)
            sums += torch.stack([simple.detach(), pruned.detach(), ctc.detach(), losses.frames.sum()]).double().cpu()
        # Means over all ranks.
        tokens = float(sum(int(batch["token_lens"].sum()) for batch in batches))
        seconds = sum(batch["seconds"] for batch in batches)
        totals = self.world.sum([*sums.tolist(), tokens, seconds])
        frames, tokens, seconds = totals[3:]
        simple_mean, pruned_mean, ctc_mean = (value / frames for value in totals[:3])
        loss = simple_scale * simple_mean + pruned_scale * pruned_mean + ctc_scale * ctc_mean
        # Update.
        norm = self._scale_gradients(frames)
        # The lattice gives no gradient where it has no finite score, so a loss of NaN can leave finite gradients.
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        loss_scale = float(self.scaler.get_scale())
        # Gradients that overflow in float16 are how the scaler finds its scale; at the least scale they are an error.
        overflow = skipped and math.isfinite(loss) and self.scaler.is_enabled() and loss_scale > LEAST_SCALE
        set_lr(self.optimizer, lr_factor(update, c.optim, c.training.max_steps))
        if not skipped:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        means = (loss, simple_mean, pruned_mean, frames, tokens, seconds, norm, skipped, ctc_mean)
        return StepResult(*means, loss_scale, overflow, tuple(bad_cuts))

    def _scale_gradients(self, frames: float) -> float:
        """Divide the gradients by the frames and clip them; return their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        # DDP has averaged over ranks; the sum is wanted.
        scale = self.world.size / frames
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        if self.rows is not None:
            self.rows.mask_gradients()
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip))


def set_threads(count: int) -> None:
    """Limit torch's CPU threads, if asked to."""
    if count:
        torch.set_num_threads(count)
