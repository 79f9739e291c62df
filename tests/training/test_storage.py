"""Experiment folders of several machines: each process here is one, with a folder of its own or a shared one."""

import gzip
import json
import multiprocessing
import shutil
import socket
from pathlib import Path

import fsspec
import pytest
import torch
import torch.distributed as dist
from lhotse import MonoCut

from tokenverse_pp.api.folders import keep_encoder, locate_encoder, locate_model
from tokenverse_pp.base import storage as objects
from tokenverse_pp.base.config import Config, DataConfig
from tokenverse_pp.base.engine import Parts
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import open_rounds
from tokenverse_pp.decoding.run import check_same, gather_lines, prepare
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training import storage
from tokenverse_pp.training.inputs import same_corpora
from tokenverse_pp.training.storage import RemoteRun, check_storage, open_remote, share_checkpoints

HOST = socket.gethostname()


@pytest.fixture
def on_machines(tmp_path):
    """Runs a function of a world on so many machines of one process -> results, or the messages of their errors."""

    def rank(function, number, count, shared, pipe):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group-{count}", rank=number, world_size=count)
        try:
            pipe.send(function(DistributedContext(number, count, machine=number, shared=shared)))
        except UserError as error:
            pipe.send(str(error))
        dist.destroy_process_group()

    def run(count, function, shared=False):
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe() for _ in range(count)]
        processes = [
            context.Process(target=rank, args=(function, n, count, shared, pipes[n][1]), daemon=True)
            for n in range(count)
        ]
        for process in processes:
            process.start()
        assert all(pipe.poll(60) for pipe, _ in pipes)
        found = [pipe.recv() for pipe, _ in pipes]
        for process in processes:
            process.join(20)
        (tmp_path / f"group-{count}").unlink(missing_ok=True)
        return found

    return run


def save(exp_dir, step, value=0.0):
    """A checkpoint with all its files."""
    tensors = {name: {"x": torch.full((3,), value)} for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER)}
    state = json.dumps({"step": step, "epoch": 0, "batch": 0, "world_size": 1})
    texts = {checkpoint.STATE: state.encode(), checkpoint.CONFIG: b"", checkpoint.TOKENIZER: b""}
    checkpoint.write_folder(checkpoint.checkpoint_dir(exp_dir, step), tensors, texts)
    (exp_dir / "log.jsonl").write_text(f"to step {step}\n")


def names(exp_dir):
    return sorted(path.name for path in (exp_dir / "checkpoints").iterdir())


def test_machines_start_from_the_latest_intact_checkpoint_of_any(on_machines, tmp_path):
    dirs = [tmp_path / f"machine-{number}" for number in range(3)]
    save(dirs[0], 2)
    save(dirs[0], 8)
    (checkpoint.checkpoint_dir(dirs[0], 8) / checkpoint.WEIGHTS).write_bytes(b"damaged")
    save(dirs[1], 2)
    save(dirs[1], 4, value=0.5)
    save(dirs[2], 4, value=0.1)  # of another run
    on_machines(3, lambda world: share_checkpoints(dirs[world.rank], world))
    aside = [["step-00000008.aside"], [], ["step-00000004.aside"]]
    for exp_dir, others in zip(dirs, aside):
        assert names(exp_dir) == sorted(["step-00000002", "step-00000004", *others])
        folder = checkpoint.list_checkpoints(exp_dir)[-1]
        assert checkpoint.damage(folder) is None
        assert checkpoint.read_tensors(folder / checkpoint.WEIGHTS)["x"].tolist() == [0.5] * 3
        assert (exp_dir / "log.jsonl").read_text() == "to step 4\n"


