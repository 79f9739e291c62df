"""Stored features of a frozen encoder: the numbers of training from audio, from the right encoder, or refused."""

import contextlib
import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lhotse import CutSet
from toy_runs import assert_one_line, call, call_ok, read_cuts, save_frozen_encoder, toy_options, toy_parts

from tokenverse_pp.base import engine
from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.config_files import save_config
from tokenverse_pp.base.engine import Parts, ShardEngine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.cli.main import cli
from tokenverse_pp.data.access import current_access
from tokenverse_pp.data.dataset import FEATURES, features_key, load_inputs
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import open_rounds
from tokenverse_pp.decoding.recognizer import Recognizer
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.stored_features import (
    ORIGIN,
    StoringJob,
    batches_of,
    carry_features,
    check_features,
    check_origin,
    perturbed,
    store_features,
)
from tokenverse_pp.training.inputs import check_data, make_inputs
from tokenverse_pp.training.log import read_log


@pytest.fixture(scope="module")
def frozen(tiny_corpus, tmp_path_factory):
    """Options of a tiny frozen wav2vec2."""
    return save_frozen_encoder(tiny_corpus, tmp_path_factory.mktemp("frozen") / "wav2vec2-tiny")


@pytest.fixture(scope="module")
def parts(tiny_corpus, frozen):
    return toy_parts(tiny_corpus, **frozen)


def store(toy, cuts, folder, **options):
    config = toy.config.model.encoder
    return store_features(CutSet.from_cuts(cuts), toy.model.encoder, config, folder, **options)


@pytest.fixture(scope="module")
def stored(tiny_corpus, parts, tmp_path_factory):
    return store(parts, read_cuts(tiny_corpus), tmp_path_factory.mktemp("features"), dtype="float32", max_duration=9.0)


def test_stored_numbers_are_the_encoders(tiny_corpus, parts, stored):
    cut = list(stored)[3]
    audio = torch.from_numpy(cut.load_audio())
    features, lens = parts.model.encoder.extract(audio, torch.tensor([audio.shape[1]]))
    found = load_inputs(cut, stored_features=True)
    assert found.shape == (int(lens), parts.model.encoder.feature_dim) and found.dtype == torch.float32
    assert torch.allclose(found, features[0], atol=1e-4)
    assert cut.supervisions == read_cuts(tiny_corpus)[3].supervisions
    assert cut.custom["tasks"] == read_cuts(tiny_corpus)[3].custom["tasks"]


def test_half_precision_is_nearly_as_good_and_half_as_large(tiny_corpus, parts, stored, tmp_path):
    half = list(store(parts, read_cuts(tiny_corpus)[:3], tmp_path))
    assert half[0].load_custom(FEATURES).dtype == np.float16
    exact, rough = (load_inputs(cuts[0], stored_features=True) for cuts in (list(stored), half))
    assert torch.allclose(rough, exact, rtol=1e-3, atol=1e-3) and not torch.equal(rough, exact)


def test_features_of_another_encoder_are_refused(tiny_corpus, parts, stored):
    cut, config = next(iter(stored)), parts.config.model.encoder
    check_origin(cut, config)
    check_origin(cut, dataclasses.replace(config, name=f"/somewhere/else/{config.name.split('/')[-1]}"))  # it was moved
    for changes in ({"layers": [2]}, {"name": "elsewhere/other"}):
        with pytest.raises(UserError, match=f"cut {cut.id}: its features were stored by"):
            check_origin(cut, dataclasses.replace(config, **changes))
    with pytest.raises(UserError, match="no stored features"):
        check_origin(read_cuts(tiny_corpus)[0], config)


