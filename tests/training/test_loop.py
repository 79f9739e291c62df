"""The loop around the steps, in this process: what it gives up on, and what it averages."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import from_dict
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import TrainSampler, open_rounds
from tokenverse_pp.losses.devices import autocast, grad_scaler
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.training.checkpoints import changed_options, find_start, retain
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.steps import Progress, StepResult
from tokenverse_pp.training.trainer import Trainer


def trainer(corpus, exp_dir, wanted=bool, **changes):
    parts = toy_parts(corpus, **changes)
    parts.config.training.exp_dir = str(exp_dir)
    sampler = TrainSampler(open_rounds(parts.config.data, 1), parts.config.data, 1, DistributedContext(), wanted)
    return Trainer(parts.config, parts.model, parts.dataset, sampler, None, DistributedContext())


def run(started):
    started.start(find_start(started.config, print))
    return started.run()


def test_epochs_end_the_run_and_the_last_step_is_saved(tiny_corpus, tmp_path):
    folder = run(trainer(tiny_corpus, tmp_path, training__epochs=1, training__max_steps=100, data__max_cuts=6))
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000003"]
    assert checkpoint.read_state(checkpoint.list_checkpoints(tmp_path)[0])["batch"] == 3
    assert load_model(folder).model.training is False


@pytest.mark.parametrize("saved_every", [3, 100])
def test_epochs_end_a_run_as_its_last_step_does(tiny_corpus, tmp_path, saved_every):
    """With a record, a validation, and its scores in the checkpoint."""
    changes = {"training__epochs": 1, "training__max_steps": 100, "data__max_cuts": 6, "training__log_every": 2}
    started = trainer(tiny_corpus, tmp_path, **changes, training__save_every=saved_every)
    started.validator = lambda model: {"loss": 1.0, "wer": 0.5}
    run(started)
    records = read_log(tmp_path / "log.jsonl")
    numbers = [(r["step"], r["kind"]) for r in records if r["kind"] != "drawn"]
    assert numbers == [(2, "train"), (3, "train"), (3, "valid")]
    assert sum(corpus["cuts"] for r in records if r["kind"] == "drawn" for corpus in r["corpora"].values()) == 16
    (folder,) = checkpoint.list_checkpoints(tmp_path)
    assert checkpoint.read_state(folder)["valid"] == {"loss": 1.0, "wer": 0.5}
    again = trainer(tiny_corpus, tmp_path, **changes)
    again.validator = started.validator
    run(again)  # nothing is left to train, and nothing to score
    assert read_log(tmp_path / "log.jsonl") == records


def test_final_model_is_the_mean_of_the_last_checkpoints(tiny_corpus, tmp_path):
    changes = {"training__max_steps": 3, "training__save_every": 1, "training__average_last": 2, "data__max_cuts": 4}
    folder = run(trainer(tiny_corpus, tmp_path, **changes))
    last = [checkpoint.read_tensors(p / checkpoint.WEIGHTS) for p in checkpoint.list_checkpoints(tmp_path)[-2:]]
    found = checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
    for key in ("joiner.output.weight", "feature_vectors.table"):
        assert torch.allclose(found[key], (last[0][key] + last[1][key]) / 2)


def test_what_a_run_starts_from_is_scored_once(tiny_corpus, tmp_path):
    def validated(steps):
        started = trainer(
            tiny_corpus, tmp_path, training__max_steps=steps, training__valid_first=True, data__max_cuts=4
        )
        asked = []
        started.validator = lambda model: asked.append(started.step) or {"loss": 1.0, "wer": 1.0}
        run(started)
        assert asked[-1] == steps  # of the final model
        return [record["step"] for record in read_log(tmp_path / "log.jsonl") if record["kind"] == "valid"]

    assert validated(2) == [0, 2]
    assert validated(3) == [0, 2, 3]  # not again after a resume


@pytest.mark.parametrize("validated", [True, False])
def test_curves_hold_the_last_step_and_are_drawn_once_for_it(tiny_corpus, tmp_path, monkeypatch, validated):
    drawn = []
    last = lambda folder: max(record["step"] for record in read_log(folder / "log.jsonl"))
    monkeypatch.setattr("tokenverse_pp.training.trainer.plot_curves", lambda folder: drawn.append(last(folder)))
    changes = {"training__max_steps": 2, "training__log_every": 1, "training__valid_every": 1, "data__max_cuts": 4}
    started = trainer(tiny_corpus, tmp_path, **changes)
    started.validator = (lambda model: {"loss": 1.0, "wer": 1.0}) if validated else None
    run(started)
    assert drawn == ([1, 2] if validated else [2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_ends_a_run_after_its_step_and_it_resumes(tiny_corpus, tmp_path, number):
    """The final model is that of a run without the signal."""
    changes = {"training__max_steps": 4, "training__average_last": 1, "data__max_cuts": 4}
    whole = run(trainer(tiny_corpus, tmp_path / "whole", **changes))
    before = signal.getsignal(number)
    started = trainer(tiny_corpus, tmp_path / "exp", **changes)
    step = started.train_step

    def train_step(*arguments):
        if started.step == 1:
            os.kill(os.getpid(), number)
        return step(*arguments)

    started.train_step = train_step
    assert run(started) is None
    os.kill(os.getpid(), number)  # the process is about to end anyway
    signal.signal(number, before)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "exp")] == ["step-00000002"]
    again = run(trainer(tiny_corpus, tmp_path / "exp", **changes))
    assert signal.getsignal(number) == before
    assert (again / checkpoint.WEIGHTS).read_bytes() == (whole / checkpoint.WEIGHTS).read_bytes()


def test_run_without_cuts_is_refused(tiny_corpus, tmp_path):
    with pytest.raises(UserError, match="no cut is left"):
        run(trainer(tiny_corpus, tmp_path, wanted=lambda cut: False))


def test_too_many_steps_without_a_gradient_end_the_run(tiny_corpus, tmp_path, caplog):
    changes = {"data__max_cuts": 1, "training__max_steps": 100, "training__max_bad_steps": 3}
    started = trainer(tiny_corpus, tmp_path, **changes)
    with torch.no_grad():
        started.model.joiner.output.bias[3] = float("nan")
    with pytest.raises(UserError, match="3 steps in a row"):
        run(started)
    lines = caplog.messages
    assert sum("skipped: loss not finite" in line and "toy-train-" in line for line in lines) == 3


def test_resumed_run_with_another_number_of_ranks_says_so(tiny_corpus, tmp_path, caplog):
    caplog.set_level("INFO", "tokenverse_pp")
    run(trainer(tiny_corpus, tmp_path, training__max_steps=1, data__max_cuts=2))
    folder = checkpoint.list_checkpoints(tmp_path)[0]
    state = folder / checkpoint.STATE
    state.write_text(state.read_text().replace('"world_size": 1', '"world_size": 3'))
    again = trainer(tiny_corpus, tmp_path, training__max_steps=1, data__max_cuts=2)
    again.start(folder)
    assert again.step == 1 and "is of 3 ranks, now 1" in caplog.text
    assert again.progress.place.batch == 3  # a batch of each of three ranks


def test_resumed_run_with_batches_of_another_length_skips_about_as_many_cuts(tiny_corpus, tmp_path, caplog):
    caplog.set_level("INFO", "tokenverse_pp")
    run(trainer(tiny_corpus, tmp_path, training__max_steps=3, data__max_cuts="null", data__max_duration=6.0))
    again = trainer(tiny_corpus, tmp_path, training__max_steps=3, data__max_cuts="null", data__max_duration=18.0)
    again.start(checkpoint.list_checkpoints(tmp_path)[-1])
    assert "is of --data.max_duration 6, now 18" in caplog.text
    assert again.progress.place.batch == 1


def test_moments_stay_with_their_parameters_when_rates_change(tiny_corpus, tmp_path):
    """The groups of the optimiser are sorted by rate, and parameters of the same rate are one group."""

    def moments(started):
        state = started.optimizer.state
        return {name: state[p]["exp_avg"] for name, p in started.model.named_parameters()}

    first = trainer(tiny_corpus, tmp_path, training__max_steps=1, data__max_cuts=2)
    run(first)
    folder = checkpoint.list_checkpoints(tmp_path)[0]
    for rates in ({"optim__lr": 1e-5}, {"optim__vector_lr": 1e-3, "optim__weight_decay": 0}):
        again = trainer(tiny_corpus, tmp_path, **rates)
        again.start(folder)
        found, expected = moments(again), moments(first)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_both_rows_of_a_pair_count_as_one_cut(tiny_corpus, tmp_path):
    changes = {"tasks__activation": "subset", "tasks__paired": "true", "training__max_steps": 1}
    run(trainer(tiny_corpus, tmp_path, data__max_cuts=2, **changes))
    (record,) = [r["corpora"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "drawn"]
    assert sum(corpus["cuts"] for corpus in record.values()) == 2


def test_changed_settings_of_a_task_are_named():
    before, now = (from_dict({"tasks": {"settings": settings}}) for settings in ({}, {"topic": {"words": 3}}))
    assert changed_options(before, now) == ["tasks.settings: {} -> {'topic': {'words': 3}}"]


@pytest.mark.parametrize("decay, said", [("cosine", ["training.max_steps: 10000 -> 20000"]), ("constant", [])])
def test_another_end_of_the_schedule_is_named(decay, said):
    before, now = Config(), Config()
    before.optim.decay = now.optim.decay = decay
    now.training.max_steps = 20000
    assert changed_options(before, now) == said


def test_running_average_is_held_where_it_is_written(tiny_corpus, tmp_path):
    changes = {"training__max_steps": 1, "training__average_period": 1, "data__max_cuts": 2}
    run(trainer(tiny_corpus, tmp_path, **changes))
    folder = checkpoint.list_checkpoints(tmp_path)[0]
    for writes in (True, False):
        saver = trainer(tiny_corpus, tmp_path, **changes).saver
        saver.load(folder, writes)
        assert bool(saver.average.tensors) == writes


def test_exp_dir_that_cannot_be_made_is_refused(tiny_corpus, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--training\.exp_dir"):
        run(trainer(tiny_corpus, tmp_path / "file"))


HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('process 7 on host', file=f)"
)


def test_folder_in_which_another_run_trains_is_refused(tiny_corpus, tmp_path):
    path = tmp_path / "exp" / ".running"
    path.parent.mkdir()
    command = [sys.executable, "-S", "-c", f"{HOLD}; f.flush(); print(flush=True); input()", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=r"--training\.exp_dir: another run trains there: .*process 7 on host"):
            trainer(tiny_corpus, path.parent).start()
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        other.communicate(b"\n")
    resumed = trainer(tiny_corpus, path.parent)
    resumed.start()
    assert f"process {os.getpid()} on " in path.read_text()
    resumed.saver.release()


def test_world_of_one():
    world = DistributedContext()
    flags = torch.tensor([True, False])
    world.any_(flags)
    assert world.sum([1, 2.5]) == [1.0, 2.5] and flags.tolist() == [True, False]
    assert world.from_first(lambda: 3) == 3 and world.is_first
    model = torch.nn.Linear(1, 1)
    assert world.wrap(model) is model


def test_mixed_precision_that_torch_does_not_have_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "1.13.1")
    autocast(torch.device("cpu"), "fp32")
    with pytest.raises(UserError, match="bf16 on a CPU needs torch 2"):
        autocast(torch.device("cpu"), "bf16")


def test_bad_batch_is_written_down_and_training_goes_on(tiny_corpus, tmp_path, caplog):
    started = trainer(tiny_corpus, tmp_path, data__max_cuts=2, training__max_steps=4, training__log_every=1)
    load = started.dataset.__class__.__getitem__
    poisoned = read_cuts(tiny_corpus)[5].id

    class Poisoned(started.dataset.__class__):
        def __getitem__(self, cuts):
            batch = load(self, cuts)
            if poisoned in batch["cut_ids"]:
                batch["inputs"][batch["cut_ids"].index(poisoned), 50] = float("nan")
            return batch

    started.dataset.__class__ = Poisoned
    started.config.training.max_steps = 8
    run(started)
    (folder,) = (tmp_path / "bad_batches").iterdir()
    assert f"rank 0: {poisoned}" in caplog.text
    ids = (folder / "rank-0.txt").read_text().splitlines()
    assert [i[0] for i in ids].count("*") == 1 and f"* {poisoned}" in ids
    cuts = list(CutSet.from_file(folder / "rank-0.cuts.jsonl"))
    assert [f"{cut.id}" for cut in cuts] == [line[2:] for line in ids]
    tensors = checkpoint.read_tensors(folder / "rank-0.batch-0.safetensors")
    row = [cut.id for cut in cuts].index(poisoned)
    assert tensors["inputs"][row, 50].isnan() and set(tensors) >= {"inputs", "lens", "active", "tokens", "token_lens"}
    newest = checkpoint.read_state(checkpoint.list_checkpoints(tmp_path)[-1])
    assert (newest["step"], newest["bad_steps"], newest["bad_in_a_row"], newest["skipped_steps"]) == (8, 1, 0, 1)
    assert [r["bad_steps"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "train"][-1] == 1


def test_inputs_of_the_first_bad_steps_only_are_written_down(tiny_corpus, tmp_path, monkeypatch):
    """A run that skips a step in thirty would fill the disk."""
    monkeypatch.setattr("tokenverse_pp.training.trainer.MOST_DUMPS", 1)
    started = trainer(tiny_corpus, tmp_path)
    bad = StepResult(math.nan, 0, 0, 1, 1, 1, 0, True, bad_cuts=("a",))
    for started.progress.step in (1, 2):
        started._check(bad, [{"cut_ids": ["a"], "inputs": torch.zeros(1)}])
    files = sorted(str(path.relative_to(tmp_path / "bad_batches")) for path in tmp_path.rglob("rank-0*"))
    assert files == [
        f"step-{step:08d}/rank-0.{end}" for step, end in ((1, "batch-0.safetensors"), (1, "txt"), (2, "txt"))
    ]


def test_gradient_that_is_not_finite_names_the_whole_batch(tiny_corpus, tmp_path, caplog):
    started = trainer(tiny_corpus, tmp_path, data__max_cuts=2, training__max_steps=1)
    started.model.joiner.output.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = started.model.joiner.output.weight.detach().clone()
    run(started)
    assert torch.equal(started.model.joiner.output.weight, before)
    said = caplog.text
    assert "gradient not finite" in said and said.count("toy-train-") >= 2


def test_rank_reports_a_loss_of_infinity_only_for_its_own_cuts(tiny_corpus, tmp_path, caplog):
    started = trainer(tiny_corpus, tmp_path, data__max_cuts=2)
    batch = started.dataset[CutSet.from_cuts(read_cuts(tiny_corpus)[:2])]
    numbers = dict.fromkeys(("simple", "pruned", "frames", "tokens", "seconds", "grad_norm"), 1.0)
    for bad in ((), (batch["cut_ids"][1],)):
        caplog.clear()
        started._check(StepResult(loss=math.inf, skipped=True, bad_cuts=bad, **numbers), [batch])
        assert [bad[0] in line for line in caplog.messages] == [True] * len(bad)


def test_gradients_that_overflow_while_the_loss_scale_is_found_are_no_bad_steps(tiny_corpus, tmp_path):
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("no GradScaler for CPUs before torch 2.3")
    started = trainer(tiny_corpus, tmp_path, data__max_cuts=2, training__max_steps=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    started.scaler = started.saver.scaler = scaler
    run(started)
    state = checkpoint.read_state(checkpoint.list_checkpoints(tmp_path)[-1])
    assert state["bad_steps"] == 0 and state["scaler"]["scale"] == 2.0**124
    assert (state["step"], state["skipped_steps"]) == (3, 3)
    assert [r["loss_scale"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "train"]
    assert not (tmp_path / "bad_batches").exists()


class Scaler:
    """A loss scaler whose gradients overflow at some of its steps (0: its first)."""

    def __init__(self, overflows=()):
        self.overflows, self.made, self.size = set(overflows), 0, 1024.0

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.size

    def scale(self, loss):
        return loss * self.size

    def unscale_(self, optimizer):
        factor = math.inf if self.made in self.overflows else 1 / self.size
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        self.size /= 2 if self.made in self.overflows else 1
        self.made += 1

    def state_dict(self):
        return {"scale": self.size, "made": self.made}

    def load_state_dict(self, state):
        self.size, self.made = state["scale"], state["made"]


def scaled(corpus, exp_dir, overflows, **changes):
    """A trainer of which some steps overflow, and the learning rates that its updates will have had."""
    small = {"data__max_cuts": 1, "training__save_every": 1, "training__keep_last": 99, "training__average_last": 1}
    small.update(optim__warmup_steps=4, model__loss__warm_steps=4, training__max_steps=8)
    started = trainer(corpus, exp_dir, **{**small, **changes})
    started.scaler = started.saver.scaler = Scaler(overflows)
    rates, update = [], started.optimizer.step
    started.optimizer.step = lambda: rates.append(started.optimizer.param_groups[0]["lr"]) or update()
    return started, rates


def test_skipped_steps_are_no_steps_of_the_schedules(tiny_corpus, tmp_path):
    overflows = [0, 1, 4]
    started, rates = scaled(tiny_corpus, tmp_path, overflows, optim__decay="constant", optim__lr=1.0)
    stages = []
    apply = started.freezing.apply
    started.freezing.apply = lambda step: stages.append(step) or apply(step)
    run(started)
    base = started.optimizer.param_groups[0]["base_lr"]
    assert rates == pytest.approx([base * rate for rate in (0.25, 0.5, 0.75, 1.0, 1.0)])
    assert stages == [0, 0, 0, 1, 2, 2, 3, 4]
    records = [r for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in records] == list(range(1, 9))
    assert [r["skipped_steps"] for r in records] == [1, 2, 2, 2, 3, 3, 3, 3]
    assert [r["bad_steps"] for r in records] == [0] * 8
    assert [r["lr"] for r in records] == [0.25, 0.25, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0]
    states = [checkpoint.read_state(folder) for folder in checkpoint.list_checkpoints(tmp_path)]
    assert [(s["step"], s["skipped_steps"]) for s in states][::7] == [(1, 1), (8, 3)]


def test_skipped_steps_are_resumed(tiny_corpus, tmp_path):
    overflows, options = [0, 3], {"optim__decay": "cosine", "training__max_steps": 5}
    run(scaled(tiny_corpus, tmp_path / "whole", overflows, **options)[0])
    for steps in (2, 5):
        started, _ = scaled(tiny_corpus, tmp_path / "parts", overflows, **options)
        start = find_start(started.config, print)
        started.start(start)
        stop_after(started, steps)
        assert started.progress.skipped_steps == sum(overflow < steps for overflow in overflows)
    ours, theirs = (
        checkpoint.read_tensors(checkpoint.checkpoint_dir(tmp_path / run, 5) / checkpoint.WEIGHTS)
        for run in ("parts", "whole")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_slow_upload_delays_no_checkpoint(tiny_corpus, tmp_path):
    """One is written before the upload of the one before is waited for; only then that one is deleted."""

    seen = []

    class Remote:
        url = "memory://bucket/exp"

        def upload(self):
            seen.append("upload")

        def wait(self):
            seen.append([checkpoint.step_of(folder) for folder in checkpoint.list_checkpoints(tmp_path)])

    options = {"data__max_cuts": 1, "training__save_every": 1, "training__keep_last": 1, "training__average_last": 1}
    started = trainer(tiny_corpus, tmp_path, training__max_steps=3, **options)
    started.remote = Remote()
    run(started)
    assert seen == ["upload", [1], "upload", [1, 2], "upload", [2, 3], "upload"]


def stop_after(started, steps):
    """Run a trainer, and stop it as a signal would after a step's checkpoint."""
    save = started.saver.save

    def saving(progress, write):
        save(progress, write)
        if progress.step == steps:
            raise KeyboardInterrupt

    started.saver.save = saving
    with pytest.raises(KeyboardInterrupt):
        started.run()


