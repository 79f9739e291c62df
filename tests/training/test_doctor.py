"""doctor: a finding for everything a run needs, exit code 1 where something fails; estimate: hours with units."""

import re
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from command_lines import run, run_ok
from hypothesis import given
from hypothesis import strategies as st
from scripts import ROOT, load_script
from toy_runs import toy_options

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import parse_config, save_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.training import doctor
from tokenverse_pp.training.doctor import Finding, check_loader, check_loss, check_memory, examine, make_parts
from tokenverse_pp.training.estimate import LEAST_MS, MEASURED_RATE, PEAK, RECOMPUTING, estimate

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    """No new processes (a slow test starts them)."""
    monkeypatch.setattr(doctor, "run_all_reduce", lambda *_: 1.0)


def config_file(tiny_corpus, folder, **changes):
    folder.mkdir(exist_ok=True)
    save_config(parse_config(toy_options(tiny_corpus, folder / "exp", **changes)), folder / "my.yaml")
    return folder / "my.yaml"


def by_name(output):
    found = {}
    for line in output.splitlines():
        verdict, name, text = line.split(maxsplit=2)
        found.setdefault(name, []).append((verdict, text))
    return found


def returned(check):
    """The findings of a check, and what it returns."""
    findings = []
    while True:
        try:
            findings.append(next(check))
        except StopIteration as end:
            return findings, end.value


def test_a_run_that_works(tiny_corpus, tmp_path, quick):
    config = config_file(tiny_corpus, tmp_path)
    result = run_ok("doctor", "--config", config, "--data.max_cuts", 3, "--gpus", 8)
    found = by_name(result.output)
    assert set(found) == {
        *("torch", "gpu", "all-reduce", "loss", "audio"),
        *("data", "encoder", "tokenizer", "disk", "memory", "loader", "time"),
    }
    assert {verdict for lines in found.values() for verdict, _ in lines} <= {"ok", "warning"}
    assert "16 cuts" in found["data"][0][1] and "4 cuts" in found["data"][1][1]
    assert found["memory"][0][1].startswith("most audio: 3 cuts")  # of the scan, with the option of the command line
    assert "s of audio with padding" in found["memory"][-1][1]
    assert "on 8 GPUs" in found["time"][0][1] and "measured here" in found["time"][0][1]
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"data__train": ["/none.jsonl"]}, "data", "--data.train: /none.jsonl: no such file"),
        ({"model__encoder__name": "/none"}, "encoder", "hf download NAME"),
        ({"tokenizer__vocab_size": 100000}, "tokenizer", "tokenizer.vocab_size=100000 does not suit"),
        ({"tasks__languages": ["fr"]}, "data", "toy-train-"),
    ],
)
def test_what_is_needed_and_fails_is_named(tiny_corpus, tmp_path, quick, changes, name, said):
    result = run("doctor", "--config", config_file(tiny_corpus, tmp_path, **changes))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[-1] == f"failed: {name}"
    assert any(line.startswith(f"failed   {name}") and said in line for line in lines), result.output


def test_missing_audio_disk_and_memory(tiny_corpus, tmp_path, quick, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(1000))
    monkeypatch.setattr(doctor, "memory_limit", lambda *_: 0.5)
    result = run("doctor", "--config", config_file(tiny_corpus, tmp_path))
    assert result.exit_code == 1 and result.output.splitlines()[-1] == "failed: disk, memory"
    found = by_name(result.output)
    assert "lower --training.keep_last" in found["disk"][0][1]
    assert "more than 0 MB -> lower --data.max_duration" in found["memory"][-1][1]
    monkeypatch.setattr(doctor, "scan", lambda *_: (_ for _ in ()).throw(UserError("out of memory on a batch")))
    result = run("doctor", "--config", config_file(tiny_corpus, tmp_path))
    assert "failed   memory     out of memory on a batch" in result.output and "loader" not in by_name(result.output)


def test_disk_of_a_run_with_a_url_is_that_of_its_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENVERSE_PP_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=0))
    config = Config()
    config.training.exp_dir = "s3://bucket/exp"
    model = SimpleNamespace(parameters=list, checkpoint_state=dict)
    (finding,) = doctor.check_disk(config, model)
    assert asked == [tmp_path] and finding.found.startswith("s3://bucket/exp: ")