def test_what_others_removed_is_removed_and_what_is_damaged_left_out(on_machines, tmp_path):
    dirs = [tmp_path / "a", tmp_path / "b"]
    for step in (4, 6, 8):
        save(dirs[0], step)
    (checkpoint.checkpoint_dir(dirs[0], 6) / checkpoint.WEIGHTS).write_bytes(b"damaged")
    save(dirs[1], 2)
    save(dirs[1], 5)  # of another run
    on_machines(2, lambda world: share_checkpoints(dirs[world.rank], world))
    assert names(dirs[0]) == ["step-00000004", "step-00000006", "step-00000008"]
    assert names(dirs[1]) == ["step-00000004", "step-00000005.aside", "step-00000008"]


def test_machines_without_checkpoints_or_with_the_same_change_nothing(on_machines, tmp_path):
    dirs = [tmp_path / "a", tmp_path / "b"]
    on_machines(2, lambda world: share_checkpoints(dirs[world.rank], world))
    assert not any(path.exists() for path in dirs)
    for exp_dir in dirs:
        save(exp_dir, 2)
    (dirs[1] / "log.jsonl").write_text("of b\n")
    on_machines(2, lambda world: share_checkpoints(dirs[world.rank], world))
    assert (dirs[1] / "log.jsonl").read_text() == "of b\n"


def test_machine_that_cannot_write_a_checkpoint_is_named_by_all(on_machines, tmp_path):
    dirs = [tmp_path / "a", tmp_path / "b"]
    save(dirs[0], 2)
    dirs[1].write_text("a file")
    found = on_machines(2, lambda world: share_checkpoints(dirs[world.rank], world))
    assert found[0] == found[1] and found[0].startswith(f"{HOST}: {dirs[1]}/") and "cannot be written" in found[0]