def test_checkpoint_of_an_older_version_has_no_skipped_steps(tiny_corpus, tmp_path):
    run(trainer(tiny_corpus, tmp_path, training__max_steps=2, data__max_cuts=1))
    folder = checkpoint.list_checkpoints(tmp_path)[-1]
    path = folder / checkpoint.STATE
    state = json.loads(path.read_text())
    del state["skipped_steps"]
    path.write_text(json.dumps(state))
    again = trainer(tiny_corpus, tmp_path, training__max_steps=3, data__max_cuts=1)
    again.start(folder)
    assert (again.progress.step, again.progress.skipped_steps, again.progress.updates) == (2, 0, 2)
    for wrong in ("many", -1, 3, None):
        path.write_text(json.dumps({**state, "skipped_steps": wrong}))
        with pytest.raises(UserError, match=r"state\.json: 'skipped_steps': expected a number up to 2"):
            checkpoint.read_state(folder)


def test_loss_scale_of_fp16_starts_at_one(monkeypatch):
    given = {}
    where = torch.amp if hasattr(torch.amp, "GradScaler") else torch.cuda.amp
    monkeypatch.setattr(where, "GradScaler", lambda device="cuda", **options: given.update(options, device=device))
    grad_scaler(torch.device("cuda"), "fp16")
    assert given == {"device": "cuda", "enabled": True, "init_scale": 1.0, "growth_interval": 500}
    for device, precision in (("cpu", "fp16"), ("cuda", "bf16"), ("cuda", "fp32")):
        grad_scaler(torch.device(device), precision)
        assert given["enabled"] is False
    monkeypatch.undo()
    scaler = grad_scaler(torch.device("cpu"), "fp16")  # whatever torch calls it
    assert not scaler.is_enabled() and scaler.state_dict() == {} and scaler.get_scale() == 1.0


