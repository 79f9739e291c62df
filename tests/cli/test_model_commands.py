"""`tokenverse-pp average` on the checkpoints of a real run, and `calibrate` on made-up hypotheses of its model."""

import json
import random
import shutil

import fsspec
import pytest
import torch
from command_lines import run
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.api.folders import locate_model
from tokenverse_pp.base import storage
from tokenverse_pp.decoding.hypothesis import Calibration, read_calibration
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import load_model

WORDS = "un deux trois quatre cinq six sept huit neuf dix".split()


@pytest.fixture
def model(tmp_path, finished_run):
    """A model folder of its own, to write into."""
    return shutil.copytree(finished_run / "model", tmp_path / "model")


@pytest.fixture
def decoded(tmp_path):
    """cuts.jsonl and hyps.jsonl: every word has confidence 0.9, and two in five are wrong."""
    rng = random.Random(1)
    cuts, hyps = [], []
    for i in range(30):
        cuts.append(make_cut(f"c{i}", [{"text": " ".join(WORDS), "language": "qaa"}], ["asr", "lid"]))
        said = [word if rng.random() < 0.6 else "faux" for word in WORDS]
        words = [{"text": text, "start": k, "end": k + 1, "confidence": 0.9} for k, text in enumerate(["[QAA]", *said])]
        hyps.append({"id": f"c{i}", "text": " ".join(w["text"] for w in words), "words": words})
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    (tmp_path / "hyps.jsonl").write_text("".join(json.dumps(hyp) + "\n" for hyp in hyps))
    return tmp_path / "hyps.jsonl", tmp_path / "cuts.jsonl"


def calibrate(model, hyps, cuts, *more):
    return run("calibrate", "--model", model, "--hyps", hyps, "--cuts", cuts, *more)


def average(*arguments):
    return run("average", *arguments)


def test_model_learns_how_sure_it_may_be(model, decoded):
    done = calibrate(model, *decoded, "--test", *decoded)
    assert done.exit_code == 0, done.output
    calibration = read_calibration(model)
    assert calibration("deux", 0.9) == pytest.approx(0.6, abs=0.06)
    assert calibration("[QAA]", 0.9) > 0.95
    effect = json.loads((model / "calibration.json").read_text())["effect"]
    assert effect["words"]["before"]["ece"] == pytest.approx(0.3, abs=0.06)
    assert effect["words"]["after"]["ece"] < 0.08
    assert effect["tasks"]["before"]["examples"] == 30
    assert done.output.count("words") == 2 and str(decoded[0]) in done.output


def test_too_few_examples_keep_the_calibration(model, decoded, tmp_path):
    assert calibrate(model, *decoded).exit_code == 0
    before, plain = read_calibration(model), tmp_path / "plain.jsonl"
    hyps = [json.loads(line) for line in decoded[0].read_text().splitlines()]
    lines = [json.dumps({**hyp, "tasks": ["asr"], "words": hyp["words"][1:]}) for hyp in hyps]
    plain.write_text("\n".join(lines[::2]) + "\n")
    done = calibrate(model, plain, decoded[1])
    assert done.exit_code == 0 and "tasks: not fitted to 0 examples; expected at least 20" in done.stderr
    after = read_calibration(model)
    assert after.tasks == before.tasks and after.words != before.words


def test_other_output(model, decoded, tmp_path):
    assert calibrate(model, *decoded, "--output", tmp_path / "new" / "c.json").exit_code == 0
    assert not (model / "calibration.json").exists() and (tmp_path / "new" / "c.json").is_file()


