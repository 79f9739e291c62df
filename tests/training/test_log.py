"""log.jsonl: a resumed run writes no record twice; curves are drawn."""

import warnings
from fnmatch import fnmatchcase

import pytest

from tokenverse_pp.training.log import PANELS, RunLog, plot_curves, read_log


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
    assert list((tmp_path / "tensorboard").iterdir())


def test_new_run_starts_a_new_log(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write("train", 1, {"pruned": 1.0})
    log.close()
    RunLog(tmp_path, 0).close()
    assert steps(tmp_path) == []
    assert read_log(tmp_path / "nothing.jsonl") == []


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


def test_every_panel_is_filled_by_a_real_run(finished_run):
    records = read_log(finished_run / "log.jsonl")
    for title, sources in PANELS:
        for kind, pattern in sources:
            names = {name for r in records if r["kind"] == kind for name in r}
            assert any(fnmatchcase(name, pattern) for name in names), (title, pattern)
    pytest.importorskip("matplotlib")
    assert (finished_run / "curves.png").is_file()


def test_records_without_curves_stay_out_of_tensorboard(tmp_path):
    log = RunLog(tmp_path, 0)
    log.note("drawn", 3, {"corpora": {"a": {"cuts": 1}}})
    log.close()
    assert read_log(tmp_path / "log.jsonl") == [{"kind": "drawn", "step": 3, "corpora": {"a": {"cuts": 1}}}]