def test_best_checkpoints_are_kept_besides_the_last(tmp_path):
    for step, score in enumerate([5.0, 1.0, 3.0, None, 2.0, 4.0], start=1):
        state = {"step": step, "epoch": 0, "batch": 1, "world_size": 1, "valid": score and {"wer": score}}
        folder = checkpoint.checkpoint_dir(tmp_path, step)
        checkpoint.write_folder(folder, {}, {checkpoint.STATE: json.dumps(state).encode()})
        retain(tmp_path, 1, 2, "wer")
    assert [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(tmp_path)] == [2, 5, 6]


def test_checkpoint_that_cannot_be_deleted_yet_ends_no_run(tmp_path, monkeypatch):
    """NFS keeps the files that another program reads."""
    for step in (1, 2):
        state = {"step": step, "epoch": 0, "batch": 1, "world_size": 1}
        checkpoint.write_folder(
            checkpoint.checkpoint_dir(tmp_path, step), {}, {checkpoint.STATE: json.dumps(state).encode()}
        )

    def busy(*arguments, **options):
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        patch.setattr(os, "unlink", busy)
        retain(tmp_path, 1, 0, "loss")
    retain(tmp_path, 1, 0, "loss")
    assert [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(tmp_path)] == [2]


def test_epoch_ends_for_all_when_it_ends_for_one(tiny_corpus, tmp_path):
    class OtherEndsAfterTwo(DistributedContext):
        """The other rank has two batches in its first epoch, and more later."""

        asked = 0

        def sum(self, values):
            OtherEndsAfterTwo.asked += 1
            return [values[0] and OtherEndsAfterTwo.asked != 3, values[1]]

    started = trainer(tiny_corpus, tmp_path, data__max_cuts=4, training__max_steps=4)
    started.world = OtherEndsAfterTwo()
    run(started)
    places = [checkpoint.read_state(p) for p in checkpoint.list_checkpoints(tmp_path)]
    assert [(place["step"], place["epoch"], place["batch"]) for place in places] == [(4, 1, 2)]


