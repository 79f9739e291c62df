"""The training loop: epochs of steps, validation, checkpoints, resume, and the averaged model at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from tqdm import tqdm

from tokenverse_pp.config import Config, save_config
from tokenverse_pp.dataset import Batch, TransducerDataset
from tokenverse_pp.errors import UserError
from tokenverse_pp.model.transducer import Transducer
from tokenverse_pp.tokenizer import Tokenizer
from tokenverse_pp.training import checkpoint
from tokenverse_pp.training.data import Place, TrainSampler, train_batches
from tokenverse_pp.training.distributed import World
from tokenverse_pp.training.log import RunLog, plot_curves, read_log
from tokenverse_pp.training.meter import Meter, add_drawn, drawn_table
from tokenverse_pp.training.optim import lr_factor, make_optimizer
from tokenverse_pp.training.setup import check_vocabulary, find_model, load_weights, pretrained_prefixes
from tokenverse_pp.training.steps import Stepper, StepResult, cut_ids
from tokenverse_pp.training.validate import Validator, describe

MAX_SKIPPED = 20  # steps in a row whose gradient is not finite


class Trainer:
    """Trains a model.

    Args:
        config: the whole configuration.
        model: not wrapped, on the world's device.
        dataset: makes the training batches.
        sampler: draws their cuts (this rank's).
        validator: scores the model, or None.
        world: this process among its peers.
    """

    def __init__(
        self,
        config: Config,
        model: Transducer,
        dataset: TransducerDataset,
        sampler: TrainSampler,
        validator: Optional[Validator],
        world: World,
    ):
        self.config = config
        self.model = model
        self.dataset = dataset
        self.sampler = sampler
        self.validator = validator
        self.world = world
        self.exp_dir = Path(config.training.exp_dir)
        self.optimizer = make_optimizer(model, config.optim, pretrained_prefixes(config))
        self.step = self.skipped = 0
        self.place = Place()
        self.saved = 0  # the step of the newest checkpoint
        self.meter = Meter(dataset.tasks.names)

    def say(self, line: str) -> None:
        """Tell the user, once."""
        if self.world.is_first:
            tqdm.write(line, file=sys.stderr)

    def run(self) -> Path:
        """Train to the end, once started; returns the folder of the averaged model."""
        t = self.config.training
        stepper = Stepper(self.world.wrap(self.model), self.optimizer, self.config, self.world)
        self.model.train()
        log = RunLog(self.exp_dir, self.step) if self.world.is_first else None
        bar = tqdm(total=t.max_steps, initial=self.step, unit="step", disable=None if self.world.is_first else True)
        self.meter.start_over()
        for place, batches in self._batches():
            result = stepper(batches, self.step)
            self.step, self.place = self.step + 1, place
            self._check(result, batches)
            self.meter.add(result, batches)
            bar.update()
            last = self.step >= t.max_steps
            if self.step % t.log_every == 0 or last:
                self._log(log, bar)
            if self.validator and (self.step % t.valid_every == 0 or last):
                self._validate(log)
            if self.step % t.save_every == 0:
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

    def _log(self, log: Optional[RunLog], bar: tqdm) -> None:
        """Write down the steps since the last time (first rank), and what all ranks have drawn in them."""
        drawn = add_drawn(self.world.gather(self.meter.drawn))
        if log:
            factor = lr_factor(self.step - 1, self.config.optim, self.config.training.max_steps)
            record = {**self.meter.mean(), "epoch": self.place.epoch, "lr": self.config.optim.lr * factor}
            log.write("train", self.step, record)
            log.note("drawn", self.step, {"corpora": drawn})
            said = {"loss": f"{record['pruned']:.3f}", "speed": f"{record['speed']:.0f}x"}
            bar.set_postfix(epoch=self.place.epoch, **said, wait=f"{record['data_wait']:.0%}")
        self.meter.start_over()

    def _batches(self) -> Iterator[Tuple[Place, List[Batch]]]:
        """The batches of one step and the place after them; nothing is left over between epochs."""
        t = self.config.training
        start = self.place
        if self.step >= t.max_steps:
            return  # resumed when nothing was left to do
        for epoch in range(start.epoch, t.epochs):
            held: List[Batch] = []
            place = start
            for place, batch in train_batches(self.sampler, self.dataset, self.config.data, start):
                held.append(batch)
                if len(held) == t.accumulate:
                    yield place, held
                    held = []
            if place == Place(epoch):
                raise UserError("--data.train: no cut is left to train on")
            if held:
                yield place, held
            start = Place(epoch + 1)

    def start(self) -> None:
        """Resume from the newest checkpoint, or start from ``init_from``, or from nothing.

        Whatever can be wrong with these is found before the experiment folder is touched.
        """
        t = self.config.training
        found = checkpoint.list_checkpoints(self.exp_dir)
        if found and not t.resume:
            raise UserError(f"{self.exp_dir} holds checkpoints: pass --training.resume true, or another exp_dir")
        if found:
            self._resume(found[-1])
        elif t.init_from:
            folder = find_model(Path(t.init_from))
            check_vocabulary(folder, self.dataset.tokenizer)
            load_weights(self.model, folder)
            self.say(f"starting from the weights of {folder}")
        self.world.barrier()  # all have read before the first writes
        if self.world.is_first:
            prepare_exp_dir(self.config, self.dataset.tokenizer)

    def _resume(self, folder: Path) -> None:
        """Take weights, optimiser and place in the data from a checkpoint."""
        check_vocabulary(folder, self.dataset.tokenizer)
        load_weights(self.model, folder)
        checkpoint.load_optimizer(self.optimizer, checkpoint.read_tensors(folder / checkpoint.OPTIMIZER))
        state = checkpoint.read_state(folder)
        self.step, self.place = state["step"], Place(state["epoch"], state["round"], state["batch"])
        self.saved = self.step
        if state["world_size"] != self.world.size:
            self.say(
                f"resuming {folder.name} with {self.world.size} ranks, it had {state['world_size']}: other batches"
            )
        self.say(f"resuming from {folder.name}: epoch {self.place.epoch}, batch {self.place.batch}")

    def _check(self, result: StepResult, batches: List[Batch]) -> None:
        """Name the cuts of a step whose loss or gradient was not finite; give up after too many in a row."""
        self.skipped = self.skipped + 1 if result.skipped else 0
        if result.skipped:
            ids = ", ".join(cut_ids(batches))
            tqdm.write(
                f"step {self.step} skipped: loss or gradient not finite (rank {self.world.rank}: {ids})",
                file=sys.stderr,
            )
        if self.skipped >= MAX_SKIPPED:
            raise UserError(f"{MAX_SKIPPED} steps in a row had no finite loss and gradient; lower --optim.lr?")

    def _validate(self, log: Optional[RunLog]) -> None:
        self._share_trained()
        scores = self.validator(self.model)  # type: ignore[misc]
        if log:
            log.write("valid", self.step, scores)
            plot_curves(self.exp_dir)
        self.say(f"step {self.step}: {describe(scores)}")

    def _texts(self) -> Dict[str, bytes]:
        """The files of a model folder beside its weights."""
        path = self.exp_dir / checkpoint.CONFIG
        return {checkpoint.CONFIG: path.read_bytes(), checkpoint.TOKENIZER: self.dataset.tokenizer.model}

    def _share_trained(self) -> None:
        """Have all ranks know the combinations of tasks that any of them has trained."""
        for name, buffer in self.model.named_buffers():
            if name.endswith("vectors.trained"):
                self.world.any_(buffer)

    def _save(self) -> None:
        """Write a checkpoint (first rank), and drop the oldest."""
        self._share_trained()
        if self.world.is_first:
            state = {
                "step": self.step,
                **self.place._asdict(),
                "world_size": self.world.size,
            }
            tensors = {
                checkpoint.WEIGHTS: self.model.checkpoint_state(),
                checkpoint.OPTIMIZER: checkpoint.optimizer_tensors(self.optimizer),
            }
            texts = {**self._texts(), checkpoint.STATE: json.dumps(state).encode()}
            checkpoint.write_folder(checkpoint.checkpoint_dir(self.exp_dir, self.step), tensors, texts)
            checkpoint.keep_last(self.exp_dir, self.config.training.keep_last)
        self.saved = self.step
        self.world.barrier()

    def _finish(self) -> Path:
        """Average the last checkpoints into ``model/`` and score it."""
        folder = self.exp_dir / "model"
        if self.world.is_first:
            last = checkpoint.list_checkpoints(self.exp_dir)[-self.config.training.average_last :]
            checkpoint.write_folder(folder, {checkpoint.WEIGHTS: checkpoint.average(last)}, self._texts())
            plot_curves(self.exp_dir)
        self.world.barrier()
        load_weights(self.model, folder)
        if self.validator:
            self.say(f"average of the last checkpoints: {describe(self.validator(self.model))}")
        return folder


def prepare_exp_dir(config: Config, tokenizer: Tokenizer) -> None:
    """Make the experiment folder and write the resolved configuration and the tokenizer into it."""
    exp_dir = Path(config.training.exp_dir)
    try:
        exp_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, exp_dir / checkpoint.CONFIG)
        tokenizer.save(exp_dir / checkpoint.TOKENIZER)
    except OSError as error:
        raise UserError(f"--training.exp_dir: {exp_dir}: cannot be written: {error.strerror}") from None


def set_threads(count: int) -> None:
    """Limit torch's CPU threads, if asked to."""
    if count:
        torch.set_num_threads(count)
