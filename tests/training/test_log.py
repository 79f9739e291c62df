"""The logs of a run, and the means and counts between two records."""

import errno
import json
import math
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.training import log as meter_module
from tokenverse_pp.training.log import PANELS, Meter, RunLog, add_drawn, drawn_table, plot_curves, read_log
from tokenverse_pp.training.steps import StepResult
from tokenverse_pp.training.trainer import Trainer


def steps(exp_dir):
    return [(r["kind"], r["step"]) for r in read_log(exp_dir / "log.jsonl")]


def test_records_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("train", step, {"pruned": 1.0 / step})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    assert steps(tmp_path) == [("train", 1), ("train", 2), ("train", 3)]
    log = RunLog(tmp_path, 2)
    log.write("train", 3, {"pruned": 0.1})
    log.write("valid", 3, {"loss": 0.1, "wer": 0.5})
    log.close()
    assert steps(tmp_path) == [("train", 1), ("train", 2), ("train", 3), ("valid", 3)]
    assert read_log(tmp_path / "log.jsonl")[2]["pruned"] == 0.1
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("train/pruned")] == [1, 2, 3]


def test_new_run_starts_a_new_log(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write("train", 1, {"pruned": 1.0})
    log.close()
    RunLog(tmp_path, 0).close()
    assert steps(tmp_path) == []
    assert read_log(tmp_path / "nothing.jsonl") == []


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0)
    log.write("train", 1, {"pruned": 1.0})
    log.close()

    def fail(path, text, **options):
        path.open("w").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match=r"log\.jsonl: cannot be written: No space left"):
        RunLog(tmp_path, 1)
    assert steps(tmp_path) == [("train", 1)]


@pytest.mark.parametrize("kinds", [["train"], ["train", "valid"]])
def test_curves_are_drawn_without_complaint(tmp_path, kinds):
    pytest.importorskip("matplotlib")
    log = RunLog(tmp_path, 0)
    for step in range(5):
        for kind in kinds:
            valid = {"loss": 1.0, "wer": 0.5, "scd_f1": 0.1 * step, "log_prob_scd": -1.0 / (1 + step)}
            log.write(kind, step, valid if kind == "valid" else {"pruned": 1.0, "speed": 7.0, "grad_norm": 3.0})
    log.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot_curves(tmp_path) == tmp_path / "curves.png"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_drawn_after_each_validation(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("tokenverse_pp.training.trainer.plot_curves", plot_curves)  # not what conftest.py puts there
    log = RunLog(tmp_path, 0)
    run = SimpleNamespace(exp_dir=tmp_path, step=3, progress=SimpleNamespace(valid=None, judge=str))
    run.config = SimpleNamespace(training=SimpleNamespace(best_by="wer"))
    run._share_trained, run._scores, run.say = (lambda: None), (lambda: {"loss": 1.0, "wer": 0.5}), (lambda line: None)
    Trainer.validate(run, log)
    log.close()
    assert run.progress.valid == {"loss": 1.0, "wer": 0.5} and steps(tmp_path) == [("valid", 3)]
    assert (tmp_path / "curves.png").is_file()


def test_every_panel_is_filled_by_a_real_run(finished_run):
    records = read_log(finished_run / "log.jsonl")
    for title, sources in PANELS:
        for kind, pattern in sources:
            names = {name for r in records if r["kind"] == kind for name in r}
            assert any(fnmatchcase(name, pattern) for name in names), (title, pattern)
    pytest.importorskip("matplotlib")
    assert (finished_run / "curves.png").is_file()


def test_numbers_that_json_does_not_have_are_null_and_are_read_as_nan(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"kind": "valid", "step": 1, "loss": Infinity, "wer": 1.0}\n')  # of a release
    log = RunLog(tmp_path, 1)
    log.write("train", 2, {"pruned": math.nan, "grad_norm": math.inf, "speed": 2.0, "bad_steps": 1})
    log.close()

    def refuse(name):
        raise ValueError(name)

    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"kind": "valid", "step": 1, "loss": None, "wer": 1.0},
        {"kind": "train", "step": 2, "pruned": None, "grad_norm": None, "speed": 2.0, "bad_steps": 1},
    ]
    valid, train = read_log(tmp_path / "log.jsonl")
    assert math.isnan(valid["loss"]) and math.isnan(train["pruned"]) and train["speed"] == 2.0
    pytest.importorskip("matplotlib")
    assert plot_curves(tmp_path) == tmp_path / "curves.png"


