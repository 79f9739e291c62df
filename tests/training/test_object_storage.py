"""Training and decoding with everything in an S3 server on loopback, a tenth of whose requests fail."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from object_store import BUCKET, serving
from toy_runs import call_ok, finish, start, toy_options

from tokenverse_pp.base import storage
from tokenverse_pp.cli.main import cli
from tokenverse_pp.training.log import read_log

pytestmark = pytest.mark.slow
HOME = f"s3://{BUCKET}"
STEPS = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("cache"), seed=3) as store:
        store.faults.share = 0.1
        yield store


@pytest.fixture(scope="module")
def shards(store, tiny_corpus):
    """URL and folder of the same shards, written by the command."""
    local = tiny_corpus.parent / "shar"
    for target in (f"{HOME}/shar/train", local):
        words = ["manifest", "to-shar", f"{tiny_corpus}/cuts_train.jsonl.gz", str(target), "--shard-size", "3"]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
    return f"{HOME}/shar/train", local


def options(corpus, train, exp_dir):
    return toy_options(
        *(corpus, exp_dir),
        data__train=[train],
        data__validate="true",
        training__max_steps=STEPS,
        training__save_every=4,
        training__keep_last=2,
        training__average_last=2,
        training__valid_every=8,
    )


@pytest.fixture(scope="module")
def local_run(shards, tiny_corpus, train_script, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("local") / "exp"
    call_ok(train_script.main, *options(tiny_corpus, shards[1], exp_dir))
    return exp_dir


def losses(path):
    return [(r["step"], r["pruned"], r["grad_norm"]) for r in read_log(path) if r["kind"] == "train"]


def test_shards_are_the_same(store, shards):
    url, local = shards
    assert list(storage.list_folder(url)) == sorted(path.name for path in local.iterdir())
    for path in local.iterdir():
        # gzip writes the time into the header of a manifest
        assert storage.read_bytes(f"{url}/{path.name}")[10:] == path.read_bytes()[10:], path
    assert store.faults.counts["throttled"] + store.faults.counts["truncated"] > 0


def test_killed_run_resumes_bit_identically_on_another_machine(store, shards, tiny_corpus, local_run, tmp_path):
    exp_dir = f"{HOME}/exp"
    words = options(tiny_corpus, shards[0], exp_dir)
    process = start("train.py", *words)
    try:
        while not any(name.endswith("/checksums.json") for name in storage.list_folder(f"{exp_dir}/checkpoints")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)  # poll: the process writes when it does
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    at_kill = sorted({name.split("/")[0] for name in storage.list_folder(f"{exp_dir}/checkpoints")})
    assert f"step-{STEPS:08d}" not in at_kill  # it was killed on the way
    shutil.rmtree(os.environ["TOKENVERSE_PP_CACHE"])
    done = finish(start("train.py", *words))
    assert done.code == 0, done.stderr
    assert "resuming from step-" in done.stderr
    log = tmp_path / "log.jsonl"
    log.write_bytes(storage.read_bytes(f"{exp_dir}/log.jsonl"))
    assert losses(log) == losses(local_run / "log.jsonl") and len(losses(log)) == STEPS
    expected = (local_run / "model" / "model.safetensors").read_bytes()
    assert storage.read_bytes(f"{exp_dir}/model/model.safetensors") == expected
    kept = {name.split("/")[0] for name in storage.list_folder(f"{exp_dir}/checkpoints")}
    assert kept == {path.name for path in (local_run / "checkpoints").iterdir()}
    config = storage.read_bytes(f"{exp_dir}/config.yaml").decode()
    assert f"exp_dir: {exp_dir}\n" in config


def test_decoding(store, tiny_corpus, local_run, decode_script, tmp_path):
    for path in [*(local_run / "model").iterdir(), tiny_corpus / "cuts_test.jsonl.gz"]:
        storage.upload(path, f"{HOME}/decoding/{path.name}")
    words = ["--method", "greedy", "--no-report"]
    for model, cuts, output in (
        (local_run, tiny_corpus / "cuts_test.jsonl.gz", tmp_path / "out"),
        (f"{HOME}/decoding", f"{HOME}/decoding/cuts_test.jsonl.gz", f"{HOME}/out"),
    ):
        call_ok(
            decode_script.main,
            *("--model", model, "--cuts", cuts, "--output-dir", output, *words),
            standalone_mode=True,
        )
    assert storage.read_bytes(f"{HOME}/out/hyps.jsonl") == (tmp_path / "out" / "hyps.jsonl").read_bytes()
    assert {"hyps.jsonl", "failures.jsonl", "scores.json"} <= set(storage.list_folder(f"{HOME}/out"))
    parts = Path(os.environ["TOKENVERSE_PP_CACHE"]) / "decoding"
    assert not any(path.is_file() for path in parts.rglob("*"))