def test_speed_perturbation_gives_cuts_of_their_own(tiny_corpus, parts, tmp_path):
    cuts = read_cuts(tiny_corpus)[:2]
    every = perturbed(CutSet.from_cuts(cuts), [0.9, 1.0, 1.1])
    found = {cut.id: cut for cut in store(parts, every, tmp_path)}
    assert set(found) == {f"{cut.id}{suffix}" for cut in cuts for suffix in ("", "_sp0.9", "_sp1.1")}
    for cut in cuts:
        slow, plain, fast = (found[f"{cut.id}{suffix}"] for suffix in ("_sp0.9", "", "_sp1.1"))
        assert slow.duration == pytest.approx(cut.duration / 0.9, abs=0.01)
        frames = [len(load_inputs(c, stored_features=True)) for c in (slow, plain, fast)]
        assert frames == sorted(frames, reverse=True) and frames[0] == pytest.approx(frames[1] / 0.9, abs=2)
        assert [sup.text for sup in fast.supervisions] == [sup.text for sup in cut.supervisions]
        assert fast.custom["tasks"] == cut.custom["tasks"]
        assert fast.supervisions[0].custom == cut.supervisions[0].custom


def test_encoder_that_is_trained_is_refused(tiny_corpus, tmp_path):
    parts = toy_parts(tiny_corpus)
    with pytest.raises(UserError, match="frozen"):
        store(parts, read_cuts(tiny_corpus)[:1], tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_mixed_cut_is_refused_before_anything_is_encoded(tiny_corpus, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(StoringJob, "store", None)
    first, second, third = read_cuts(tiny_corpus)[:3]
    mixed = [cut.pad(duration=cut.duration + 1, preserve_id=True) for cut in (second, third)]
    with pytest.raises(UserError, match=f"cut {second.id}: a mixed cut holds no features"):
        store(parts, [first, *mixed], tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_features_that_were_deleted_are_named(tiny_corpus, parts, tmp_path):
    (cut,) = store(parts, read_cuts(tiny_corpus)[:1], tmp_path)
    (file,) = tmp_path.rglob("*.npy")
    for content in (file.read_bytes()[:200], b"", None):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(UserError, match=rf"cut {cut.id}: stored features .*{file.name}") as caught:
            load_inputs(cut, stored_features=True)
        assert "\n" not in str(caught.value)


def test_batches_hold_as_much_as_fits(tiny_corpus):
    cuts = read_cuts(tiny_corpus)
    for limit in (0.1, 5.0, 12.0, 1000.0):
        groups = list(batches_of(cuts, limit))
        assert [cut.id for group in groups for cut in group] == [cut.id for cut in cuts]
        assert all(len(cuts) == 1 or len(cuts) * max(cut.duration for cut in cuts) <= limit for cuts in groups)
    assert len(list(batches_of(cuts, 1000.0))) == 1 and len(list(batches_of(cuts, 0.1))) == len(cuts)


@pytest.mark.slow
def test_command_line_and_a_whole_run_give_the_losses_of_audio(train_script, tiny_corpus, frozen, parts, tmp_path):
    save_config(parts.config, tmp_path / "c.yaml")
    for split in ("train", "dev"):
        source, output = tiny_corpus / f"cuts_{split}.jsonl.gz", tmp_path / "out" / f"cuts_{split}.jsonl.gz"
        options = [str(source), str(output), "--config", str(tmp_path / "c.yaml"), "--dtype", "float32"]
        result = CliRunner().invoke(cli, ["manifest", "store-features", *options])
        assert result.exit_code == 0, result.output
    runs = {}
    for name, changes in {
        "audio": {},
        "stored": {
            "data__train": [tmp_path / "out" / "cuts_train.jsonl.gz"],
            "data__valid": [tmp_path / "out" / "cuts_dev.jsonl.gz"],
        },
    }.items():
        exp_dir = tmp_path / name
        options = toy_options(tiny_corpus, exp_dir, **frozen, training__max_steps=4, training__valid_every=4, **changes)
        done = call_ok(train_script.main, *options)
        found = "stored features" if name == "stored" else "audio"  # data.stored_features: null
        assert f"input: {found}" in done.stderr
        numbers = [r for r in read_log(exp_dir / "log.jsonl") if r["kind"] in ("train", "valid")]
        runs[name] = [{k: r[k] for k in r if k not in ("kind", "speed", "data_wait")} for r in numbers]
    assert len(runs["audio"]) == 5
    for found, expected in zip(runs["stored"], runs["audio"]):
        assert found == pytest.approx(expected, rel=1e-4)
    # The frozen encoder's weights stay where they came from.
    assert (tmp_path / "audio" / "model" / "model.safetensors").stat().st_size < 300_000


def test_features_are_found_only_where_all_that_training_reads_are_there(parts, stored):
    cuts, config = list(stored), copy.deepcopy(parts.config.model)
    assert carry_features(cuts, config)
    assert not carry_features([cuts[0].with_custom(ORIGIN, None), *cuts[1:]], config)
    config.streaming.chunk_ms = [0, 640]
    assert not carry_features(cuts, config)  # none are of chunks
    config.streaming.chunk_ms, config.encoder.layers = [], [0, 1]
    assert not carry_features(cuts, config)
    config.encoder.kind = "finetune"
    assert not carry_features(cuts, config)


def test_features_of_a_cut_that_was_trimmed_later_are_not_used(parts, stored, toy_tasks, caplog):
    """Training leaves the cut out, decoding refuses it; half a frame more or less does not matter."""
    cut = next(iter(stored))
    trimmed, nearly = (dataclasses.replace(cut, duration=cut.duration + off) for off in (-0.5, 0.01))
    config, world, encoder = copy.deepcopy(parts.config), DistributedContext(), parts.model.encoder
    config.data.stored_features = True
    cuts, rounds = [cut, nearly, trimmed], open_rounds(config.data, 1)
    with caplog.at_level("INFO"):
        inputs = make_inputs(config, world, toy_tasks, parts.tokenizer, encoder, rounds, cuts, begins=False)
    assert inputs.held_out == [cut, nearly]
    assert f"cut {cut.id} left out: its stored features have" in caplog.text
    loaded = ModelBundle(parts.config, toy_tasks, parts.tokenizer, parts.model)
    recognizer = Recognizer(loaded, DecodeOptions(SearchOptions("greedy"), stored_features=True))
    assert len(recognizer([cut, nearly]).records) == 2
    (failure,) = recognizer([trimmed]).failures
    assert f"cut {cut.id}: its stored features have" in failure["reason"]


def test_features_in_memory_are_found(parts, stored):
    """As those of a Shar folder are."""
    cut = next(iter(stored))
    in_memory = dataclasses.replace(cut.custom[FEATURES].move_to_memory(), storage_type="memory_npy")
    cut = dataclasses.replace(cut, custom={**cut.custom, FEATURES: in_memory})
    assert carry_features([cut], parts.config.model)
    check_features(cut, parts.config.model.encoder, [FEATURES])


def test_all_features_that_a_run_reads_are_looked_up_before_it_starts(parts, stored, toy_tasks, tmp_path):
    cuts, path = list(stored), str(tmp_path / "cuts.jsonl")
    chunked = features_key(ChunkOptions(320, 1))
    cuts[3].custom[chunked] = cuts[3].custom[FEATURES]
    lost = dataclasses.replace(cuts[9].custom[FEATURES], storage_key="gone.npy")
    cuts[9] = dataclasses.replace(cuts[9], custom={**cuts[9].custom, FEATURES: lost})
    config = copy.deepcopy(parts.config)
    config.data.stored_features = True

    def problem(chosen, chunk_ms=(), **data):
        CutSet.from_cuts(chosen).to_file(path)
        config.model.streaming.chunk_ms, config.model.streaming.left_chunks = list(chunk_ms), [1]
        config.data.train, config.data.valid = data.get("train", []), data.get("valid", [])
        with pytest.raises(UserError) as caught:
            check_data(config, toy_tasks)
            raise UserError("none")
        return str(caught.value)

    for files in ({"train": [path]}, {"valid": [path]}):
        assert problem(cuts[:9], **files) == "none"
        assert problem(cuts, **files).startswith(f"cut {cuts[9].id}: stored features ")
        assert problem(cuts, **files).endswith("gone.npy: no such file")
    assert problem(cuts[3:4], [0, 320], train=[path]) == "none"
    found = problem(cuts[3:5], [0, 320], train=[path])
    assert found.startswith(f"cut {cuts[4].id}: no stored features of these chunks")
    assert chunked in problem(cuts[3:5], [0, 320], train=[path], valid=[path])
    assert problem(cuts[3:5], [0, 320], valid=[path]) == "none"  # validated in full context
    assert chunked in problem(cuts[3:5], [320, 640], valid=[path])


def test_training_on_features_of_another_encoder_is_refused(train_script, tiny_corpus, frozen, stored, tmp_path):
    stored.to_file(tmp_path / "cuts.jsonl")
    changes = {**frozen, "data__stored_features": "true", "data__train": [tmp_path / "cuts.jsonl"], "data__valid": []}
    changes["model__encoder__layers"] = [0, 1]
    failure = call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", **changes))
    assert_one_line(failure, "features were stored by", next(iter(stored)).id)
    assert not (tmp_path / "exp").exists()


class Cluster(ShardEngine):
    """A cluster, as far as `store_features` knows: this process."""

    is_cluster = True


class Elsewhere(Cluster):
    """A cluster of machines with disks of their own: their files are not seen here."""

    def run(self, *args, **options):
        for line in super().run(*args, **options):
            for array in line["arrays"]:
                Path(array["storage_path"], array["storage_key"]).unlink()
            yield line


@contextlib.contextmanager
def current(cluster):
    token = engine._CURRENT.set(cluster)
    try:
        yield
    finally:
        engine._CURRENT.reset(token)


def test_a_cluster_continues_its_own_run_only(tiny_corpus, parts, tmp_path, monkeypatch):
    """Whatever other run has replaced the arrays, which are named by their cuts only."""
    cuts, compute, computed = read_cuts(tiny_corpus)[:12], StoringJob.store, []

    def counted(job, encoder, group):
        computed.append(group)
        if len(computed) == stop:
            raise OSError(28, "No space left on device")
        return compute(job, encoder, group)

    def run(folder=tmp_path / "out", of=ShardEngine, **options):
        computed.clear()
        options = {"dtype": "float16", "max_duration": 9.0, **options}
        with current(of()), contextlib.ExitStack() as stack:
            if stop:
                stack.enter_context(pytest.raises(OSError, match="No space"))
            kept = Parts(folder / "parts")
            stack.callback(kept.close)
            return [cut.load_custom(FEATURES) for cut in store(parts, cuts, folder, parts=kept, **options)]

    monkeypatch.setattr(StoringJob, "store", counted)
    stop = 0
    expected = run(tmp_path / "one")
    total = len(computed)
    assert total > 3
    others = [(ShardEngine, {"dtype": "float32"}), (Cluster, {"dtype": "float32"}), (Cluster, {"max_duration": 8.0})]
    for other, changes in [(None, {}), *others]:
        for path in tmp_path.glob("out/parts/*"):
            path.unlink()
        stop = 3
        run(of=Cluster)
        stop = 0
        if other is not None:
            run(of=other, **changes)
        found = run(of=Cluster)
        assert len(computed) == (total - 2 if other is None else total)
        assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected))


def test_arrays_on_disks_of_workers_are_missed(tiny_corpus, parts, tmp_path):
    with current(Elsewhere()), pytest.raises(UserError, match="file system that all machines share") as caught:
        store(parts, read_cuts(tiny_corpus)[:2], tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_worker_with_another_encoder_is_named(parts, tmp_path):
    job, config = StoringJob(str(tmp_path), "", "float16", False, None, current_access()), parts.config.model.encoder
    job.start(config, torch.get_num_threads(), job.digest(config))
    with pytest.raises(UserError, match=r"wav2vec2-tiny: on .* it differs from that of the command"):
        job.start(config, 1, job.digest(dataclasses.replace(config, layers=[0])))


@pytest.mark.slow
def test_several_processes_store_the_same_numbers(tiny_corpus, parts, stored, tmp_path):
    cuts = read_cuts(tiny_corpus)
    found = store(parts, cuts, tmp_path, dtype="float32", max_duration=9.0, jobs=2)
    assert [cut.id for cut in found] == [cut.id for cut in cuts]
    for ours, theirs in zip(found, stored):
        assert torch.allclose(load_inputs(ours, True), load_inputs(theirs, True), atol=1e-6)
