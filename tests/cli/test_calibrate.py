"""`tokenverse-pp calibrate`, from decoded cuts to a file in the model folder that decoding finds."""

import json
import random
import shutil

import pytest
from click.testing import CliRunner
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.cli.main import cli
from tokenverse_pp.decoding.hypothesis import read_calibration

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
    arguments = ["calibrate", "--model", model, "--hyps", hyps, "--cuts", cuts, *more]
    return CliRunner().invoke(cli, list(map(str, arguments)))


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


def test_other_output(model, decoded, tmp_path):
    assert calibrate(model, *decoded, "--output", tmp_path / "new" / "c.json").exit_code == 0
    assert not (model / "calibration.json").exists() and (tmp_path / "new" / "c.json").is_file()


def test_bad_input_is_one_line_and_leaves_nothing(model, decoded, tmp_path):
    hyps, cuts = decoded
    without = tmp_path / "without.jsonl"
    without.write_text('{"id": "c0", "text": "un"}\n')
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text('{"id": "x", "text": "un", "words": []}\n')
    silent = tmp_path / "silent.jsonl"
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
        assert done.exit_code == 2 and "error: " in done.output and said in done.output, done.output
        assert not (model / "calibration.json").exists()
