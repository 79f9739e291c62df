"""Batches are dealt out to processes, and part files survive a crash."""

import json
import os

import numpy as np
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import Recording

from tokenverse_pp.base.engine import Parts
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.data.audio.inputs import cut_of_samples
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.decoding.run import batch_digest, run_digest, share
from tokenverse_pp.models.bundle import load_model


def write(folder, rank, keys):
    parts = Parts(folder, rank)
    for key in keys:
        records, failures = [{"id": f"{key} é\u2028", "score": 0.1 + 0.2}], [{"id": f"no {key}"}]
        parts.append(key, {"records": records, "failures": failures})
    parts.close()


@given(cut=st.integers(0, 400))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("parts")
    write(folder, 0, "abc")
    path = folder / "part-0.jsonl"
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    # A line lacks nothing but its end if only the newline is gone.
    whole = [line for line in content.split(b"\n") if line.endswith(b"]}")]
    assert list(Parts(folder).read()) == list("abc")[: len(whole)]
    write(folder, 0, "de")
    write(folder, 1, "f")
    found = Parts(folder).read()
    assert {key: Parts(folder).line(place) for key, place in Parts(folder).places().items()} == found
    assert sorted(found) == sorted([*"abc"[: len(whole)], *"def"])
    for key in "df":
        assert found[key]["records"] == [{"id": f"{key} é\u2028", "score": 0.1 + 0.2}]
        assert found[key]["failures"] == [{"id": f"no {key}"}]


def test_foreign_lines_are_passed_over(tmp_path):
    (tmp_path / "part-0.jsonl").write_bytes(b'[]\n{"key": 1}\nnull\n\xff\xfe\n')
    assert Parts(tmp_path).read() == {} == Parts(tmp_path / "none").read()


def test_digest_changes_with_run_cuts_and_audio(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, [0.0] * 1600, 16000)
    cut = Recording.from_file(path).to_cut()
    first = batch_digest("run", [cut], False)
    assert first == batch_digest("run", [cut], False)
    others = {batch_digest("other", [cut], False), batch_digest("run", [cut, cut], False)}
    others.add(batch_digest("run", [cut.truncate(duration=0.05, preserve_id=True)], False))
    stored = batch_digest("run", [cut], True)
    os.utime(path, ns=(1, 1))
    others.add(batch_digest("run", [cut], False))
    assert len(others | {first}) == 5
    assert batch_digest("run", [cut], True) == stored  # the audio is not read
    path.unlink()
    assert batch_digest("run", [cut], False) not in others


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 6))
def test_every_batch_goes_to_one_process_and_loads_are_even(sizes, processes):
    """No process has more than another by more than the longest batch; the longest come first."""
    seconds = sorted(sizes, reverse=True)
    batches = [(str(i), [make_cut(f"c{i}", [], duration=float(n))]) for i, n in enumerate(seconds)]
    shares = [share(batches, DistributedContext(rank, processes)) for rank in range(processes)]
    assert sorted(key for part in shares for key, _ in part) == sorted(key for key, _ in batches)
    for part in shares:
        keys = [int(key) for key, _ in part]
        assert keys == sorted(keys)
    loads = [sum(cut.duration for _, group in part for cut in group) for part in shares]
    assert max(loads) - min(loads) <= max(seconds, default=0)


def test_samples_in_memory_have_the_same_digest_at_any_time():
    samples = np.linspace(-1, 1, 1600, dtype=np.float32)
    cut = cut_of_samples(samples, 16000, "samples")
    source = cut.recording.sources[0].source
    peak = source.index(b"PEAK")
    assert source[peak + 12 : peak + 16] == bytes(4)  # the time of day, as libsndfile writes it
    assert np.array_equal(cut.load_audio()[0], samples)
    others = [cut_of_samples(array, 16000, "samples").with_id(cut.id) for array in (samples, -samples)]
    for other in others:
        other.recording.id = cut.recording.id
    same, turned = (batch_digest("run", [other], False) for other in others)
    assert same == batch_digest("run", [cut], False) != turned


def test_results_of_other_scales_of_a_language_model_are_not_reused(finished_run, tmp_path):
    (tmp_path / "words.tsv").write_text("dun\t30\n")
    loaded = load_model(finished_run)
    options = DecodeOptions(SearchOptions(lm=str(tmp_path / "words.tsv")))
    digests = {run_digest(loaded, options)}
    for scale in (0.3, 0.6):
        (tmp_path / "lm.json").write_text(json.dumps({"lm_scale": scale}))
        digests.add(run_digest(loaded, options))
    assert len(digests) == 3