@given(scores=st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan]), max_size=12))
def test_worse_validations_are_counted_from_the_best_one(scores):
    progress = Progress()
    for score in scores:
        progress.judge(score)
    finite = [score for score in scores if math.isfinite(score)]
    assert progress.best == min(finite, default=None)
    assert progress.worse == (len(scores) - 1 - scores.index(min(finite)) if finite else len(scores))


def test_run_stops_when_it_gets_no_better_and_the_best_checkpoint_is_the_model(tiny_corpus, tmp_path, caplog):
    caplog.set_level("INFO", "tokenverse_pp")
    changes = {"training__patience": 2, "training__valid_every": 1, "training__keep_last": 1, "training__max_steps": 9}
    losses = iter([3.0, 2.0, 2.5, 2.0])

    def start():
        started = trainer(tiny_corpus, tmp_path, **changes, training__average_last=1, data__max_cuts=4)
        started.validator = lambda model: {"loss": next(losses, 9.0), "wer": 1.0}
        return started

    folder = run(start())
    assert "no better for 2 validations: stopping" in caplog.text and "best by loss: step-00000002" in caplog.text
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000002", "step-00000004"]
    best = checkpoint.read_tensors(tmp_path / "checkpoints" / "step-00000002" / checkpoint.WEIGHTS)
    model = checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
    assert all(torch.equal(model[name], value) for name, value in best.items())
    run(start())  # the same command again
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000002", "step-00000004"]