def test_model_in_object_storage_is_written_there(model, decoded, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENVERSE_PP_CACHE", str(tmp_path / "cache"))
    for path in model.iterdir():
        storage.upload(path, f"memory://bucket/exp/model/{path.name}")
    done = calibrate("memory://bucket/exp", *decoded)
    assert done.exit_code == 0 and "calibration: memory://bucket/exp/model/calibration.json" in done.output
    assert not list((tmp_path / "cache").rglob("calibration.json"))
    found = locate_model("memory://bucket/exp")
    assert read_calibration(found)("deux", 0.9) == pytest.approx(0.6, abs=0.06)
    more = json.loads((found / "calibration.json").read_text())
    Calibration(endpoints={300: 0.5}).update(found / "calibration.json", tmp_path / "copy.json")
    copy = json.loads((tmp_path / "copy.json").read_text())
    assert copy["effect"] == more["effect"] and "endpoints" in copy
    assert json.loads((found / "calibration.json").read_text()) == more
    fsspec.filesystem("memory").store.clear()


def test_bad_input_is_one_line_and_leaves_nothing(model, decoded, tmp_path):
    hyps, cuts = decoded
    without, foreign, silent = (tmp_path / f"{name}.jsonl" for name in ("without", "foreign", "silent"))
    without.write_text('{"id": "c0", "text": "un"}\n')
    foreign.write_text('{"id": "x", "text": "un", "words": []}\n')
    silent.write_text('{"id": "c0", "text": "", "words": []}\n')
    for arguments, said in (
        ((model, without, cuts), "hypothesis c0"),
        ((model, foreign, cuts), "hypothesis x"),
        ((model, silent, cuts), "silent.jsonl: no word"),
        ((model, tmp_path / "none", cuts), "none"),
        ((model, hyps, tmp_path / "none.jsonl"), "none.jsonl"),
        ((tmp_path / "nomodel", hyps, cuts), "nomodel"),
    ):
        done = calibrate(*arguments)
        assert done.exit_code == 2 and "error: " in done.stderr and said in done.stderr, done.output
        assert not (model / "calibration.json").exists()


def test_the_average_of_one_checkpoint_is_that_checkpoint(finished_run, tmp_path):
    assert average(finished_run, tmp_path / "model").exit_code == 0
    newest = checkpoint.read_tensors(checkpoint.list_checkpoints(finished_run)[-1] / checkpoint.WEIGHTS)
    found = checkpoint.read_tensors(tmp_path / "model" / checkpoint.WEIGHTS)
    assert found.keys() == newest.keys()
    assert all(torch.equal(found[key], newest[key]) for key in found)


def test_half_precision_of_an_average_halves_the_file_and_loads(finished_run, tmp_path):
    for dtype in ("float32", "float16"):
        assert average(finished_run, tmp_path / dtype, "--dtype", dtype).exit_code == 0
    sizes = [(tmp_path / dtype / checkpoint.WEIGHTS).stat().st_size for dtype in ("float16", "float32")]
    assert sizes[0] < 0.55 * sizes[1]
    half, whole = (dict(load_model(tmp_path / dtype).model.named_parameters()) for dtype in ("float16", "float32"))
    assert all(half[key].dtype == torch.float32 for key in half)
    assert all(torch.allclose(half[key], whole[key], rtol=1e-3, atol=1e-6) for key in half)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--last", 99], "at least the 99 checkpoints of --last"),
        (["--running", "--last", 1], "--last 2"),
        (["--running", "--last", 2], "no running average"),
    ],
)
def test_averages_that_cannot_be_are_refused(finished_run, tmp_path, words, said):
    result = average(finished_run, tmp_path / "model", *words)
    assert result.exit_code == 2 and said in result.stderr and not (tmp_path / "model").exists()


def test_an_average_replaces_nothing_but_a_model(finished_run, tmp_path):
    run_folder = shutil.copytree(finished_run, tmp_path / "run")
    before = sorted(run_folder.rglob("*"))
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "a.wav").touch()
    for output in (run_folder, tmp_path, tmp_path / "calls"):
        result = average(run_folder, output)
        assert result.exit_code == 2 and "expected a new or empty folder or a model" in result.output
    assert average(run_folder, run_folder / "model").exit_code == 0
    assert sorted(run_folder.rglob("*")) == before and (tmp_path / "calls" / "a.wav").exists()


@pytest.mark.parametrize("words", [["--int8", "--float16"], ["--precision", "float16", "--int8"]])
def test_an_export_has_one_precision(tmp_path, words):
    done = run("export", tmp_path, "--output-dir", tmp_path / "out", *words)
    assert done.exit_code == 2 and "--int8" in done.stderr and "expected one of them at most" in done.stderr
