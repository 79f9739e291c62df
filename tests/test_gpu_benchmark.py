"""benchmarks/gpu.py: a dry run of everything, its time budget, what it does with errors, and the page it fills."""

import json
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from scripts import ROOT, load_script
from toy_runs import assert_one_line, call, environment

from tokenverse_pp.losses import rnnt_loss

pytestmark = pytest.mark.slow

FOLDER = ROOT / "benchmarks"


def dry_run(path, *options):
    """The records of a dry run through the real command line."""
    command = [sys.executable, FOLDER / "gpu.py", "--dry-run", "--json", path, *options]
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def script():
    return load_script(FOLDER / "gpu.py", "gpu_benchmark")


@pytest.fixture
def gpu_run(tmp_path):
    module = load_script(FOLDER / "gpu_run.py", "gpu_run")
    run = module.GpuRun(tmp_path / "records.json", minutes=5, dry=True)
    yield run
    run.close()


@pytest.mark.slow
def test_dry_run_of_everything(tmp_path, script):
    path, page = tmp_path / "gpu.json", tmp_path / "page.md"
    records = dry_run(path, "--minutes", 15)
    wanted = {
        "equality": {"function", "backend", "dtype", "B", "T", "U", "V", "loss_error", "grad_error", "equal"},
        "loss": {"peer", "mode", "budget", "B", "T", "U", "V", "ms", "peak_mb", "kernels", "waits", "operations"},
        "loss parts": {"part", "B", "T", "U", "V", "ms", "peak_mb", "kernels", "waits"},
        "search": {"device", "method", "batch", "ms", "utt_per_s", "agreement"},
        "lstm": {"device", "method", "batch", "ms", "utt_per_s", "agreement", "tokens"},
        "step": {"kind", "batch", "audio_seconds", "checkpointing", "ms", "audio_s_per_s"},
        "decode": {"kind", "cuts", "audio_seconds"},
        "toy": {"steps", "losses", "falls", "audio_s_per_s"},
        "faults": {"fault"},
    }
    found = {section: [r for r in records if r["section"] == section and r["status"] == "ok"] for section in wanted}
    assert records[0]["section"] == "environment" and records[0]["dry_run"]
    assert not [r for r in records if r["status"] == "failed"]
    for section, fields in wanted.items():
        assert found[section] and all(fields <= set(r) for r in found[section]), section
    # Nothing but a package that is not installed is left out.
    assert all("No module named" in r["reason"] for r in records if r["status"] == "skipped")
    pytest.importorskip("triton")
    kinds = {(r["function"], r["backend"]) for r in found["equality"]}
    functions = ("pruned_transducer_loss", "rnnt_loss", "rnnt_loss_joiner")
    assert kinds == {(function, backend) for function in functions for backend in ("triton", "torch")}
    assert {r["dtype"] for r in found["equality"]} == {"float64", "float32", "bf16", "fp16"}
    assert all(r["equal"] for r in found["equality"])
    assert {r["part"] for r in found["loss parts"]} >= {"simple loss", "pruning", "joiner", "band lattice"}
    assert all(r["agreement"] == 1 for r in found["search"] + found["lstm"])
    several, one = ([r["tokens"] for r in found["lstm"] if r["method"] == m] for m in ("greedy, 10 symbols", "greedy"))
    assert all(a > b > 0 for a, b in zip(several, one))
    plain = [r for r in found["step"] if r["kind"] == "plain"]
    assert len(plain) == 4 and sum(r["checkpointing"] for r in plain) == sum(r["compiled"] for r in plain) == 1
    parts = ("encoder_forward_ms", "loss_forward_ms", "loss_backward_ms", "encoder_backward_ms", "optimiser_ms")
    assert all(r[part] > 0 for r in plain for part in parts) and all(0 < r["loss_share"] < 1 for r in plain)
    assert {r["kind"] for r in found["decode"]} == {"parts", "whole"}
    assert found["toy"][0]["falls"]
    undisturbed, memory, lost, scaled_lost, overflow = found["faults"]
    assert undisturbed["difference"] == lost["difference"] == scaled_lost["difference"] == 0
    assert memory["names_cuts"] and all(r["code"] == 2 and r["one_line"] for r in (memory, lost, scaled_lost))
    assert lost["resumed_from"] == scaled_lost["resumed_from"] == "step-00000003" and scaled_lost["same_scale"]
    assert overflow["finite"] and 0 < overflow["skipped_steps"] < overflow["steps"]

    page.write_text(f"before\n{script.MARKS[0]}\nold\n{script.MARKS[1]}\nafter\n")
    script.main(["--json", str(path), "--fill", str(page)])
    text = page.read_text()
    assert all(f"**{title}**" in text for title, _ in script.TABLES.values()) and "dry run" in text


