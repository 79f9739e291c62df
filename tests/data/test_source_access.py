"""Manifests of strangers: no command is run, no URL opened and no pickle read for them unless the user allows it.

Each test has something hostile that would leave a canary: a file that is not there afterwards.
"""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from command_lines import run
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import AudioSource, CutSet, MonoCut, Recording
from lhotse.array import Array, TemporalArray
from lhotse.augmentation import ReverbWithImpulseResponse
from lhotse.cut import MixedCut, MixTrack
from tiny_models import write_model
from toy_runs import assert_one_line, call, save_frozen_encoder, toy_options

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import (
    FILES_ONLY,
    access_problems,
    allow_sources,
    check_audio,
    current_access,
    file_problem,
)
from tokenverse_pp.data.audio.inputs import open_audio
from tokenverse_pp.data.dataset import FEATURES, Activation, TransducerDataset, load_inputs
from tokenverse_pp.data.importing.audio import AudioFinder
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.data.samplers import open_source

RATE = 16000


@pytest.fixture
def wave(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    return path


def recording(kind, source, **how):
    return Recording("r", [AudioSource(kind, [0], source)], RATE, RATE, 1.0, **how)


def cut_with(source, cut_id="evil", **custom):
    cut = make_cut(cut_id, [{"text": "bon", "speaker": "a", "language": "qaa"}], ["asr"], duration=1.0, **custom)
    cut.recording = source
    return cut


def hostile_cuts(wave, canary):
    """Cuts that run a command when their audio is loaded, by what runs it."""
    command = recording("command", f"touch {canary}; cat {wave}")
    plain = MonoCut("good", 0.0, 1.0, 0, recording=Recording.from_file(wave))
    room = ReverbWithImpulseResponse(rir=command.to_dict())
    return {
        "source": cut_with(command),
        "track": MixedCut("evil", [MixTrack(plain), MixTrack(cut_with(command))]),
        "room": cut_with(recording("file", str(wave), transforms=[room])),
        "room of data": cut_with(recording("file", str(wave), transforms=[room.to_dict()])),
        "mix": MixedCut("evil", [MixTrack(plain), MixTrack(plain)], transforms=[room]),
        "pipe": cut_with(recording("url", f"pipe:touch {canary}; cat {wave}")),
    }


@pytest.mark.parametrize("kind", ["source", "track", "room", "room of data", "mix", "pipe"])
def test_commands_of_manifests_are_not_run(wave, canary, kind):
    cut = hostile_cuts(wave, canary)[kind]
    with pytest.raises(UserError, match=r"^cut evil: field 'recording': .*touch.* is a command.*--allow-commands"):
        load_inputs(cut)
    [problem] = check_audio(cut)
    assert "is a command" in problem and not canary.exists()
    with allow_sources(urls=True), pytest.raises(UserError, match="--allow-commands"):
        load_inputs(cut)
    assert not canary.exists() and current_access() == FILES_ONLY
    with allow_sources(commands=True):
        assert len(load_inputs(cut)) == RATE
    assert canary.exists()


@pytest.mark.parametrize("kind", ["url", "file"])
def test_urls_of_manifests_are_not_opened(wave, kind, monkeypatch):
    opened = []

    def opening(path, mode="rb"):
        opened.append(path)
        return io.BytesIO(wave.read_bytes())

    monkeypatch.setattr("lhotse.audio.source.open_best", opening)
    cut = cut_with(recording(kind, "https://example.org/a.wav"))
    for allowed in (False, True):
        with allow_sources(commands=allowed), pytest.raises(UserError, match=r"cut evil: .* is a URL.*--allow-urls"):
            load_inputs(cut)
    assert not opened
    with allow_sources(urls=True):
        if kind == "url":
            assert len(load_inputs(cut)) == RATE and opened
        else:
            with pytest.raises(UserError, match="no such file"):
                load_inputs(cut)


class Pickled:
    """Something that runs code when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def hostile_arrays(canary):
    touch = f"pipe:touch {canary}; "
    return {
        "numpy_files": Array("numpy_files", touch, "a.npy", [4, 2]),
        "lilcom_files": Array("lilcom_files", touch, "a.llc", [4, 2]),
        "lilcom_chunky": Array("lilcom_chunky", touch, "0,8", [4, 2]),
        "kaldiio": Array("kaldiio", f"touch {canary} |", "a", [4, 2]),
        "memory_raw": Array("memory_raw", "", pickle.dumps(Pickled(canary)), [4, 2]),
        "temporal": TemporalArray(Array("numpy_files", touch, "a.npy", [4, 2]), 0, 0.25, 0),
        "recording": recording("command", f"touch {canary}"),
        "other": Array("no such storage", "", "a", [4, 2]),
    }


@pytest.mark.parametrize("kind", hostile_arrays(None))
def test_arrays_behind_commands_and_pickles_are_not_read(canary, kind):
    cut = cut_with(None, **{FEATURES: hostile_arrays(canary)[kind]})
    with pytest.raises(UserError, match=r"^cut evil: .*--allow-commands"):
        load_inputs(cut, stored_features=True)
    assert not canary.exists()


def test_arrays_behind_urls_are_not_read():
    for path in ("https://example.org/x", "s3://bucket", "hdfs:/x"):
        cut = cut_with(None, **{FEATURES: Array("numpy_files", path, "a.npy", [4, 2])})
        with pytest.raises(UserError, match=r"cut evil: array .* is behind a URL.*--allow-urls"):
            load_inputs(cut, stored_features=True)


def test_pickle_in_a_yaml_manifest(canary, tmp_path):
    """JSON cannot hold bytes, but YAML can."""
    array = hostile_arrays(canary)["memory_raw"].to_dict()
    path = tmp_path / "cuts.yaml"
    cut = cut_with(None).to_dict()
    cut["custom"][FEATURES] = array
    path.write_text(yaml.safe_dump([cut]))
    assert "!!binary" in path.read_text()
    with pytest.raises(UserError, match="memory_raw, which can run code"):
        load_inputs(next(read_cuts(path)), stored_features=True)
    refused = run("manifest", "to-shar", path, tmp_path / "shar", "--audio", "none")
    assert refused.exit_code == 2 and "cut number 1: holds what JSON cannot" in refused.stderr
    assert not canary.exists()


def test_plain_storage_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 2), np.float32))
    cut = cut_with(None, **{FEATURES: Array("numpy_files", str(tmp_path), "a.npy", [4, 2])})
    assert load_inputs(cut, stored_features=True).shape == (4, 2)


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    st.lists(st.sampled_from(["list", "dict", "tuple", "transform"]), max_size=5),
)
def test_a_command_is_found_wherever_it_stands(other, around):
    value = {"type": "command", "channels": [0], "source": "touch x"}
    for kind in around:
        wrapped = {"list": [other, value], "tuple": (value, other), "dict": {"a": other, "b": value}}
        value = wrapped.get(kind, {"name": "Reverb", "kwargs": {"rir": value, "x": other}})
    [problem] = access_problems(cut_with(recording("file", "a.wav", transforms=[value])))
    assert "'touch x' is a command" in problem


@pytest.mark.parametrize("name", ["a; touch x.sph", "$(touch x).sph", "`touch x`.SPH", "a'b.sph", "a&b.sph", "a|b.sph"])
def test_names_of_sphere_files_reach_no_shell(tmp_path, name, canary):
    path = tmp_path / name
    soundfile.write(path, np.zeros(RATE), RATE, format="NIST")
    cut = cut_with(recording("file", str(path)))
    for commands in (False, True):
        with allow_sources(commands=commands), pytest.raises(UserError, match="signs that a shell would act on"):
            load_inputs(cut)
    finder = AudioFinder(tmp_path)
    assert "signs that a shell would act on" in finder._open(str(path), "r")
    with pytest.raises(UserError, match="signs that a shell would act on"):
        open_audio(path)
    assert file_problem(str(tmp_path / "sw-02_a.sph")) == file_problem(name[:-4] + ".wav") == ""


def test_worker_processes_are_told(wave, canary, toy_tasks):
    """The data set keeps what was allowed where it was made."""
    cut = hostile_cuts(wave, canary)["source"]
    with allow_sources(commands=True):
        allowing = TransducerDataset(toy_tasks, None, Activation())
    refusing = TransducerDataset(toy_tasks, None, Activation())
    allowing.target = refusing.target = lambda cut, names: torch.zeros(1, dtype=torch.int64)
    with pytest.raises(UserError, match="--allow-commands"):
        refusing[CutSet.from_cuts([cut])]
    assert not canary.exists()
    assert len(allowing[CutSet.from_cuts([cut])]["inputs"]) == 1 and canary.exists()


@pytest.fixture(scope="module")
def model(tiny_corpus, tmp_path_factory):
    return write_model(tiny_corpus, tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def manifest(wave, canary, tmp_path):
    """A manifest of one cut that runs a command."""
    path = tmp_path / "cuts.jsonl"
    CutSet.from_cuts([hostile_cuts(wave, canary)["source"]]).to_file(path)
    return path


@pytest.mark.parametrize("command", ["validate", "report"])
def test_commands_that_read_manifests(manifest, canary, tmp_path, command):
    hyps = tmp_path / "hyps.jsonl"
    hyps.write_text('{"id": "evil", "text": "wrong"}')
    words = {
        "validate": ("manifest", "validate", "--audio", manifest),
        "report": ("report", "--hyps", hyps, "--cuts", manifest, "--output", tmp_path / "r.html", "--embed-audio"),
    }[command]
    refused = run(*words)
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "cut evil" in refused.stderr and "touch" in refused.stderr and "--allow-commands" in refused.stderr
    assert not canary.exists()
    allowed = run(*words, "--allow-commands")
    assert allowed.exit_code == 0 and canary.exists(), allowed.stderr


def test_transcribing_and_decoding_cuts(manifest, canary, model, tmp_path, decode_script):
    words = ("transcribe", manifest, "--model", model, "--method", "greedy", "--output-dir", tmp_path / "out")
    refused = run(*words)
    assert refused.exit_code == 2 and "cut evil" in refused.stderr and "--allow-commands" in refused.stderr
    decode = ["--model", model, "--cuts", manifest, "--output-dir", tmp_path / "dec", "--method", "greedy"]
    refused = call(decode_script.main, *decode, standalone_mode=True)
    assert refused.code == 2 and "cut evil" in refused.stderr and not canary.exists()
    done = call(decode_script.main, *decode, "--allow-commands", standalone_mode=True)
    assert done.code == 0 and canary.exists(), done.stderr
    canary.unlink()
    assert run(*words, "--allow-commands").exit_code == 0 and canary.exists()


def train_options(corpus, manifest, exp_dir, **changes):
    changes.update(data__train=[manifest], data__valid=[], tasks__names=["asr"], tasks__languages=[])
    return toy_options(corpus, exp_dir, **changes, tokenizer__vocab_size=6, training__max_steps=1)


def test_training_runs_no_commands(manifest, canary, tiny_corpus, tmp_path, train_script):
    failure = call(train_script.main, *train_options(tiny_corpus, manifest, tmp_path / "exp"))
    assert_one_line(failure, "cut evil", "touch", "data.allow_commands")
    assert not canary.exists() and not (tmp_path / "exp").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_training_where_commands_are_allowed(manifest, canary, tiny_corpus, tmp_path, train_script, workers):
    changes = {"data__validate": "false", "data__num_workers": workers}
    refused = call(train_script.main, *train_options(tiny_corpus, manifest, tmp_path / "exp", **changes))
    assert refused.code == 2 and "cut evil" in refused.stderr and not canary.exists()
    changes["data__allow_commands"] = "true"
    done = call(train_script.main, *train_options(tiny_corpus, manifest, tmp_path / "other", **changes))
    assert done.code == 0 and canary.exists(), done.stderr


def test_storing_features_runs_no_commands(manifest, canary, tiny_corpus, tmp_path):
    options = {**save_frozen_encoder(tiny_corpus, tmp_path / "enc"), "model__encoder__layers": [-1]}
    encoder = {name.split("__")[-1]: str(x) if isinstance(x, Path) else x for name, x in options.items()}
    encoder["random_init"] = False
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump({"model": {"encoder": encoder}}))
    words = ("manifest", "store-features", manifest, tmp_path / "new.jsonl", "--config", tmp_path / "conf.yaml")
    refused = run(*words)
    assert refused.exit_code == 2 and "cut evil" in refused.stderr and not canary.exists()
    assert not (tmp_path / "new.jsonl").exists()
    allowed = run(*words, "--allow-commands")
    assert allowed.exit_code == 0 and canary.exists(), allowed.stderr


def test_shar_folder_with_a_command_for_a_name(tmp_path, canary, monkeypatch):
    good = tmp_path / "shar"
    good.mkdir()
    (good / "cuts.000000.jsonl").write_text(json.dumps(cut_with(None).to_dict()) + "\n")
    (good / f"pipe:touch {canary.name};.000000.tar").write_bytes(b"")
    monkeypatch.chdir(good)
    with pytest.raises(UserError, match="pipe:touch"):
        next(open_source(".").open_at(0))
    assert not list(tmp_path.rglob(canary.name))


def test_ids_of_cuts_stay_in_the_output_folder(model, tmp_path, wave):
    cuts = [cut_with(Recording.from_file(wave), cut_id) for cut_id in ("../../out", "/etc/x", "..", "a\x1b[2Jb")]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    done = run("transcribe", tmp_path / "cuts.jsonl", "--model", model, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0 and "\x1b" not in done.stdout, done.stderr
    written = [path.name for path in (tmp_path / "out").iterdir()]
    assert sorted(written) == ["-etc-x.txt", "..-..-out.txt", "...txt", "a-[2Jb.txt"]
