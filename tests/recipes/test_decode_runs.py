"""recipes/decode.py with several processes, and after a crash: the result is that of one process in one go."""

import json
import os
import shutil
import signal
import time

import pytest
from lhotse import CutSet
from toy_runs import call, finish, read_cuts, start

pytestmark = pytest.mark.slow

OPTIONS = ["--blank-penalty", 4, "--threads", 1, "--max-duration", 12]
RESULTS = ("hyps.jsonl", "failures.jsonl")


@pytest.fixture(scope="module")
def cuts(tiny_corpus, tmp_path_factory):
    """Twenty cuts in ten or so batches, one of which cannot be decoded."""
    path = tmp_path_factory.mktemp("cuts") / "cuts.jsonl"
    found = read_cuts(tiny_corpus, "train") + read_cuts(tiny_corpus, "test")
    found[5].recording.sources[0].source = "/no/such/file.flac"
    CutSet.from_cuts(found).to_file(path)
    return path


def options(model, cuts, output, *more):
    return ["--model", model, "--cuts", cuts, "--output-dir", output, *OPTIONS, *more]


def results(folder):
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    speed = scores.pop("speed")
    scores["options"].pop("output_dir")
    return [(folder / name).read_bytes() for name in RESULTS], scores, speed


@pytest.fixture(scope="module")
def expected(decode_script, finished_run, cuts, tmp_path_factory):
    """One process, in one go."""
    folder = tmp_path_factory.mktemp("expected")
    assert call(decode_script.main, *options(finished_run, cuts, folder)).code == 2
    found = results(folder)
    assert len(found[0][0].splitlines()) == 19 and len(found[0][1].splitlines()) == 1
    return found


@pytest.mark.slow
def test_two_processes_give_what_one_gives(expected, finished_run, cuts, tmp_path):
    process = start("decode.py", *options(finished_run, cuts, tmp_path), ranks=2)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1  # torchrun's own code where a process ended with any other than 0
    files, scores, speed = results(tmp_path)
    assert (files, scores) == expected[:2]
    assert [part["audio_seconds"] > 10 for part in speed["ranks"]] == [True, True]
    assert sum(part["audio_seconds"] for part in speed["ranks"]) == pytest.approx(expected[2]["audio_seconds"])
    assert "process 1:" in said
    assert not (tmp_path / "parts").exists()


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_and_ends_them(finished_run, cuts, tmp_path):
    process = start("decode.py", *options(finished_run, cuts, tmp_path / "out", "--tasks", "sing"), ranks=2)
    done = finish(process)
    assert done.code == 1
    assert "error: --tasks: task 'sing': this model knows" in done.stderr
    assert not (tmp_path / "out").exists()


def kill_after_first_batch(folder, *arguments):
    """Start decode.py, and SIGKILL it as soon as a batch is on disk."""
    process = start("decode.py", *arguments)
    part = folder / "parts" / "part-0.jsonl"
    deadline = time.monotonic() + 200
    while not (part.exists() and b"\n" in part.read_bytes()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    return part


def test_a_killed_run_goes_on(expected, finished_run, cuts, tmp_path):
    part = kill_after_first_batch(tmp_path, *options(finished_run, cuts, tmp_path))
    before = part.read_bytes().count(b"\n")
    if (tmp_path / "scores.json").exists():
        pytest.skip("it was done before the signal came")
    # As a crash of the machine could leave it: half a line.
    with part.open("ab") as file:
        file.write(b'{"key": "0123", "rec')
    assert before >= 1
    process = start("decode.py", *options(finished_run, cuts, tmp_path))
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert "going on: " in said and " of 20 cuts were decoded before" in said
    files, scores, speed = results(tmp_path)
    assert (files, scores) == expected[:2]
    assert 0 < speed["cuts_decoded_before"] <= 20
    assert speed["audio_seconds"] < expected[2]["audio_seconds"]


def stop_before_writing(script, monkeypatch, *arguments):
    """A run that dies between its last batch and its results."""

    def die(*_):
        raise SystemExit(99)

    with monkeypatch.context() as patch:
        patch.setattr(script, "write", die)
        assert call(script.main, *arguments).code == 99


@pytest.mark.parametrize(
    ("more", "before"),
    [([], 20), (["--beam", 2], 0), (["--no-resume"], 0), (["--tasks", "asr"], 0), (["--show", 1], 20)],
)
def test_only_the_same_run_is_gone_on_with(
    decode_script, expected, finished_run, cuts, tmp_path, monkeypatch, more, before
):
    stop_before_writing(decode_script, monkeypatch, *options(finished_run, cuts, tmp_path))
    assert not (tmp_path / "hyps.jsonl").exists()
    lines = []
    monkeypatch.setattr(decode_script.click, "echo", lambda line="", **_: lines.append(str(line)))
    assert call(decode_script.main, *options(finished_run, cuts, tmp_path, *more)).code == 2
    files, _, speed = results(tmp_path)
    assert speed["cuts_decoded_before"] == before
    assert lines.pop(0).startswith("CPU threads: ")
    if before:
        assert lines[0].startswith("going on: 20 of 20 cuts")
        assert files == expected[0] and speed["rtf"] == 0
    else:
        assert lines[0].startswith("starting anew: ") and ("--no-resume" in lines[0]) == ("--no-resume" in more)
    assert not (tmp_path / "parts").exists()


def test_another_model_and_mended_audio_are_decoded_again(
    decode_script, finished_run, tiny_corpus, tmp_path, monkeypatch
):
    cuts = read_cuts(tiny_corpus, "test")
    audio = tmp_path / "mended.flac"
    audio.write_bytes(b"")
    good = cuts[0].recording.sources[0].source
    cuts[0].recording.sources[0].source = str(audio)
    path = tmp_path / "cuts.jsonl"
    CutSet.from_cuts(cuts).to_file(path)
    model = tmp_path / "model"
    shutil.copytree(finished_run / "model", model)
    arguments = options(model, path, tmp_path / "out", "--max-duration", 0.1)
    stop_before_writing(decode_script, monkeypatch, *arguments)
    shutil.copy(good, audio)
    assert call(decode_script.main, *arguments).code == 0
    assert results(tmp_path / "out")[2]["cuts_decoded_before"] == 3
    stop_before_writing(decode_script, monkeypatch, *arguments)
    (model / "config.yaml").write_text((model / "config.yaml").read_text() + "\n# another\n")
    assert call(decode_script.main, *arguments).code == 0
    assert results(tmp_path / "out")[2]["cuts_decoded_before"] == 0
