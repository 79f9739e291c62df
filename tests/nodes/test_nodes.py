"""Several machines: training and decoding over a network, and what happens when a part of it fails."""

import json
import re
import signal
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
    small = {"data__valid": [], "data__max_cuts": 2, "training__peer_timeout": 10, "model__predictor_dropout": 0}
    return toy_options(corpus, exp_dir, **{**small, **changes})


def losses(text):
    """The losses by step in a log; a step that was made twice counts as it was made last."""
    records = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def steps_on(machine, exp_dir):
    """The steps in the log as a machine sees it."""
    return sorted(losses(machine.read(exp_dir / "log.jsonl")))


def trained(exp_dir):
    return [record for record in read_log(exp_dir / "log.jsonl") if record["kind"] == "train"]


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
    print("steps took", ", ".join(f"{record['seconds'] / record['speed']:.2f}" for record in trained(exp_dir)), "s")
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


def test_machine_that_comes_late_and_one_that_fails(network, tiny_corpus, tmp_path):
    """Each machine has its own disk. The late one gets the checkpoint; the others go on without the one that fails."""
    exp_dir = tmp_path / "exp"
    changes = {"training__storage": "local", "training__save_every": 5, "training__max_steps": 100000}
    given = options(tiny_corpus, exp_dir, **changes)
    runs = {}

    def begin(number):
        machine = network.add(number)
        machine.own(exp_dir)
        output = tmp_path / f"node{number}.txt"
        runs[number] = machine.start(output, "train.py", *given, nodes="2:3", restarts=3)
        return machine

    def go_on_after(step):
        return wait_until(lambda: [s for s in steps_on(first, exp_dir) if s > step], 120, runs[1].said)

    first = begin(1)
    begin(2)
    go_on_after(6)
    third = begin(3)  # all stop after a step, save, and start again with it
    wait_until(lambda: "now 3: " in "".join(run.said() for run in runs.values()), 120, runs[1].said)
    (stopped,) = map(int, re.findall(r"stopped by a signal after step (\d+):", runs[1].said()))
    assert f"node3: step-{stopped:08d} received from rank" in runs[3].said()
    go_on_after(stopped + 6)
    network.fail(2)
    failed, before = time.monotonic(), max(steps_on(first, exp_dir))
    said = wait_until(
        lambda: [text for text in (runs[1].said(), runs[3].said()) if "now 2: " in text], 120, runs[1].said
    )
    resumed = int(said[0].split("now 2: ")[1].split("resuming from step-")[1][:8])
    assert before - 5 <= resumed <= before + 5  # nothing before the last checkpoint is made again
    go_on_after(before + 5)
    print(f"a step after the failure: {time.monotonic() - failed:.1f} s")
    for number in (1, 3):
        runs[number].signal(signal.SIGTERM)
    assert all(runs[number].wait() != 0 for number in (1, 3))
    last = f"step-{max(steps_on(first, exp_dir)):08d}"
    assert all(last in machine.names(exp_dir / "checkpoints") for machine in (first, third))
    sums = [json.loads(machine.read(exp_dir / "checkpoints" / last / "checksums.json")) for machine in (first, third)]
    assert sums[0] == sums[1]


def test_machine_that_is_taken_away_and_the_end_of_the_job(network, tiny_corpus, tmp_path):
    """SIGTERM to one of two machines, as of a spot market: the other goes on from that step. Then SIGUSR1 to a rank."""
    exp_dir = tmp_path / "exp"
    machines = [network.add(1), network.add(2)]
    given = options(tiny_corpus, exp_dir, training__save_every=100000, training__max_steps=100000)
    runs = start_all(machines, tmp_path, "train.py", *given, nodes="1:2", restarts=1, conf={"last_call_timeout": 15})
    wait_until(lambda: len(steps_on(machines[0], exp_dir)) > 3, 120, runs[0].said)
    runs[1].signal(signal.SIGTERM)
    assert runs[1].wait() != 0
    said = wait_until(lambda: "now 1: " in runs[0].said() and runs[0].said(), 120, runs[0].said)
    stopped = int(said.split("resuming from step-")[1][:8])
    wait_until(lambda: max(steps_on(machines[0], exp_dir)) > stopped + 3, 120, runs[0].said)
    runs[0].signal(signal.SIGUSR1, ranks=True)
    assert runs[0].wait() != 0
    steps = steps_on(machines[0], exp_dir)
    assert steps == list(range(1, len(steps) + 1)) and stopped > 3  # none is missing, and none was made twice
    names = machines[0].names(exp_dir / "checkpoints")
    assert names == [f"step-{stopped:08d}", f"step-{len(steps):08d}"]
    assert f"stopped by a signal after step {len(steps)}: " in runs[0].said()


def test_disk_of_one_machine_is_full(network, tiny_corpus, tmp_path):
    """The run ends and names it; the other machine has its checkpoint, and the run goes on with a larger disk."""
    exp_dir = tmp_path / "exp"
    machines = [network.add(1), network.add(2)]
    machines[0].own(exp_dir)
    machines[1].own(exp_dir, megabytes=1)
    given = options(tiny_corpus, exp_dir, training__storage="local", training__save_every=2, training__max_steps=4)
    runs = start_all(machines, tmp_path, "train.py", *given, nodes=2)
    assert [run.wait() for run in runs] == [1, 1]
    for run in runs:
        said = f"error: node2: {exp_dir}/checkpoints/step-00000002: cannot be written: "
        assert said in run.said().replace("rank 0 stops: rank 1 failed: ", "").replace(
            "rank 1 stops: rank 0 failed: ", ""
        )
    assert [machine.names(exp_dir / "checkpoints") for machine in machines] == [["step-00000002"], []]
    machines[1].call("umount", exp_dir)
    machines[1].own(exp_dir)
    runs = start_all(machines, tmp_path, "train.py", *given, nodes=2, ranks=2)
    assert [run.wait() for run in runs] == [0, 0], runs[0].said()
    assert "step-00000002 received from rank" in runs[1].said()
    sums = [json.loads(machine.read(exp_dir / "model" / "checksums.json")) for machine in machines]
    assert sums[0]["model.safetensors"] == sums[1]["model.safetensors"]
    assert [steps_on(machine, exp_dir) for machine in machines] == [[1, 2, 3, 4]] * 2


def test_folder_that_is_not_shared_is_refused(network, tiny_corpus, tmp_path):
    machines = [network.add(1), network.add(2)]
    machines[1].own(tmp_path / "exp")
    runs = start_all(machines, tmp_path, "train.py", *options(tiny_corpus, tmp_path / "exp"), nodes=2)
    assert [run.wait() for run in runs] == [1, 1]
    assert "exp of node2 is not that of node1: " in runs[0].said() and "--training.storage local" in runs[0].said()


def test_bad_link_slows_and_changes_nothing(network, tiny_corpus, alone, tmp_path):
    """50 ms of delay and 5% loss in each direction."""
    machines = [network.add(1), network.add(2, delay=DELAY, loss=LOSS)]
    exp_dir = tmp_path / "exp"
    given = options(tiny_corpus, exp_dir, training__max_steps=4)
    runs = start_all(machines, tmp_path, "train.py", *given, nodes=2, conf={"join_timeout": 300})
    assert [run.wait(300) for run in runs] == [0, 0], runs[0].said()
    expected = {step: loss for step, loss in losses((alone / "log.jsonl").read_text()).items() if step <= 4}
    assert losses((exp_dir / "log.jsonl").read_text()) == pytest.approx(expected, rel=1e-6)
    print("steps took", ", ".join(f"{record['seconds'] / record['speed']:.1f}" for record in trained(exp_dir)), "s")
