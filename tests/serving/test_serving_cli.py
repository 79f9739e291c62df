"""`tokenverse-pp serve` and `tokenverse-pp stream`: what is wrong is one line, exit code 2."""

import asyncio
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
from command_lines import run
from fake_transcriber import serving
from toy_runs import environment, read_cuts, toy_parts

from tokenverse_pp.api.model import TokenVerse
from tokenverse_pp.models.bundle import ModelBundle


def assert_refused(result, *said):
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result
    for part in said:
        assert str(part) in result.stderr, result.stderr


@pytest.mark.parametrize("command, said", [("serve", "--max-streams"), ("stream", "--real-time")])
def test_help(command, said):
    result = run(command, "--help")
    assert result.exit_code == 0 and said in result.stdout


def test_a_model_that_is_none(tmp_path):
    assert_refused(run("serve", "--model", tmp_path / "no"), tmp_path, "no such folder")
    assert_refused(run("serve", "--model", tmp_path), tmp_path, "no model here")


def test_options_that_no_server_could_live_with(tmp_path):
    assert_refused(run("serve", "--model", tmp_path, "--max-streams", 0), "limit 'streams'")
    assert_refused(run("serve", "--model", tmp_path, "--allow-origin", "example.org"), "--allow-origin example.org")
    assert_refused(run("serve", "--model", tmp_path, "--token-file", tmp_path / "no"), tmp_path / "no")


@pytest.mark.parametrize("args", [("serve", "--model", "x"), ("stream", "x.wav")])
def test_without_websockets(args, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "websockets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "websockets", None)
    assert_refused(run(*args), "pip install 'tokenverse_pp[serve]'")


class Beside:
    """A fake server in a thread, for commands that block."""

    def __enter__(self):
        self.started, self.thread = threading.Event(), threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()
        assert self.started.wait(60)
        return self

    async def _run(self):
        async with serving() as server:
            self.loop, self.end, self.url = asyncio.get_running_loop(), asyncio.Event(), server.url
            self.started.set()
            await self.end.wait()

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join()


def test_a_file_is_streamed(tmp_path):
    half = np.full(8000, 50 / 32768)
    soundfile.write(tmp_path / "talk.wav", np.stack([half, half], 1), 16000, subtype="PCM_16")
    with Beside() as server:
        result = run("stream", tmp_path / "talk.wav", "--url", server.url, "--tasks", "asr, scd", "--no-partials")
        assert result.exit_code == 0, result.stderr
        lines = [line.split(None, 2) for line in result.stdout.splitlines()]
        assert lines == [
            *[[f"{0.1 * i:.2f}", "final", "v50"] for i in (1, 2, 3, 4, 5)],
            ["0.50", "end", " ".join(["v50"] * 5)],
        ]
        result = run(
            "stream", tmp_path / "talk.wav", "--url", server.url, "--json", "--real-time", "--format", "float32"
        )
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert {event["kind"] for event in events} == {"partial", "final", "end"}
        assert_refused(
            run("stream", tmp_path / "talk.wav", "--url", server.url, "--tasks", "sing"), "bad_message", "sing"
        )
        (tmp_path / "no.wav").write_text("no audio")
        assert_refused(run("stream", tmp_path / "no.wav", "--url", server.url), tmp_path / "no.wav")
        assert_refused(run("stream", tmp_path / "none.wav", "--url", server.url), tmp_path / "none.wav")
    assert_refused(run("stream", tmp_path / "talk.wav", "--url", server.url), "cannot connect")


@pytest.fixture(scope="module")
def model(tiny_corpus, tmp_path_factory):
    """The folder of a model as it starts."""
    parts = toy_parts(tiny_corpus)
    loaded = ModelBundle(parts.config, parts.tasks, parts.tokenizer, parts.model)
    return TokenVerse(loaded).save_pretrained(tmp_path_factory.mktemp("model") / "model")


def test_a_model_is_served(model, tiny_corpus):
    """The real command line from a model folder to words; its port is its own, SIGTERM ends it with exit code 0."""
    audio = read_cuts(tiny_corpus)[0].recording.sources[0].source
    command = [sys.executable, "-m", "tokenverse_pp.cli.main", "serve", "--model", str(model), "--threads", "1"]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment())
    try:
        url = process.stderr.readline().split("streams: ")[1].strip()
        result = run("stream", audio, "--url", url, "--json", "--tasks", "asr,lid", "--reset-at-endpoint")
        assert result.exit_code == 0, result.stderr
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert events[-1]["kind"] == "end" and events[-1]["time"] == pytest.approx(
            soundfile.info(audio).duration, abs=1e-3
        )
        said = " ".join(event["text"] for event in events if event["kind"] in ("final", "token"))
        assert said == events[-1]["text"] and "[SCD]" not in said
        taken = run("serve", "--model", model, "--port", url.split(":")[2].split("/")[0])
        assert_refused(taken, "cannot listen on 127.0.0.1 port")
        assert_refused(run("serve", "--model", model, "--tasks", "asr,sing"), "--tasks asr,sing", "'sing'")
        assert_refused(run("serve", "--model", model, "--chunk-ms", 0), "chunk")
        process.terminate()
        _, rest = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0 and "ended: end" in rest and "Traceback" not in rest, rest
