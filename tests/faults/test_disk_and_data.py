"""A full disk, audio that vanishes, samples that are no numbers."""

import json
import os

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from runs import LIMIT, Run, checkpoints, weights
from toy_runs import read_cuts, toy_options


def assert_refused(run, *said):
    """Exit code 2, and a last line that names the trouble, without a traceback."""
    assert run.wait(LIMIT) == 2, run.said()
    assert "Traceback" not in run.said()
    last = run.said().strip().splitlines()[-1]
    assert last.startswith("error: "), run.said()
    for part in said:
        assert part in last, last


@pytest.mark.slow
def test_full_disk_is_named_and_the_run_goes_on_from_the_last_checkpoint(tiny_corpus, tmp_path):
    exp_dir, stderr = tmp_path / "exp", tmp_path / "stderr"
    changes = {"training__save_every": 2, "training__valid_every": 100}
    first = Run.start(toy_options(tiny_corpus, exp_dir, training__max_steps=4, **changes), stderr)
    assert first.wait(LIMIT) == 0, first.said()
    kept = checkpoints(exp_dir)
    largest = max(path.stat().st_size for path in (exp_dir / "checkpoints" / kept[-1]).iterdir())
    options = toy_options(tiny_corpus, exp_dir, training__max_steps=8, **changes)
    assert_refused(Run.start(options, stderr, file_size=largest // 2), str(exp_dir))
    assert checkpoints(exp_dir) == kept
    again = Run.start(options, stderr)
    assert again.wait(LIMIT) == 0 and f"resuming from {kept[-1]}" in again.said(), again.said()
    alone = Run.start(toy_options(tiny_corpus, tmp_path / "alone", training__max_steps=8, **changes), stderr)
    assert alone.wait(LIMIT) == 0, alone.said()
    assert weights(exp_dir) == weights(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_audio_that_vanishes_in_training_is_named(tiny_corpus, tmp_path, workers):
    cuts = []
    for cut in read_cuts(tiny_corpus):
        path = tmp_path / f"{cut.id}.wav"
        soundfile.write(path, cut.load_audio()[0], cut.sampling_rate)
        cut.recording.sources[0].source = str(path)
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    changes = {"data__train": [tmp_path / "cuts.jsonl"], "data__valid": [], "data__num_workers": workers}
    options = toy_options(tiny_corpus, tmp_path / "exp", training__max_steps=100000, **changes)
    run = Run.start(options, tmp_path / "stderr")
    log = tmp_path / "exp" / "log.jsonl"
    while not (log.is_file() and '"kind": "train"' in log.read_text()):
        assert run.wait(0.1) is None, run.said()
    for path in tmp_path.glob("*.wav"):
        os.unlink(path)
    assert_refused(run, "cut ", ".wav", "no such file")


@pytest.mark.slow
def test_samples_that_are_no_numbers_are_named_and_passed_over(tiny_corpus, tmp_path):
    cuts = read_cuts(tiny_corpus)
    poisoned = cuts[0]
    samples = poisoned.load_audio()[0].copy()
    samples[len(samples) // 2] = np.nan
    path = tmp_path / "poisoned.wav"
    soundfile.write(path, samples, poisoned.sampling_rate, subtype="FLOAT")
    poisoned.recording.sources[0].source = str(path)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    exp_dir = tmp_path / "exp"
    run = Run.start(toy_options(tiny_corpus, exp_dir, data__train=[tmp_path / "cuts.jsonl"]), tmp_path / "stderr")
    assert run.wait(LIMIT) == 0, run.said()
    assert poisoned.id in run.said()  # whichever way it was found
    records = [json.loads(line) for line in (exp_dir / "log.jsonl").read_text().splitlines()]
    final = [record for record in records if record["kind"] == "valid"][-1]
    assert np.isfinite(final["loss"])
