"""The training loop: draw, step, log, validate, save (`Trainer.run`), and what a run starts from (`Trainer.start`).

One optimizer step (forward, backward, update) is `tokenverse_pp.training.steps.Stepper`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from tqdm import tqdm

from tokenverse_pp.base.config import Config, DataConfig
from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.dataset import Batch, TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext, gathered, unsharded
from tokenverse_pp.data.samplers import SamplerState, TrainSampler, train_batches
from tokenverse_pp.losses.devices import compiled_layer, grad_scaler
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import load_weights, pretrained_prefixes
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.checkpoints import Saver, changed_options, check_unchanged, retain, set_later_aside
from tokenverse_pp.training.failures import StopRequest
from tokenverse_pp.training.inputs import same_corpora
from tokenverse_pp.training.log import Meter, RunLog, add_drawn, drawn_table, plot_curves, read_log
from tokenverse_pp.training.memory import pick_recomputed
from tokenverse_pp.training.optim import FreezeSchedule, TrainedRows, lr_factor, make_optimizer
from tokenverse_pp.training.steps import (
    BAD_BATCHES,
    MOST_DUMPS,
    Progress,
    Stepper,
    StepResult,
    cut_ids,
    dump_batches,
    scan,
)
from tokenverse_pp.training.storage import RemoteRun
from tokenverse_pp.training.transfer import Before, InitialModel, new_below_mean, start_from, start_from_pretrained
from tokenverse_pp.training.validation import Validator, describe

LOG = logging.getLogger(__name__)


class Trainer:
    """Trains a model: `start` first, then `run`.

    Args:
        model: not wrapped for DDP, on the device of ``world``; with ``training.strategy: fsdp`` it is sharded in place.
        validator: scores the model; None: no validation.
        before: tasks and vocabulary of the model that the run starts from, if any.
        remote: uploads the experiment folder, if it is in object storage and this is the first rank.
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
        remote: Optional[RemoteRun] = None,
    ):
        self.config = config
        self.model = model
        self.dataset = dataset
        self.sampler = sampler
        self.validator = validator
        self.world = world
        self.exp_dir = Path(config.training.exp_dir)
        if config.training.strategy == "fsdp":
            world.shard(model, model.encoder.backbone.shardable_layers)
        mode, names = config.training.train_only, dataset.tasks.names
        self.rows = TrainedRows(model, before, names, mode) if before and mode != "all" else None
        undecayed = self.rows.partly if self.rows else ()
        self.optimizer = make_optimizer(model, config.optim, pretrained_prefixes(config), undecayed)
        self.scaler = grad_scaler(world.device, config.training.precision)
        if config.training.compile:
            model.encoder.compile_layers(compiled_layer(world.device))
        self.freezing = FreezeSchedule(model, config.training.freeze)
        self.saver = Saver(config, model, self.optimizer, self.scaler, dataset.tokenizer, world.size, undecayed)
        self.saver.origin["before"] = before and asdict(before)
        self.remote = remote
        self.progress = Progress()
        self.saved = 0  # step of the latest checkpoint
        self.stop = StopRequest()
        self.stopped = False
        self.meter = Meter(dataset.tasks.names, rows=2 if config.tasks.paired else 1)
        self.drawn = -1  # step up to which this process has drawn the curves

    def run(self, stop: Optional[StopRequest] = None) -> Optional[Path]:
        """Train until the last step or epoch; return the folder of the averaged model.

        If ``stop`` asks any rank to stop, all ranks save a checkpoint after the step, and return None.
        """
        try:
            with stop or StopRequest() as self.stop:
                self._train()
            return None if self.stopped else self.finish()
        finally:
            self.saver.release()

    def _train(self) -> None:
        """The loop of `run`."""
        t = self.config.training
        self.stepper = Stepper(self.model, self.optimizer, self.config, self.world, self.scaler, self.rows)
        self.model.train()
        if self.config.model.encoder.checkpoint_layers == "auto":
            picked = pick_recomputed(self.model, self.optimizer, self.sampler, self.dataset, self.config, self.world)
            self.say(picked or "checkpoint_layers auto: memory is not measured on a CPU")
        if t.scan:
            for line in scan(self.model, self.sampler, self.dataset, self.config, self.world):
                self.say(line)
        log = RunLog(self.exp_dir, self.step) if self.world.writes else None
        bar = tqdm(total=t.max_steps, initial=self.step, unit="step", disable=None if self.world.is_first else True)
        if t.valid_first and self.validator and self.step == 0 and self.progress.valid is None:
            self.validate(log)
            if t.keep_best or t.patience:
                self.save()
        self.meter.start_over()
        begun = self.step
        if begun >= t.max_steps or self.exhausted or self.progress.place.epoch >= t.epochs:
            self.say(f"nothing left to train after step {begun} (training.max_steps {t.max_steps})")
        for place, batches in self.draw():
            self.train_step(place, batches)
            bar.update()
            last = self.step >= t.max_steps
            if self.step % t.log_every == 0 or last:
                self.log(log, bar)
            validated = bool(self.validator) and (self.step % t.valid_every == 0 or last)
            if validated:
                self.validate(log)
                if self.exhausted:
                    self.say(f"no better for {t.patience} validations: stopping")
                    last = True
            if self.step % t.save_every == 0 or (validated and (t.keep_best or t.patience)):
                self.note_drawn(log)  # a run that is resumed from here has only the records up to here
                self.save()
            self.meter.restart()  # validation and saving are not training time
            if last:
                break
        # As for the last of training.max_steps, if epochs or a signal end the run earlier.
        if self.meter.results:
            self.log(log, bar)
        if self.saved < self.step:
            self.save()
        if self.validator and self.progress.valid is None and self.step > begun and not self.stopped:
            self.validate(log)
            self.save()  # again, with the scores
        bar.close()
        if self.stopped:
            self.say(f"stopped by a signal after step {self.step}: run the same command again to resume")
        if log:
            log.close()
            self.say(drawn_table(add_drawn(r["corpora"] for r in read_log(log.path) if r["kind"] == "drawn")))

    def draw(self) -> Iterator[Tuple[SamplerState, List[Batch]]]:
        """Yield the batches of each step and the sampler's state after them.

        A step has ``training.accumulate`` batches; the last step of an epoch may have fewer. An epoch ends on all ranks
        as soon as one rank has no batch left, and the run as soon as one rank is asked to stop.
        """
        t = self.config.training
        start = self.progress.place
        for epoch in range(start.epoch, t.epochs if self.step < t.max_steps and not self.exhausted else 0):
            batches = self.meter.waiting(train_batches(self.sampler, self.dataset, self.config.data, start))
            steps = 0
            while True:
                drawn = list(islice(batches, t.accumulate))
                ready, stops = self.world.sum([bool(drawn), self.stop.made])
                if stops:
                    self.stop.agreed()
                    self.stopped = True
                    return
                if ready < self.world.size:
                    break
                steps += 1
                yield drawn[-1][0], [batch for _, batch in drawn]
            if steps == 0 and start == SamplerState(epoch):
                raise UserError("--data.train: no cut is left to train on")
            start = SamplerState(epoch + 1)

    def train_step(self, place: SamplerState, batches: List[Batch]) -> StepResult:
        """Freeze or unfreeze layers, make one optimizer step, and update the counters and the running average."""
        p = self.progress
        if self.freezing.apply(p.updates) or self.stepper.model is self.model:
            # DDP must know which parameters have gradients: wrap the model again whenever they change.
            self.stepper.model = self.model  # frees the gradient buckets of the old wrapper
            self.stepper.model = self.world.wrap(self.model)
        result = self.stepper(batches, p.step, p.skipped_steps)
        p.step, p.place, p.valid = p.step + 1, place, None
        p.skipped_steps += result.skipped
        self._check(result, batches)
        self.meter.add(result, batches)
        average = self.saver.average
        if average is not None and self.step % average.period == 0:
            weights = gathered(self.model.checkpoint_state(), keep=self.world.writes)
            if self.world.writes:
                average.update(weights, self.step)
        return result

    def log(self, log: Optional[RunLog], bar: tqdm) -> None:
        """Write a record of the steps since the last record, and of the cuts that all ranks have drawn."""
        self.note_drawn(log)
        if log:
            p, optim = self.progress, self.config.optim
            factor = lr_factor(max(0, p.updates - 1), optim, self.config.training.max_steps)
            record = {**self.meter.mean(), "epoch": p.place.epoch, "lr": optim.lr * factor}
            record.update(bad_steps=p.bad_steps, skipped_steps=p.skipped_steps)
            log.write("train", self.step, record)
            shown = {"loss": f"{record['pruned']:.3f}", "speed": f"{record['speed']:.0f}x"}
            bar.set_postfix(epoch=p.place.epoch, **shown, wait=f"{record['data_wait']:.0%}")
        self.meter.start_over()

    def note_drawn(self, log: Optional[RunLog]) -> None:
        """Write a record of the cuts that all ranks have drawn since the last such record; all ranks call this."""
        drawn = add_drawn(self.world.gather(self.meter.drawn))
        self.meter.drawn = {}
        if log and drawn:
            log.note("drawn", self.step, {"corpora": drawn})

    def validate(self, log: Optional[RunLog]) -> None:
        """Score the model on the validation cuts."""
        self._share_trained()
        self.progress.valid = scores = self._scores()
        self.progress.judge(scores[self.config.training.best_by])
        if log:
            log.write("valid", self.step, scores)
            plot_curves(self.exp_dir)
            self.drawn = self.step
        self.say(f"step {self.step}: {describe(scores)}")

    def save(self) -> None:
        """Write a checkpoint, then delete those that are no longer needed (on the ranks that write)."""
        t = self.config.training
        self._share_trained()
        if self.remote and self.saved == self.step:  # the upload may still read the folder that is replaced now
            self.remote.wait()
        with self.world.failing_together():  # if one machine's disk is full, the others still have theirs
            self.saver.save(self.progress, write=self.world.writes)
        if self.remote:  # the upload may still read what is deleted now
            self.remote.wait()
        with self.world.failing_together():
            if self.world.writes:
                retain(self.exp_dir, t.keep_last, max(t.keep_best, bool(t.patience)), t.best_by)
        if self.remote:
            self.remote.upload()
        self.saved = self.step

    def finish(self) -> Path:
        """Average the last checkpoints into ``model/``, and validate that model."""
        folder, made_of = self.exp_dir / "model", ""
        with self.world.failing_together():
            if self.world.writes:
                made_of = self.saver.write_model()
                if self.drawn < self.step:
                    plot_curves(self.exp_dir)
        load_weights(self.model, folder)
        if self.validator:
            self.say(f"{made_of}: {describe(self._scores())}")
        return folder

    @property
    def step(self) -> int:
        """Steps since the run began, including those before it was resumed."""
        return self.progress.step

    @property
    def exhausted(self) -> bool:
        """Whether ``training.patience`` is used up."""
        patience = self.config.training.patience
        return bool(patience) and self.progress.worse >= patience

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

    def start(
        self,
        folder: Optional[Path] = None,
        source: Optional[InitialModel] = None,
        corpora: Optional[List[Dict[str, Any]]] = None,
    ) -> None:
        """Resume from a checkpoint (`checkpoints.find_start`), start from another model, or from scratch.

        All input is checked before anything is written to the experiment folder. ``corpora``: the result of
        `same_corpora`, if known.
        """
        corpora = corpora or same_corpora(self.sampler.rounds, self.world)
        if folder:
            self._resume(folder, corpora)
        elif source:
            t = self.config.training
            lowered, all_trained = new_below_mean(t), t.train_only == "all"
            tokenizer = self.dataset.tokenizer
            added = start_from(source, self.model, self.dataset.tasks, tokenizer, self.say, lowered, all_trained)
            self.say(f"starting from the weights of {source.folder}{'; new: ' if added else ''}{', '.join(added)}")
        elif self.config.model.transducer == "pretrained":
            name, tokenizer = self.config.model.encoder.name, self.dataset.tokenizer
            known = start_from_pretrained(name, self.model, new_below_mean(self.config.training))
            added = tokenizer.pieces(range(known, tokenizer.vocab_size))
            self.say(f"predictor, joiner and {known} tokens are those of {name}; new: {', '.join(added)}")
        self.sampler.look()
        self.world.barrier()  # all ranks have read before one writes
        with self.world.failing_together():
            if self.world.writes:
                self.saver.prepare(corpora, self.remote.url if self.remote else None)
                for aside in set_later_aside(self.exp_dir, self.step):
                    self.say(f"set aside: {aside}")
        if self.remote:
            self.remote.upload()

    def _resume(self, folder: Path, corpora: List[Dict[str, Any]]) -> None:
        """Load weights, optimiser and sampler state from a checkpoint."""
        theirs = load_config(folder / checkpoint.CONFIG)
        check_unchanged(folder, checkpoint.read_state(folder), corpora, self.config)
        try:
            self.progress, state = self.saver.load(folder, self.world.writes)
        except UserError as error:
            model = [change for change in changed_options(theirs, self.config) if change.startswith("model.")]
            why = f"; changed since then: {', '.join(model)}: leave it as it was, or name another --training.exp_dir"
            raise UserError(f"{error}{why if model else ''}") from None
        self.saved = self.step
        size, wanted = theirs.tokenizer.vocab_size, self.config.tokenizer.vocab_size
        if size != wanted and not self.config.tokenizer.model:
            raise UserError(
                f"{folder}: its vocabulary was made by --tokenizer.vocab_size {size}, not {wanted}: leave it "
                "as it was, or name another --training.exp_dir"
            )
        changed = changed_options(theirs, self.config)
        if changed:
            self.say(f"options changed since {folder.name}: {', '.join(changed)}")
        if theirs.training.best_by != self.config.training.best_by:
            self.progress.best, self.progress.worse = None, 0  # scores of another kind
        self._convert_place(folder.name, theirs.data, state["world_size"])
        place = self.progress.place
        self.say(f"resuming from {folder.name}: epoch {place.epoch}, round {place.round}, batch {place.batch}")

    def _convert_place(self, name: str, data: DataConfig, ranks: int) -> None:
        """Adapt the place if the checkpoint has other rounds, ranks, ``data.rank_parts`` or lengths of batches."""
        place, rounds = self.progress.place, self.sampler.rounds
        cuts = data.epoch_cuts or sum(source.count for source in rounds.sources)
        of_epoch, parts = -(-cuts // data.round_cuts), data.rank_parts != self.config.data.rank_parts
        if of_epoch != rounds.per_epoch:
            # The start of the round that contains the start of the old one: no cut of the epoch is skipped.
            self.progress.place = place._replace(round=place.round * rounds.per_epoch // of_epoch, batch=0)
            self.say(
                f"{name} has {of_epoch} rounds an epoch, now {rounds.per_epoch}: going on at the beginning "
                f"of round {self.progress.place.round}; its cuts that were drawn come again"
            )
            return
        why: List[str] = []
        # Where the number of cuts limits batches, their length says little about it.
        seconds = self.config.data.max_duration if self.config.data.max_cuts is None else data.max_duration
        if ranks != self.world.size:
            why.append(f"of {ranks} ranks, now {self.world.size}")
        elif parts and ranks > 1:
            why.append(f"of --data.rank_parts {str(data.rank_parts).lower()}")
        if data.max_duration != seconds:
            why.append(f"of --data.max_duration {data.max_duration:g}, now {seconds:g}")
        if why:
            # About as many cuts are skipped, though not exactly the same ones.
            before, now = ranks * data.max_duration, self.world.size * seconds
            self.progress.place = place._replace(batch=int(place.batch * before / now))
            self.say(f"{name} is {' and '.join(why)}: the rest of the round is drawn anew")

    def _scores(self) -> Dict[str, float]:
        """Run the validator; a sharded model is gathered for it, as ranks have different numbers of batches."""
        with unsharded(self.model):
            return self.validator(self.model)  # type: ignore[misc]

    def _share_trained(self) -> None:
        """Share which combinations of tasks any rank has trained."""
        for name, buffer in self.model.named_buffers():
            if name.endswith("vectors.trained"):
                self.world.any_(buffer)

    def _check(self, result: StepResult, batches: List[Batch]) -> None:
        """Report and dump the batches of a step whose loss or gradient is not finite; stop after too many."""
        p, most = self.progress, self.config.training.max_bad_steps
        if result.overflow:
            return
        p.bad_in_a_row = p.bad_in_a_row + 1 if result.skipped else 0
        if not result.skipped:
            return
        p.bad_steps += 1
        # If the loss of a cut is not finite, its rank reports it; a gradient may come from any rank.
        if result.bad_cuts or math.isfinite(result.loss):
            ids = ", ".join(result.bad_cuts or cut_ids(batches))
            inputs = p.bad_steps <= MOST_DUMPS
            folder = dump_batches(self.exp_dir, self.step, self.world.rank, batches, result.bad_cuts, inputs)
            LOG.warning(
                f"step {self.step} skipped: {'loss' if result.bad_cuts else 'gradient'} not finite "
                f"(rank {self.world.rank}: {ids}); see {folder}"
            )
        if p.bad_in_a_row >= most:
            raise UserError(
                f"{most} steps in a row had no finite loss and gradient, the last one step {self.step}: "
                f"see {self.exp_dir / BAD_BATCHES}; lower --optim.lr?"
            )