def test_storage_must_be_as_it_is_said(on_machines, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SEEN_WITHIN", 0.2)
    dirs = [tmp_path / "a", tmp_path / "b"]
    assert on_machines(2, lambda world: check_storage(dirs[0], world), shared=True) == [None] * 2
    assert on_machines(2, lambda world: check_storage(dirs[world.rank], world)) == [None] * 2
    assert not any(list(path.iterdir()) for path in dirs)
    apart = on_machines(2, lambda world: check_storage(dirs[world.rank], world), shared=True)
    assert all("is not that of" in text and "--training.storage local" in text for text in apart)
    same = on_machines(2, lambda world: check_storage(dirs[0], world))
    assert same[0] == same[1] and same[0].startswith("--training.storage=local: ") and "the same folder" in same[0]
    monkeypatch.setenv("TOKENVERSE_PP_CACHE", str(tmp_path))
    same = on_machines(2, lambda world: check_storage(tmp_path / storage.RUNS / "exp", world))
    assert all(text.endswith("set TOKENVERSE_PP_CACHE to a folder on a local disk") for text in same)


def test_decoded_batches_come_from_all_machines(on_machines, tmp_path):
    """Each decodes one batch of its own, and has one from a run that was stopped."""

    def decode(world):
        parts = Parts(tmp_path / f"parts-{world.rank}", world.rank)
        batches = [(key, []) for key in "abcdef"]
        done = prepare(parts, batches, True, lambda line: None, world)
        mine = [key for key, _ in batches if key not in done][world.rank]
        parts.append(mine, {"records": [{"id": mine}], "failures": []})
        parts.close()
        lines = gather_lines(parts, [key for key, _ in batches], world)
        return done, sorted(lines)

    for number, key in enumerate("fed"):
        parts = Parts(tmp_path / f"parts-{number}", number)
        parts.append(key, {"records": [{"id": key}], "failures": []})
        parts.close()
    found = on_machines(3, decode)
    assert [done for done, _ in found] == [{"d", "e", "f"}] * 3
    assert found[0][1] == list("abcdef")


def test_machine_with_other_cuts_is_named(on_machines):
    cuts = [MonoCut(f"c{number}", 0, 1, 0) for number in range(2)]
    assert on_machines(2, lambda world: check_same(world, "run", cuts)) == [None, None]
    found = on_machines(2, lambda world: check_same(world, "run", cuts[world.rank :]))
    assert found == [f"--cuts: on {HOST} they differ from those on {HOST}"] * 2


def test_copies_of_manifests_that_differ_are_named(on_machines, tiny_corpus, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}").mkdir()
        for name in ("train", "dev"):
            (tmp_path / f"{number}" / f"{name}.jsonl.gz").write_bytes(
                (tiny_corpus / f"cuts_{name}.jsonl.gz").read_bytes()
            )

    def compare(world):
        folder = tmp_path / str(world.rank)
        rounds = open_rounds(DataConfig(train=[str(folder / "train.jsonl.gz")]), 0)
        return same_corpora(rounds, world, [str(folder / "dev.jsonl.gz")])

    first, second = on_machines(2, compare)
    assert first == second and [corpus["path"] for corpus in first] == [str(tmp_path / "0" / "train.jsonl.gz")]
    for name, option in (("dev", "--data.valid"), ("train", "--data.train")):
        with gzip.open(tmp_path / "1" / f"{name}.jsonl.gz", "at") as file:
            file.write(gzip.open(tiny_corpus / f"cuts_{name}.jsonl.gz", "rt").readline())
        path = tmp_path / "1" / f"{name}.jsonl.gz"
        assert all(
            said.startswith(f"{option}: {path} on {HOST} differs from that on") for said in on_machines(2, compare)
        )


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A URL in fsspec's file system in memory, and a cache of its own; what fails is not waited for."""
    monkeypatch.setenv("TOKENVERSE_PP_CACHE", str(tmp_path / "cache"))
    yield "memory://bucket/exp"
    fsspec.filesystem("memory").store.clear()


def remote_config(url):
    config = Config()
    config.training.exp_dir = url
    return config


def upload(run):
    run.upload()
    run.wait(needed=True)


def test_a_checkpoint_in_object_storage_counts_once_it_is_whole(bucket, tmp_path, monkeypatch, caplog):
    config = remote_config(bucket)
    run = open_remote(config, DistributedContext())
    exp_dir = Path(config.training.exp_dir)
    assert exp_dir == run.folder and config.training.storage == "local"
    save(exp_dir, 2)
    (exp_dir / "log.jsonl").write_text("two")
    upload(run)
    # The process is killed before the checksums of the next one are there.
    save(exp_dir, 4)
    (exp_dir / "log.jsonl").write_text("four")
    real = objects.upload

    def failing(source, url):
        if url.endswith(f"step-00000004/{checkpoint.CHECKSUMS}"):
            raise UserError("no space")
        real(source, url)

    monkeypatch.setattr(objects, "upload", failing)
    run.upload()
    run.wait()
    assert "not uploaded yet: no space" in caplog.text
    run.upload()
    with pytest.raises(UserError, match="no space"):
        run.wait(needed=True)
    assert f"checkpoints/step-00000004/{checkpoint.WEIGHTS}" in objects.list_folder(bucket)
    monkeypatch.setattr(objects, "upload", real)
    # Another machine has the latest whole one, this one its own.
    other = RemoteRun(bucket, tmp_path / "other")
    other.fetch()
    assert names(other.folder) == ["step-00000002"]
    here = open_remote(remote_config(bucket), DistributedContext())
    assert names(here.folder) == ["step-00000002", "step-00000004"]
    assert (here.folder / "log.jsonl").read_text() == "four"
    # What is deleted here is deleted there, once the new one is whole.
    shutil.rmtree(here.folder / "checkpoints" / "step-00000002")
    upload(here)
    other.fetch()
    assert names(other.folder) == ["step-00000004"] and (other.folder / "log.jsonl").read_text() == "four"
    assert {name.split("/")[1] for name in objects.list_folder(bucket) if "/" in name} == {"step-00000004"}


def test_a_damaged_checkpoint_in_object_storage_is_passed_over(bucket, tmp_path, caplog):
    config = remote_config(bucket)
    run = open_remote(config, DistributedContext())
    for step in (2, 4):
        save(run.folder, step)
    upload(run)
    objects.upload(b"damaged", f"{bucket}/checkpoints/step-00000004/{checkpoint.WEIGHTS}")
    other = RemoteRun(bucket, tmp_path / "other")
    other.fetch()
    assert names(other.folder) == ["step-00000002"] and "step-00000004 is left out" in caplog.text


def test_an_experiment_that_was_deleted_does_not_come_back(bucket):
    run = open_remote(remote_config(bucket), DistributedContext())
    save(run.folder, 2)
    upload(run)
    fsspec.filesystem("memory").store.clear()
    new = open_remote(remote_config(bucket), DistributedContext())
    assert new.folder != run.folder and not (new.folder / "checkpoints").exists()
    assert open_remote(remote_config("exp/local"), DistributedContext()) is None


def test_what_was_deleted_there_does_not_come_back(bucket):
    run = open_remote(remote_config(bucket), DistributedContext())
    for step in (2, 4):
        save(run.folder, step)
    upload(run)
    objects.upload(b"{}", f"{bucket}/test/hyps.jsonl")  # of a decoding
    save(run.folder, 6)
    for name in objects.list_folder(bucket):
        if name.startswith("checkpoints/step-00000004/"):
            objects.remove(f"{bucket}/{name}")
    # In another process: step 4 was there, step 6 was not.
    again = open_remote(remote_config(bucket), DistributedContext())
    assert names(again.folder) == ["step-00000002", "step-00000006"] and again.deleted == ["step-00000004"]
    upload(again)
    assert {name.split("/")[1] for name in objects.list_folder(bucket) if name.startswith("checkpoints/")} == {
        "step-00000002",
        "step-00000006",
    }
    # Without a later checkpoint the log goes, too, and what is not the run's stays where it is.
    objects.remove(f"{bucket}/log.jsonl")
    last = open_remote(remote_config(bucket), DistributedContext())
    assert not (last.folder / "log.jsonl").exists() and not (last.folder / "test").exists()
    before = objects.list_folder(bucket)
    upload(last)
    assert objects.list_folder(bucket) == before


def test_a_checkpoint_whose_upload_is_replaced_is_not_taken_for_deleted(bucket, monkeypatch):
    run = open_remote(remote_config(bucket), DistributedContext())
    save(run.folder, 2)
    upload(run)
    save(run.folder, 2, value=0.5)
    real = objects.upload

    def failing(source, url):
        if url.endswith(checkpoint.WEIGHTS):
            raise RuntimeError("killed")  # the checksums are gone there by now
        real(source, url)

    monkeypatch.setattr(objects, "upload", failing)
    run.upload()
    with pytest.raises(UserError, match=f"{bucket}: killed"):
        run.wait(needed=True)
    again = open_remote(remote_config(bucket), DistributedContext())
    assert names(again.folder) == ["step-00000002"] and again.deleted == []


def test_the_encoder_of_a_model_in_object_storage_stays_with_the_experiment(bucket, tmp_path):
    for name in (checkpoint.WEIGHTS, "encoder/config.json", "encoder/model.safetensors"):
        objects.upload(name.encode(), f"{bucket}/{name}")
    folder, target = locate_model(bucket), tmp_path / "exp" / "encoder"
    found = locate_encoder("encoder", folder)
    assert objects.cache_folder() in Path(found).parents
    for _ in range(2):
        assert keep_encoder(found, folder, target) == str(target)
        assert (target / "model.safetensors").read_text() == "encoder/model.safetensors"
    (target / "model.safetensors").write_text("encoder/model.other_tensors")
    with pytest.raises(UserError, match=f"{target}: is not the encoder of {folder}"):
        keep_encoder(found, folder, target)
    assert keep_encoder("openai/whisper-base", folder, target) == "openai/whisper-base"
    assert keep_encoder(str(target), target.parent, tmp_path / "other") == str(target)  # a local one stays where it is