def test_faults_that_are_not_handled_are_failures(tmp_path):
    """The judgement of the section: a traceback, a damaged checkpoint, losses of another run, no step but overflows."""
    faults = load_script(FOLDER / "gpu_faults.py", "gpu_faults")

    def run(name, code, said, losses=(), scale=1.0, skipped=0):
        made = object.__new__(faults.TrainRun)
        made.exp_dir, made.stderr = tmp_path / name, tmp_path / f"{name}.stderr"
        made.exp_dir.mkdir()
        made.stderr.write_text(said)
        made.wait = lambda: code
        with (made.exp_dir / "log.jsonl").open("w") as log:
            for step, loss in enumerate(losses, 1):
                about = {"pruned": loss, "loss_scale": scale / step, "skipped_steps": skipped, "bad_steps": 0}
                log.write(json.dumps({"kind": "train", "step": step, **about}) + "\n")
        return made

    line = "error: out of memory on a batch of 1 cuts (toy-train-00001): lower --data.max_duration\n"
    assert faults.out_of_memory(run("a", 2, f"step 1\n{line}"))["ok"]
    assert not faults.out_of_memory(run("b", 0, "model: exp/model\n"))["ok"]
    assert not faults.out_of_memory(run("c", 2, "error: out of memory\n"))["ok"]
    assert not faults.out_of_memory(run("d", 1, f"Traceback (most recent call last):\n{line}"))["ok"]
    whole = run("e", 0, "", [3.0, 2.0])
    assert faults.difference(run("f", 0, "", [3.0, 2.2]), whole) == (pytest.approx(0.1), 0)
    assert faults.difference(run("g", 0, "", [3.0]), whole) == (math.inf, math.inf)
    lost = faults.lost_and_resumed(run("h", 2, "error: lost\n"), lambda: whole, whole, 0.0, True)
    assert lost["damage"] == "there is none" and not lost["ok"]
    assert faults.overflowing(run("i", 0, "", [3.0, 2.0], scale=4.0, skipped=1))["ok"]
    assert not faults.overflowing(run("j", 0, "", [3.0, 2.0], scale=4.0, skipped=2))["ok"]
    assert not faults.overflowing(run("k", 0, "", [3.0, math.nan], scale=4.0, skipped=1))["ok"]


def test_this_checkout_against_a_commit(tmp_path):
    """The dry run, of this checkout beside its last commit."""
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("no git repository")
    script = load_script(FOLDER / "against.py", "against")
    path, page = tmp_path / "against.json", tmp_path / "page.md"
    page.write_text(f"before\n{script.MARKS[0]}\n{script.MARKS[1]}\nafter\n")
    options = ("--dry-run", "--rounds", 1, "--seconds", 0, "--json", path, "--fill", page)
    assert call(script.main, "HEAD", *options).code == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["kind"], r["case"]) for r in records] == [(kind, name) for kind, name, _ in script.cases(True)]
    assert all(r["same"] and r["ratio"] > 0 and r["before_ms"] > 0 for r in records)
    assert page.read_text().count("\n| ") == len(records) + 1
    assert_one_line(call(script.main, "no-such-commit"), "no-such-commit")
    assert_one_line(call(script.main, "HEAD", "--cases", "nothing"), "nothing to compare")


def test_sections_that_do_not_fit_are_skipped_with_the_reason(tmp_path, script):
    environment_, *skipped = dry_run(tmp_path / "gpu.json", "--minutes", 0.001)
    assert environment_["status"] == "ok"
    assert [r["section"] for r in skipped] == list(script.SECTIONS)
    assert all(r["status"] == "skipped" and "s are left" in r["reason"] for r in skipped)
    added = dry_run(tmp_path / "gpu.json", "--minutes", 0.001, "--append", "--sections", "toy", "loss")
    assert [r["section"] for r in added] == ["environment", *script.SECTIONS, "loss", "toy"]


def test_a_lost_gpu_moves_the_rest_to_a_new_process(tmp_path, script, monkeypatch):
    module = load_script(FOLDER / "gpu_run.py", "gpu_run")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(script, "environment", lambda run: {})
    monkeypatch.setattr(module.GpuRun, "section", lambda self, name, *_: self.add(name, "all", "failed", 0, {}, {}))
    monkeypatch.setattr(module.GpuRun, "works", lambda self: len(self.records) < 3)
    commands = []
    monkeypatch.setattr(script.subprocess, "call", commands.append)
    path = tmp_path / "gpu.json"
    failure = call(script.main, "--json", path, "--dry-run", "--sections", "equality", "loss", "search", "toy")
    assert failure.code == 1 and "a new one runs search, toy" in failure.stderr
    command = list(map(str, commands[0]))
    assert command[2:8] == ["--json", str(path), "--append", "--sections", "search", "toy"]
    assert 4 < 60 * float(command[-1]) <= 300