@pytest.mark.slow
def test_best_score_is_forgotten_with_another_measure(tiny_corpus, tmp_path):
    changes = {"training__patience": 2, "training__valid_every": 1, "training__average_last": 1, "data__max_cuts": 4}

    def start(by, steps):
        started = trainer(tiny_corpus, tmp_path, **changes, training__best_by=by, training__max_steps=steps)
        started.validator = lambda model: {"loss": 0.1, "wer": 0.9 - started.step / 10}
        run(started)
        return started.progress

    assert (start("loss", 2).best, start("loss", 2).worse) == (0.1, 1)
    progress = start("wer", 4)
    assert (progress.step, progress.worse) == (4, 0) and progress.best == pytest.approx(0.5)


def test_what_a_run_starts_from_can_be_the_best_one(tiny_corpus, tmp_path):
    changes = {"training__patience": 1, "training__valid_every": 1, "training__keep_last": 1, "training__max_steps": 9}
    changes |= {"data__max_cuts": 4}

    def start(losses):
        started = trainer(tiny_corpus, tmp_path, **changes, training__average_last=1, training__valid_first=True)
        before = {name: value.clone() for name, value in started.model.checkpoint_state().items()}
        started.validator = lambda model: {"loss": next(losses, 9.0), "wer": 1.0}
        return started, before

    started, before = start(iter([1.0, 2.0]))
    model = checkpoint.read_tensors(run(started) / checkpoint.WEIGHTS)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000000", "step-00000001"]
    assert all(torch.equal(model[name], value) for name, value in before.items())
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000001")
    started, before = start(iter([0.5, 2.0]))  # resumed: step 0 is not validated again
    run(started)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]
