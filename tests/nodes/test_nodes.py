"""Several machines: training and decoding over a network, and what happens when a part of it fails."""

import json
import shutil
import signal
import socket
import time

import pytest
from machines import Network, wait_until, why_not
from toy_runs import finish, start, toy_options

from tokenverse_pp.training.log import read_log

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]
DELAY, LOSS = 0.05, 0.05  # of the bad link: seconds in each direction, share of the packets


@pytest.fixture
def network(tmp_path):
    made = Network(tmp_path)
    yield made
    made.close()


def options(corpus, exp_dir, **changes):
    """Options of train.py, without anything random that depends on the number of ranks."""
    small = {"data__valid": [], "data__max_cuts": 2, "training__peer_timeout": 5, "model__predictor_dropout": 0}
    return toy_options(corpus, exp_dir, **{**small, **changes})


def losses(text):
    """The losses by step in a log; a step that was made twice counts as it was made last."""
    records = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def steps_on(machine, exp_dir):
    """The steps in the log as a machine sees it."""
    return sorted(losses(machine.read(exp_dir / "log.jsonl")))


@pytest.fixture(scope="module")
def alone(tiny_corpus, tmp_path_factory):
    """Experiment folder of six steps in one process; each has the batches of two ranks."""
    exp_dir = tmp_path_factory.mktemp("alone") / "exp"
    changes = {"training__accumulate": 2, "training__max_steps": 6}
    done = finish(start("train.py", *options(tiny_corpus, exp_dir, **changes)))
    assert done.code == 0, done.stderr
    return exp_dir


def start_all(machines, folder, script, *options, **more):
    return [machine.start(folder / f"{machine.name}.txt", script, *options, **more) for machine in machines]


def test_two_machines_train_and_decode_as_one_process(network, tiny_corpus, alone, tmp_path):
    machines = [network.add(1), network.add(2)]
    exp_dir = tmp_path / "exp"
    runs = start_all(machines, tmp_path, "train.py", *options(tiny_corpus, exp_dir, training__max_steps=6), nodes=2)
    assert [run.wait() for run in runs] == [0, 0], runs[0].said()
    expected = losses((alone / "log.jsonl").read_text())
    assert losses((exp_dir / "log.jsonl").read_text()) == pytest.approx(expected, rel=1e-6) and len(expected) == 6
    # Decoding: no machine sees what the other writes.
    given = ["--model", exp_dir, "--cuts", f"{tiny_corpus}/cuts_train.jsonl.gz", "--no-report", "--max-duration", 10]
    done = finish(start("decode.py", *given, "--output-dir", tmp_path / "one"))
    assert done.code == 0, done.stderr
    for machine in machines:
        machine.own(tmp_path / "two")
    runs = start_all(machines, tmp_path, "decode.py", *given, "--output-dir", tmp_path / "two", nodes=2)
    assert [run.wait() for run in runs] == [0, 0], runs[0].said()
    assert machines[0].read(tmp_path / "two" / "hyps.jsonl") == (tmp_path / "one" / "hyps.jsonl").read_text()
    assert json.loads(machines[0].read(tmp_path / "two" / "scores.json"))["speed"]["ranks"][1]["audio_seconds"] > 0
    assert machines[1].names(tmp_path / "two") == []
