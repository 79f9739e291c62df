"""The training loop: epochs of steps, validation, checkpoints, resume, and the averaged model at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from tqdm import tqdm

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.dataset import Batch, TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import SamplerState, TrainSampler, train_batches
from tokenverse_pp.models.bundle import load_weights, pretrained_prefixes
from tokenverse_pp.models.compat import grad_scaler
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.checkpoints import (
    Progress,
    Saver,
    changed_options,
    check_unchanged,
    fingerprints,
    set_later_aside,
)
from tokenverse_pp.training.log import Meter, RunLog, add_drawn, drawn_table, plot_curves, read_log
from tokenverse_pp.training.optim import lr_factor, make_optimizer
from tokenverse_pp.training.partial import FreezeSchedule, TrainedRows
from tokenverse_pp.training.scan import scan
from tokenverse_pp.training.steps import Stepper, StepResult, cut_ids, dump_batches
from tokenverse_pp.training.transfer import Before, InitialModel, as_state, start_from
from tokenverse_pp.training.validation import Validator, describe


class Trainer:
    """Trains a model.

    Args:
        config: the whole configuration.
        model: not wrapped, on the world's device.
        dataset: makes the training batches.
        sampler: draws their cuts (this rank's).
        validator: scores the model, or None.
        world: this process among its peers.
        before: what the model was before the run, if it was anything.
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
        self.saved = 0  # the step of the newest checkpoint
        self.meter = Meter(dataset.tasks.names)

    @property
    def step(self) -> int:
        """Steps made since the run began, those before a resume included."""
        return self.progress.step

    def say(self, line: str) -> None:
        """Tell the user, once."""
        if self.world.is_first:
            tqdm.write(line, file=sys.stderr)

    def run(self) -> Path:
        """Train to the end, once started; returns the folder of the averaged model."""
        t = self.config.training
        stepper = Stepper(self.model, self.optimizer, self.config, self.world, self.scaler, self.rows)
        self.model.train()
        if t.scan:
            for line in scan(self.model, self.sampler, self.dataset, self.config, self.world):
                self.say(line)
        log = RunLog(self.exp_dir, self.step) if self.world.is_first else None
        bar = tqdm(total=t.max_steps, initial=self.step, unit="step", disable=None if self.world.is_first else True)
        self.meter.start_over()
        for place, batches in self._batches():
            self._step(stepper, place, batches)
            bar.update()
            last = self.step >= t.max_steps
            if self.step % t.log_every == 0 or last:
                self._log(log, bar)
            validated = bool(self.validator) and (self.step % t.valid_every == 0 or last)
            if validated:
                self._validate(log)
            if self.step % t.save_every == 0 or (validated and t.keep_best):
                self._save()
            self.meter.restart()
            if last:
                break
        bar.close()
        if self.saved < self.step:
            self._save()
        if log:
            log.close()
            drawn = add_drawn(r["corpora"] for r in read_log(log.path) if r["kind"] == "drawn")
            self.say(drawn_table(drawn))
        return self._finish()

    def _step(self, stepper: Stepper, place: SamplerState, batches: List[Batch]) -> None:
        """One step, and what is counted and averaged after it."""
        p = self.progress
        if self.freezing.apply(p.updates) or stepper.model is self.model:
            # DDP wants to know the parameters that have gradients: it is made anew when they change.
            stepper.model = self.model  # the old one's gradient buckets go before new ones come
            stepper.model = self.world.wrap(self.model)
        result = stepper(batches, p.step, p.skipped_steps)
        p.step, p.place, p.valid = p.step + 1, place, None
        p.skipped_steps += result.skipped
        self._check(result, batches)
        self.meter.add(result, batches)
        if self.saver.average is not None and self.world.is_first:
            self.saver.average.update(self.model.checkpoint_state(), self.step)

    def _log(self, log: Optional[RunLog], bar: tqdm) -> None:
        """Write down the steps since the last time (first rank), and what all ranks have drawn in them."""
        drawn = add_drawn(self.world.gather(self.meter.drawn))
        if log:
            factor = lr_factor(max(0, self.progress.updates - 1), self.config.optim, self.config.training.max_steps)
            record = {**self.meter.mean(), "epoch": self.progress.place.epoch, "lr": self.config.optim.lr * factor}
            record["bad_steps"] = self.progress.bad_steps
            record["skipped_steps"] = self.progress.skipped_steps
            log.write("train", self.step, record)
            log.note("drawn", self.step, {"corpora": drawn})
            said = {"loss": f"{record['pruned']:.3f}", "speed": f"{record['speed']:.0f}x"}
            bar.set_postfix(epoch=self.progress.place.epoch, **said, wait=f"{record['data_wait']:.0%}")
        self.meter.start_over()

    def _batches(self) -> Iterator[Tuple[SamplerState, List[Batch]]]:
        """The batches of one step and the place after them; nothing is left over between epochs.

        An epoch ends for all ranks as soon as it ends for one: they agree on it before each step.
        """
        t = self.config.training
        if self.step >= t.max_steps:
            return  # resumed when nothing was left to do
        start = self.progress.place
        for epoch in range(start.epoch, t.epochs):
            steps = 0
            for place, batches in self._held(start):
                if not self.world.all_(True):
                    break
                steps += 1
                yield place, batches
            else:
                self.world.all_(False)
            if steps == 0 and start == SamplerState(epoch):
                raise UserError("--data.train: no cut is left to train on")
            start = SamplerState(epoch + 1)

    def _held(self, start: SamplerState) -> Iterator[Tuple[SamplerState, List[Batch]]]:
        """This rank's batches of the rest of an epoch, as many as a step takes at a time."""
        held: List[Batch] = []
        place = start
        batches = train_batches(self.sampler, self.dataset, self.config.data, start)
        for place, batch in self.meter.waiting(batches):
            held.append(batch)
            if len(held) == self.config.training.accumulate:
                yield place, held
                held = []
        if held:
            yield place, held

    @property
    def trained(self) -> int:
        """How many numbers of the model are trained."""
        if self.rows:
            return self.rows.count(self.model)
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def start(self, folder: Optional[Path] = None, source: Optional[InitialModel] = None) -> None:
        """Go on from a checkpoint (see `resume.find_start`), or start from another model, or from nothing.

        Whatever can be wrong with these is found before the experiment folder is touched.
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

    def _check(self, result: StepResult, batches: List[Batch]) -> None:
        """Name and write down the cuts of a step whose loss or gradient was not finite; give up after too many."""
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
            tqdm.write(
                f"step {self.step} skipped: {'loss' if result.bad_cuts else 'gradient'} not finite "
                f"(rank {self.world.rank}: {ids}); see {folder}",
                file=sys.stderr,
            )
        if p.bad_in_a_row >= most:
            raise UserError(
                f"{most} steps in a row had no finite loss and gradient, the last one step {self.step}: "
                f"see {self.exp_dir / 'bad_batches'}; lower --optim.lr?"
            )

    def _validate(self, log: Optional[RunLog]) -> None:
        self._share_trained()
        scores = self.validator(self.model)  # type: ignore[misc]
        self.progress.valid = scores
        if log:
            log.write("valid", self.step, scores)
        self.say(f"step {self.step}: {describe(scores)}")

    def _share_trained(self) -> None:
        """Have all ranks know the combinations of tasks that any of them has trained."""
        for name, buffer in self.model.named_buffers():
            if name.endswith("vectors.trained"):
                self.world.any_(buffer)

    def _save(self) -> None:
        """Write a checkpoint (first rank), and drop those that need not be kept."""
        self._share_trained()
        if self.world.is_first:
            self.saver.save(self.progress)
        self.saved = self.step
        self.world.barrier()

    def _finish(self) -> Path:
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


def set_threads(count: int) -> None:
    """Limit torch's CPU threads, if asked to."""
    if count:
        torch.set_num_threads(count)
