"""`tokenverse-pp serve` and `tokenverse-pp stream`: what is wrong is one line, exit code 2."""

import asyncio
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from command_lines import assert_refused, run, run_ok
from fake_transcriber import serving
from scripts import ROOT
from toy_runs import environment, read_cuts, toy_parts

from tokenverse_pp.api.model import TokenVerse
from tokenverse_pp.cli.serve import line_of, serve
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.serving.protocol import NEVER_IN_CHUNKS


@pytest.mark.parametrize("command, said", [("serve", "--max-streams"), ("stream", "--real-time")])
def test_help(command, said):
    result = run(command, "--help")
    assert result.exit_code == 0 and said in result.stdout


def test_bad_options_and_models(tmp_path):
    assert_refused(run("serve", "--model", tmp_path / "no"), tmp_path, "no such folder")
    assert_refused(run("serve", "--model", tmp_path), tmp_path, "no model here")
    assert_refused(run("serve", "--model", tmp_path, "--max-streams", 0), "limit 'streams'")
    assert_refused(run("serve", "--model", tmp_path, "--allow-origin", "example.org"), "--allow-origin example.org")
    assert_refused(run("serve", "--model", tmp_path, "--token-file", tmp_path / "no"), tmp_path / "no")


@pytest.mark.parametrize("package, args", [("aiohttp", ("serve", "--model", "x")), ("websockets", ("stream", "x.wav"))])
def test_without_the_packages(package, args, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert_refused(run(*args), "pip install 'tokenverse_pp[serve]'")


async def test_a_file_is_streamed(tmp_path):
    half = np.full(8000, 50 / 32768)
    soundfile.write(tmp_path / "talk.wav", np.stack([half, half], 1), 16000, subtype="PCM_16")
    (tmp_path / "no.wav").write_text("no audio")
    async with serving() as server:

        async def stream(name, *args):
            return await asyncio.to_thread(run, "stream", tmp_path / name, "--url", server.url, *args)

        result = await stream("talk.wav", "--tasks", "asr, scd", "--no-partials")
        assert result.exit_code == 0, result.stderr
        assert [line.split(None, 2) for line in result.stdout.splitlines()] == [
            *[[f"{0.1 * i:.2f}", "final", "v50"] for i in (1, 2, 3, 4, 5)],
            ["0.50", "end", " ".join(["v50"] * 5)],
        ]
        result = await stream("talk.wav", "--json", "--real-time", "--format", "float32")
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert {event["kind"] for event in events} == {"partial", "final", "end"}
        assert_refused(await stream("talk.wav", "--tasks", "sing"), "bad_message", "sing")
        for name in ("no.wav", "none.wav"):
            assert_refused(await stream(name), tmp_path / name)
    assert_refused(await stream("talk.wav"), "cannot connect")


def test_pauses_are_lines_with_their_probability():
    event = {"kind": "pause", "time": 2.56, "text": "", "endpoint": 0.834}
    assert line_of(event) == "     2.56  pause    complete 0.83"


def test_a_model_is_served(tiny_corpus, tmp_path):
    """The real command line from a model folder to words; its port is its own, SIGTERM ends it with exit code 0."""
    parts = toy_parts(tiny_corpus)
    loaded = ModelBundle(parts.config, parts.tasks, parts.tokenizer, parts.model)
    model = TokenVerse(loaded).save_pretrained(tmp_path / "model")
    audio = read_cuts(tiny_corpus)[0].recording.sources[0].source
    (tmp_path / "words.txt").write_text("ba\nba ba\t2.5\n")
    (tmp_path / "lm.tsv").write_text("ba\t3\n")
    command = [sys.executable, "-m", "tokenverse_pp.cli.main", "serve", "--model", str(model), "--threads", "1"]
    command += ["--language", "qab", "--lm", str(tmp_path / "lm.tsv"), "--lm-scale", "0.3"]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment())
    try:
        began = []
        while not began or "streams: " not in began[-1]:
            began.append(process.stderr.readline())
            assert began[-1], began
        url = began[-1].split("streams: ")[1].strip()
        assert sum(NEVER_IN_CHUNKS in line for line in began) == 1
        result = run("stream", audio, "--url", url, "--json", "--tasks", "asr,lid", "--reset-at-endpoint")
        assert result.exit_code == 0 and result.stderr == f"warning: {NEVER_IN_CHUNKS}\n", result.stderr
        words = ("--hotwords", tmp_path / "words.txt", "--hotword-score", "2", "--no-lm", "--pauses")
        other = run_ok("stream", audio, "--url", url, "--language", "qaa", *words)
        assert other.stdout.splitlines()[-1].split()[1:3] == ["end", "[QAA]"]
        assert_refused(run("stream", audio, "--url", url, "--language", "xx"), "does not write [XX]")
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert events[-1]["kind"] == "end"
        assert events[-1]["time"] == pytest.approx(soundfile.info(audio).duration, abs=1e-3)
        said = " ".join(event["text"] for event in events if event["kind"] in ("final", "token"))
        assert said == events[-1]["text"] and "[SCD]" not in said and said.startswith("[QAB] ")
        taken = run("serve", "--model", model, "--port", url.split(":")[2].split("/")[0])
        assert_refused(taken, "cannot listen on 127.0.0.1 port")
        assert_refused(run("serve", "--model", model, "--tasks", "asr,sing"), "--tasks: task 'sing'")
        assert_refused(run("serve", "--model", model, "--tasks", ""), "--tasks: names no task")
        assert_refused(run("serve", "--model", model, "--chunk-ms", 0), "chunk")
        assert_refused(run("serve", "--model", model, "--hotwords", tmp_path / "no"), tmp_path / "no")
        assert_refused(run("serve", "--model", model, "--language", "xx"), "does not write [XX]")
        hotwords = ("--hotwords", tmp_path / "words.txt", "--method", "greedy")
        assert_refused(run("serve", "--model", model, *hotwords), "greedy search knows no bonuses")
        process.terminate()
        _, rest = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0 and "ended: end" in rest and "Traceback" not in rest, rest


def test_the_unit_of_the_deployment_page(tmp_path):
    """systemd takes the unit, and the command in it has the options that `serve` has."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    unit = page.split("```ini\n")[1].split("```")[0]
    (command,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    words = command.partition("=")[2].split()
    known = {option for parameter in serve.params for option in parameter.opts}
    assert words[1] == "serve" and {word for word in words if word.startswith("--")} <= known
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / "tokenverse.service"
    file.write_text(unit.replace(words[0], sys.executable))  # the program must exist
    checked = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
    assert checked.returncode == 0 and "tokenverse" not in checked.stderr, checked.stderr