def test_an_error_becomes_a_record_and_the_run_continues(gpu_run, tmp_path):
    def failing():
        raise ValueError("two\nlines")

    def missing():
        raise ModuleNotFoundError("No module named 'k2'")

    def body(run):
        run.case("a", "one", failing, size=3)
        run.case("a", "two", missing, optional=True)
        run.case("a", "three", lambda: {"ok": False, "ms": 1.0})
        run.case("a", "four", lambda: {"ms": 2.0})
        raise KeyError("gone")

    gpu_run.section("a", 0, body)
    records = [json.loads(line) for line in (tmp_path / "records.json").read_text().splitlines()]
    assert [(r["case"], r["status"]) for r in records] == [
        ("one", "failed"), ("two", "skipped"), ("three", "failed"), ("four", "ok"), ("rest", "failed"),
    ]  # fmt: skip
    assert records[0]["reason"] == "ValueError: two lines" and records[0]["size"] == 3
    assert records[3]["ms"] == 2.0


def test_a_section_is_stopped_when_the_time_is_over(gpu_run):
    gpu_run.budget = 0.3
    gpu_run.section("slow", 0, lambda run: run.case("slow", "one", lambda: time.sleep(60)))
    assert [(r["case"], r["status"]) for r in gpu_run.records] == [("rest", "skipped")]
    assert "stopped" in gpu_run.records[0]["reason"]


def test_peers_compute_the_same_loss(monkeypatch):
    """The functions that call torchaudio and k2, with our functions of the same signatures in their places."""
    gpu_loss = load_script(FOLDER / "gpu_loss.py", "gpu_loss")
    case = gpu_loss.LossCase((3, 12, 5, 9), torch.device("cpu"), dim=8).to(torch.device("cpu"), torch.float64)
    expected = case.step(case.pruned)
    gradients = case.gradients()
    found = case.step(lambda: gpu_loss.pruned_by(case, "tokenverse_pp.losses.native"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for a, b in zip(case.gradients(), gradients):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(case.pruned_at(case.ranges()), expected)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", SimpleNamespace(rnnt_loss=rnnt_loss))
    torch.testing.assert_close(gpu_loss.torchaudio_loss(case).double(), case.exact(), rtol=1e-5, atol=0)


def test_a_killed_run_leaves_records_that_fill_a_page(tmp_path, script):
    first = {"section": "environment", "case": "all", "status": "ok", "device": "H1", "dry_run": False, "torch": "2.11"}
    first.update(cpus=16, tokenverse_pp="0.1.0", matmul_tflops=700.0)
    second = {"section": "loss", "case": "x", "status": "ok", "peer": "k2", "mode": "bf16", "budget": "default"}
    second.update(B=8, T=500, U=80, V=500, ms=4.5678, peak_mb=120.4, kernels=41, waits="no")
    third = {"section": "toy", "case": "all", "status": "skipped", "reason": "needs about 40 s, 3 s are left"}
    path, page = tmp_path / "gpu.json", tmp_path / "page.md"
    path.write_text("".join(json.dumps(r) + "\n" for r in (first, second, third)) + '{"section": "lo')
    page.write_text(f"before\n{script.MARKS[0]}\nold\n{script.MARKS[1]}\nafter\n")
    for _ in range(2):
        script.main(["--json", str(path), "--fill", str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{script.MARKS[1]}\nafter\n") and "old" not in text
    assert "| k2 | bf16 | default | 8 | 500 | 80 | 500 | 4.57 | 120 | 41 | no |" in text
    assert "H1, torch 2.11" in text and "- toy, all: skipped: needs about 40 s, 3 s are left\n" in text


@pytest.mark.parametrize(
    "options, said",
    [
        (["--fill", "PAGE"], "expected a file with"),
        (["--minutes", "0"], "--minutes: expected more than 0"),
        (["--json", "none.json", "--fill", "PAGE"], "--json none.json"),
        (["--json", "PAGE", "--fill", "PAGE"], "no record of benchmarks/gpu.py"),
    ],
)
def test_bad_input_is_one_line(tmp_path, script, options, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PAGE").write_text("# no marks\n")
    (tmp_path / "gpu.json").write_text("")
    failure = call(script.main, "--json", "gpu.json", *options)
    assert_one_line(failure, said)


def test_without_a_gpu_it_says_so(tmp_path, script):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert_one_line(call(script.main, "--json", tmp_path / "gpu.json"), "--dry-run")