def test_slow_loader_gets_a_number_of_workers(tiny_corpus, tmp_path, monkeypatch):
    config = parse_config(toy_options(tiny_corpus, tmp_path, data__max_cuts=2))
    findings, (model, inputs) = returned(make_parts(config, CPU))
    assert [finding.verdict for finding in findings] == ["ok"]
    assert returned(check_memory(config, model, inputs, CPU, 1))[1] > 0
    (fast,) = check_loader(config, inputs, 1e-6)
    assert fast.verdict == "ok"
    (slow,) = check_loader(config, inputs, 1e9)
    assert slow.verdict == "warning" and "too few cores" in slow.advice
    speed = float(slow.found.split()[0])
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 10**6)
    (some,) = check_loader(config, inputs, 1000 * speed)
    assert some.advice.startswith("set --data.num_workers ")


def test_loss_that_differs_is_found(monkeypatch):
    (fine,) = check_loss(CPU, "auto")
    assert fine.verdict == "ok" and fine.found.startswith("torch; k2")
    small = doctor._small_loss
    monkeypatch.setattr(
        doctor, "_small_loss", lambda device, name: small(device, "torch") * (1.5 if name == "k2" else 1)
    )
    (wrong,) = check_loss(CPU, "k2")
    assert wrong.verdict == "failed" and "k2 differs from torch" in wrong.found


def test_machine_alone_and_an_encoder(tiny_corpus, quick):
    findings = list(examine())
    assert [finding.name for finding in findings] == ["torch", "gpu", "all-reduce", "loss", "audio"]
    assert findings[-1].found.startswith("wav, flac")
    result = run("doctor", "--encoder", "/none")
    assert result.exit_code == 1 and "failed: encoder" in result.output
    assert Finding("a", "ok", "b", "c").line() == "ok       a          b -> c"
    assert run("doctor", "--data.max_cuts", 3).exit_code == 2


@pytest.mark.slow
def test_processes_add_up_and_one_that_does_not_is_named():
    assert doctor.run_all_reduce("gloo", 2) > 0
    with pytest.raises(UserError, match="no_such"):
        doctor.run_all_reduce("no_such", 1)


@given(st.integers(1, 64), st.integers(1, 10**6), st.floats(1, 600), st.sampled_from(sorted(PEAK)))
def test_estimate_is_audio_by_rate(gpus, steps, seconds, card):
    config = Config()
    config.training.max_steps, config.data.max_duration = steps, seconds
    found = estimate(config, gpus, card)
    assert found.audio_hours == pytest.approx(gpus * steps * seconds / 3600)
    assert found.hours == pytest.approx(steps * seconds / found.rate / 3600)
    assert found.gpu_hours == pytest.approx(gpus * found.hours)
    by_card, least = MEASURED_RATE * PEAK[card] / PEAK["h200"], 1000 * seconds / LEAST_MS
    assert found.rate == pytest.approx(min(by_card, least))
    config.model.encoder.gradient_checkpointing = True
    assert estimate(config, gpus, card).rate == pytest.approx(min(by_card / RECOMPUTING, least))
    assert estimate(config, gpus, rate=100.0).rate == 100.0


def test_times_in_the_documents_are_the_commands():
    pytest.importorskip("torch.utils.flop_counter", reason="torch 2.1")
    scaling = load_script(ROOT / "benchmarks" / "scaling.py", "scaling")
    table = (ROOT / "benchmarks" / "results" / "training_time.md").read_text(encoding="utf-8")
    assert scaling.time_table() == table, "run python benchmarks/scaling.py --times benchmarks/results/training_time.md"
    for recipe, gpus in scaling.RECIPES.items():
        files = [ROOT / "recipes" / recipe / "README.md", *(ROOT / "recipes" / recipe / "conf").glob("*.yaml")]
        found = {n for file in files for n in re.findall(r"--nproc-per-node (\d+)", file.read_text(encoding="utf-8"))}
        assert found == {str(gpus)}  # the number of processes for which the time is given
    counts = (ROOT / "benchmarks" / "results" / "scaling.md").read_text(encoding="utf-8")
    step, again = (float(re.search(rf"{name}.*\| ([\d.]+) \|", counts)[1]) for name in ("training step", "the same"))
    assert again / step == pytest.approx(RECOMPUTING)


def test_estimate_command():
    result = run_ok("estimate", "--gpus", 8, "--training.max_steps", 3600, "--data.max_duration", 100, "--rate", 1000)
    assert result.stdout == (
        "3600 steps use 800 h of audio; at 1000 s of audio per second and GPU (as given) they take 0.1 h on 8 GPUs, "
        "0.8 GPU-hours, without validation, checkpoints and waiting\n"
    )
    wrong = run("estimate", "--card", "abacus")
    assert wrong.exit_code == 2 and "expected one of h200" in wrong.stderr
