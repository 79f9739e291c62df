"""The experiments through their real command line: killed, gone on with, skipped when finished, gathered."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from experiment_grids import SCRIPT, place_of, write_grid
from toy_runs import environment

from tokenverse_pp.models.checkpoint import list_checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def places(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    return write_grid(tiny_corpus, folder / "grid.yaml"), tiny_corpus, folder / "exp"


def command(places, *words):
    grid, corpus, exp_dir = places
    options = ["--grid", grid, "--data", corpus, "--exp-dir", exp_dir]
    return [sys.executable, str(SCRIPT), *map(str, (*options, *words))]


def call(places, *words):
    done = subprocess.run(command(places, *words), env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(happened, process=None):
    deadline = time.monotonic() + 300
    while not happened():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def logged(folder):
    """The lines of log.jsonl about steps."""
    return [line for line in (folder.model / "log.jsonl").read_text().splitlines() if '"kind": "train"' in line]


def is_free(folder):
    with folder.locked() as lock:
        return lock is not None


def kill_when(process, happened):
    """kill -9 of a process and all its children as soon as something has happened."""
    wait_for(happened, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def start(places, *words):
    return subprocess.Popen(
        command(places, *words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_a_killed_grid_goes_on_and_what_is_finished_is_not_done_again(places):
    place = place_of(*places[:2], places[2])
    folder = place.folder(place.grid.runs["pp"], 1)
    kill_when(start(places, "run", "pp", "--seeds", 1), lambda: list_checkpoints(folder.model))
    assert folder.trained is None
    wait_for(lambda: is_free(folder))  # its child was killed too, and holds the lock until it is gone
    first_steps = logged(folder)[:2]
    assert [json.loads(line)["step"] for line in first_steps] == [1, 2]
    # A second command at the same time leaves the run to the first.
    with folder.locked() as lock:
        assert lock is not None
        assert "pp seed 1: another process is at it" in call(places, "run", "pp", "--seeds", 1)

    said = call(places, "run", "pp", "sets", "--seeds", 1)
    assert "pp seed 1: training: done" in said and "sets seed 1: decoding tasks=asr,ner: done" in said
    assert folder.trained["steps"] == 6 and folder.finished and not (folder.model / "checkpoints").exists()
    log = (folder.path / "train.log").read_text()
    assert log.count("\n$ ") == 2, log
    # What was trained before the kill was not trained again: a record has its speed to many digits.
    assert logged(folder)[:2] == first_steps
    assert [json.loads(line)["step"] for line in logged(folder)] == [1, 2, 3, 4, 5, 6]
    times = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.name != "lock"}

    said = call(places, "run", "pp", "sets", "--seeds", 1)
    assert said.splitlines() == ["pp seed 1: finished before", "sets seed 1: finished before"]
    assert times == {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.name != "lock"}

    # One training of another seed, made from the same tokenizer; then all there is in one file.
    call(places, "run", "asr")
    results, claims = places[2] / "results.json", places[2] / "claims.yaml"
    claims.write_text("claims: [{id: w, says: w, run: pp, is: not worse, than: asr, metric: wer}]")
    call(places, "--claims", claims, "gather", "--results", results, "--resamples", 200)
    found = json.loads(results.read_text())
    assert set(found["runs"]) == {"pp", "asr", "sets"} and len(found["runs"]["sets"]["sweep"]) == 2
    scores = json.loads((folder.output(folder.run.decodings[0]) / "scores.json").read_text())
    for metric, theirs in (
        ("wer", scores["wer"]["all"]["wer"]),
        ("ner exact", scores["ner"]["exact"]["f1"]),
        ("scd text", scores["scd"]["text"]["f1"]),
        ("lid accuracy", scores["lid"]["accuracy"]),
    ):
        assert found["runs"]["pp"]["scores"]["all"][metric]["mean"] == pytest.approx(theirs, abs=1e-5)
    assert found["claims"][0]["verdict"] in ("supported", "not supported")
    switched = json.loads((folder.output(folder.run.switching) / "switching.json").read_text())["counts"]
    alone = list(switched["switched wer alone"].values())
    of_all = found["runs"]["pp"]["scores"]["all"]["switched wer alone"]["mean"]
    assert of_all == pytest.approx(sum(n for n, _ in alone) / sum(d for _, d in alone), abs=1e-5)
    listed = call(places, "worst", "pp", "--number", 3, "--min-words", 1)
    assert listed.splitlines()[0].startswith("id") and "cause, all with errors" in listed
    assert list(found["failures"]) == ["pp"] and found["failures"]["pp"]["worst"][0][-1] == "cause"


def test_a_run_that_fails_is_told_and_others_are_done(places, tmp_path):
    corpus = places[1]
    bad = write_grid(corpus, tmp_path / "grid.yaml")
    text = bad.read_text().replace("tasks.names:\n      - asr\n", "tasks.names:\n      - asr\n      - sing\n")
    assert text != bad.read_text()
    bad.write_text(text)
    done = subprocess.run(
        command((bad, corpus, tmp_path / "exp"), "run", "asr"), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "asr seed 1: failed: exit code 2" in done.stdout and "train.log" in done.stdout
    assert "1 of 1 runs failed: asr seed 1" in done.stderr
