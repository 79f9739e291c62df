"""Corpus jobs on a Ray cluster of two nodes: the bytes of one process, whatever is killed on the way."""

import importlib.util
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import soundfile
from command_lines import run, run_ok
from lhotse import CutSet
from scripts import ROOT
from toy_runs import call, read_cuts, save_frozen_encoder, toy_options

from tokenverse_pp.base.config_files import parse_config, save_config
from tokenverse_pp.base.engine import Parts
from tokenverse_pp.data.editing import label as labelling

MODEL = ROOT / "tests" / "oracles" / "fixtures" / "toy_model"
RECORDINGS = 200
MEMORY = 80 * 2**20  # bytes of shared memory a node
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: tokenverse_pp[ray]"),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="the workers to kill are found in /proc"),
]


class Nodes:
    """Two nodes of one CPU each, on the loopback interface."""

    def __init__(self):
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's way to use loopback addresses only
        from ray.cluster_utils import Cluster

        about = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
        self.about = {**about, "node_ip_address": "127.0.0.1"}
        self.seen = set()  # workers
        self.cluster = Cluster(initialize_head=True, head_node_args=self.about)
        self.add()

    def add(self):
        self.second = self.cluster.add_node(**self.about)

    def lose(self):
        self.cluster.remove_node(self.second, allow_graceful=False)

    @property
    def options(self):
        return ["--engine", "ray", "--ray-address", self.cluster.address]

    def workers(self):
        """Process ids of the workers that run."""
        raylets = {pid for pid, parent, name in processes() if name.endswith("/raylet") and parent == os.getpid()}
        found = [pid for pid, parent, name in processes() if name.startswith("ray::_Worker") and parent in raylets]
        self.seen.update(found)
        return sorted(found)