def test_records_without_curves_stay_out_of_tensorboard(tmp_path):
    log = RunLog(tmp_path, 0)
    log.note("drawn", 3, {"corpora": {"a": {"cuts": 1}}})
    log.close()
    assert read_log(tmp_path / "log.jsonl") == [{"kind": "drawn", "step": 3, "corpora": {"a": {"cuts": 1}}}]


class Clock:
    """Time that passes when told to."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    return clock


def result(loss, seconds):
    return StepResult(loss, loss, loss, 5.0, 4.0, seconds, 1.0, False)


def batch(*cuts):
    corpora, durations, active = zip(*cuts)
    return {"corpora": list(corpora), "durations": list(durations), "active": torch.tensor(active)}


def test_means_and_speed_since_the_last_record(clock):
    meter = Meter(["asr", "lid"])
    for loss, seconds, took in ((1.0, 10.0, 2.0), (3.0, 20.0, 4.0)):
        clock.now += took
        meter.add(result(loss, seconds), [batch(("a", seconds, (1.0, 0.0)))])
        clock.now += 50.0  # validation
        meter.restart()
    mean = meter.mean()
    assert (mean["loss"], mean["seconds"], mean["speed"]) == (2.0, 15.0, 5.0)
    meter.start_over()
    clock.now += 1.0
    meter.add(result(7.0, 3.0), [])
    assert (meter.mean()["loss"], meter.mean()["speed"]) == (7.0, 3.0)


def test_skipped_steps_are_left_out_of_the_means(clock):
    meter = Meter()
    skipped = result(float("nan"), 2.0)._replace(skipped=True, grad_norm=float("inf"))
    clock.now += 1.0
    meter.add(skipped, [])
    assert meter.mean()["grad_norm"] == float("inf")  # nothing else was made
    clock.now += 1.0
    meter.add(result(3.0, 4.0), [])
    assert (meter.mean()["loss"], meter.mean()["grad_norm"], meter.mean()["speed"]) == (3.0, 1.0, 3.0)


def test_waiting_for_data_is_a_share_of_the_time(clock):
    meter = Meter()

    def slow():
        for item in range(3):
            clock.now += 1.0
            yield item

    items = []
    for item in meter.waiting(slow()):
        clock.now += 3.0
        meter.add(result(1.0, 1.0), [])
        items.append(item)
    assert items == [0, 1, 2]
    assert meter.mean()["data_wait"] == pytest.approx(0.25)


def test_drawn_cuts_are_counted_by_corpus_and_task():
    meters = [Meter(["asr", "lid"]), Meter(["asr", "lid"])]
    meters[0].add(result(1.0, 1.0), [batch(("b", 3600.0, (1.0, 1.0)), ("a", 1800.0, (1.0, 0.0)))])
    meters[1].add(result(1.0, 1.0), [batch(("a", 1800.0, (1.0, 1.0))), batch(("a", 0.0, (1.0, 1.0)))])
    drawn = add_drawn(meter.drawn for meter in meters)
    assert list(drawn) == ["a", "b"]
    assert drawn["a"] == {"cuts": 3, "hours": 1.0, "active": {"asr": 3, "lid": 2}}
    assert drawn["b"] == {"cuts": 1, "hours": 1.0, "active": {"asr": 1, "lid": 1}}
    table = [line.split() for line in drawn_table(drawn).splitlines()]
    assert ["a", "3", "1.00", "50.0%", "3", "2"] in table
    assert drawn_table({}).startswith("drawn from")


def test_both_rows_of_a_pair_are_one_drawn_cut():
    meter = Meter(["asr", "lid"], rows=2)
    pairs = [("a", 1800.0, (1.0, 0.0)), ("a", 1800.0, (1.0, 1.0)), ("b", 3600.0, (1.0, 1.0)), ("b", 3600.0, (1.0, 0.0))]
    meter.add(result(1.0, 1.0), [batch(*pairs)])
    assert meter.drawn["a"] == {"cuts": 1, "hours": 0.5, "active": {"asr": 2, "lid": 1}}
    assert meter.drawn["b"] == {"cuts": 1, "hours": 1.0, "active": {"asr": 2, "lid": 1}}