def processes():
    """(pid, parent, first word of the command line) of all processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:  # it has ended
            continue
        yield int(folder.name), parent, name


@pytest.fixture(scope="module")
def nodes():
    nodes = Nodes()
    yield nodes
    nodes.workers()
    nodes.cluster.shutdown()
    left, deadline = nodes.seen, time.monotonic() + 60  # they end when they see that their node has
    while left and time.monotonic() < deadline:
        left = left & {pid for pid, _, name in processes() if name.startswith("ray::")}
    assert not left


@pytest.fixture
def after(monkeypatch):
    """``after(counts, do)``: do it whenever so many shards are done."""

    append = Parts.append

    def patch(counts, do):
        done = []

        def counted(self, key, result):
            append(self, key, result)
            done.append(key)
            if len(done) in counts:
                do()

        monkeypatch.setattr(Parts, "append", counted)
        return done

    return patch


@pytest.fixture(scope="module")
def toy(toy_prepare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy_prepare.prepare_toy(folder, {"train": 1, "dev": 1, "test": RECORDINGS})
    return folder


def decode(decode_script, toy, output, *more):
    options = ["--cuts", toy / "cuts_test.jsonl.gz", "--max-duration", 9, "--threads", 1, "--no-report"]
    done = call(decode_script.main, "--model", MODEL, *options, "--output-dir", output, *more)
    assert done.code == 0 and not (output / "parts").exists(), done.stderr
    return (output / "hyps.jsonl").read_bytes()


@pytest.fixture(scope="module")
def hyps(decode_script, toy, tmp_path_factory):
    """Of one process."""
    found = decode(decode_script, toy, tmp_path_factory.mktemp("one"))
    assert len(found.splitlines()) == RECORDINGS
    return found


@pytest.mark.parametrize("seed", [0])
def test_three_kills_change_no_byte(nodes, decode_script, toy, hyps, tmp_path, after, caplog, seed):
    draw, killed = random.Random(seed), []

    def kill():
        killed.append(draw.choice([pid for pid in nodes.workers() if pid not in killed]))
        os.kill(killed[-1], signal.SIGKILL)

    done = after(draw.sample(range(5, 50), 3), kill)
    assert decode(decode_script, toy, tmp_path, *nodes.options) == hyps
    assert len(killed) == 3 and len(done) == len(set(done)) > 60
    assert sum(record.getMessage().startswith("a worker died") for record in caplog.records) == 3


def test_a_node_is_lost(nodes, decode_script, toy, hyps, tmp_path, after):
    done = after([20], nodes.lose)
    try:
        assert decode(decode_script, toy, tmp_path, *nodes.options) == hyps
    finally:
        nodes.add()
    assert len(done) == len(set(done))


FORMATS = [word for name in ("text", "raw", "json", "srt", "ctm", "html") for word in ("--format", name)]


def test_transcribe(nodes, toy, tmp_path, after):
    """Two dozen files, one of them broken; the second run continues the first, which failed on the way."""
    calls = tmp_path / "calls"
    calls.mkdir()
    for number, cut in enumerate(read_cuts(toy, "test")[:24]):
        soundfile.write(calls / f"{number:02}.wav", cut.load_audio()[0], 16000)
    (calls / "07.wav").write_bytes(b"no audio")

    def transcribe(output, *more):
        words = ["--model", MODEL, "--batch-seconds", 3, "--threads", 1, *FORMATS, "--output-dir", output, *more]
        done = run("transcribe", calls, *words)
        files = {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()}
        # libsndfile gives the audio in a page a random number.
        return done, {path: re.sub(rb"base64,[^\"]+", b"", content) for path, content in files.items()}

    expected, files = transcribe(tmp_path / "one")
    assert expected.exit_code == 2 and len(files) == 6 * 23

    def fail():
        raise OSError(28, "No space left on device")

    first = after([2], fail)
    stopped, left = transcribe(tmp_path / "out", *nodes.options)
    assert stopped.exit_code == 2 and "No space left" in stopped.stderr and len(left) < len(files)
    second = after([], fail)
    done, found = transcribe(tmp_path / "out", *nodes.options)
    assert found == files and done.exit_code == 2
    assert done.stderr == expected.stderr and "07.wav" in done.stderr
    assert done.stdout.replace(str(tmp_path / "out"), str(tmp_path / "one")) == expected.stdout
    assert len(first) == 2 and not set(first) & set(second) and len(second) > 2


def test_store_features(nodes, toy, tmp_path, monkeypatch):
    """In the same relative folder: paths in manifests are relative to where the command runs, on all workers."""
    CutSet.from_cuts(read_cuts(toy, "test")[:12]).to_file(tmp_path / "cuts.jsonl")
    options = toy_options(toy, "unused", **save_frozen_encoder(toy, tmp_path / "wav2vec2-tiny"))
    save_config(parse_config(options), tmp_path / "config.yaml")
    found = []
    for name, more in (("one", []), ("two", nodes.options)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        words = ["--config", tmp_path / "config.yaml", "--max-duration", 9, "--threads", 1, *more]
        run_ok("manifest", "store-features", tmp_path / "cuts.jsonl", "stored.jsonl.gz", *words)
        found.append({str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()})
    assert found[0] == found[1] and len(found[0]) == 13


def test_label(nodes, toy, tmp_path, after, monkeypatch):
    monkeypatch.setattr(labelling, "CHUNKS", 2)
    shards = after([], None)
    (tmp_path / "places.tsv").write_text("".join(f"{word}\tPLACE\n" for word in words_of(toy)[:5]))
    for name, more in (("one", []), ("two", nodes.options)):
        words = ["--gazetteer", tmp_path / "places.tsv", "--replace-labels", *more]
        run_ok("manifest", "label", toy / "cuts_test.jsonl.gz", tmp_path / f"{name}.jsonl.gz", *words)
    assert len(shards) == 4  # of 64 cuts
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl.gz", "places.tsv", "two.jsonl.gz"]


def words_of(toy):
    return sorted({word for cut in read_cuts(toy, "test") for turn in cut.supervisions for word in turn.text.split()})


def test_what_is_wrong_is_said_in_one_line(nodes, toy, tmp_path):
    label = ["manifest", "label", toy / "cuts_test.jsonl.gz", tmp_path / "out.jsonl"]
    done = run(*label, "--add", "ner", "--drop", "scd", "--language", "fr", *nodes.options)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "its language is 'qa" in done.stderr
    done = run(*label, "--drop", "scd", "--engine", "ray", "--ray-address", "nowhere")
    assert done.exit_code == 2 and done.stderr.startswith("error: --ray-address nowhere: no cluster of Ray that can")
    done = run(*label, "--drop", "scd", "--num-workers", 2)
    assert done.exit_code == 2 and done.stderr == "error: --num-workers: only with --engine ray\n"
    done = run("manifest", "prepare", "mls", toy, tmp_path / "out", "--num-jobs", 2, "--engine", "ray")
    assert done.exit_code == 2 and done.stderr.startswith("error: --num-jobs: sets the processes of this machine; ")
    assert not list(tmp_path.iterdir())
