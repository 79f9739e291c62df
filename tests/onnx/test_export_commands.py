"""The command lines: exporting, and transcribing where torch cannot be imported."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from audio_files import packed, written
from command_lines import run, run_ok
from scripts import ROOT
from tiny_exports import build, noise

from tokenverse_pp.api.formats import render
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.recognizer import search
from tokenverse_pp.onnx.folder import PACKAGES
from tokenverse_pp.runtime import Runtime
from tokenverse_pp.runtime.__main__ import main as runtime_command

# A machine where only the documented packages and their own requirements are installed: other imports fail.
# Arguments: the names that may be imported, a file for those that were imported, then those of the command.
ONLY_DOCUMENTED = """
import importlib.machinery
import runpy
import sys

allowed, report = sys.argv.pop(1).split(","), sys.argv.pop(1)
sys.argv[0] = "runtime"
imported = set()


class Bar:
    def find_spec(self, name, path=None, target=None):
        if path is not None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and "site-packages" in str(spec.origin or spec.submodule_search_locations):
            if name not in allowed:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            imported.add(name)
        return None


sys.meta_path.insert(0, Bar())
try:
    runpy.run_module("tokenverse_pp.runtime", run_name="__main__")
finally:
    open(report, "w").write(" ".join(imported))
"""


def importable(packages):
    """The top-level names of some distributions and of all that they require."""
    names, seen, waiting = {"tokenverse_pp"}, set(), list(packages)
    while waiting:
        name = re.match(r"[\w.-]+", waiting.pop()).group()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform
        names |= {re.split(r"[./]", str(path))[0] for path in found.files or () if path.suffix in (".py", ".so")}
        waiting += [line for line in found.requires or () if "extra ==" not in line]
    return names


def speak(path, seconds=1.2, seed=3):
    soundfile.write(path, *noise(int(seconds * 16000), seed=seed), 16000)
    return str(path)


def without_torch(*args, report="/dev/null"):
    """``python -m tokenverse_pp.runtime`` with these arguments, and no packages but `PACKAGES`."""
    command = [sys.executable, "-c", ONLY_DOCUMENTED, ",".join(importable(PACKAGES)), report, *args]
    return subprocess.run([str(arg) for arg in command], capture_output=True, text=True, timeout=300)


def test_documents_name_exactly_the_packages_that_the_runtime_imports(exported, tmp_path):
    folder = exported("wav2vec2-group")[1]
    # The packages first: pip reports those that a wheel names and that are missing as errors.
    install, then = "pip install ", " && pip install --no-deps tokenverse_pp-*.whl"
    for document in (ROOT / "docs" / "onnx.md", folder / "README.md"):
        (named,) = re.findall(
            rf"^    {re.escape(install)}(.*){re.escape(then)}$", document.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert named.split() == list(PACKAGES)
    assert not importable(PACKAGES) & {"torch", "lhotse", "transformers", "kaldialign", "click", "yaml"}
    done = without_torch(folder, speak(tmp_path / "a.wav"), "--language", "fra", report=tmp_path / "imported")
    assert done.returncode == 0, done.stderr
    assert {*PACKAGES} <= {*(tmp_path / "imported").read_text().split()} <= importable(PACKAGES)


@pytest.mark.parametrize("case", ["whisper-frozen", "wav2vec2-group"])
def test_files_are_transcribed_without_torch(exported, tmp_path, case):
    loaded, folder = exported(case)
    names = [speak(tmp_path / f"{i}.wav", seed=i) for i in range(2)]
    done = without_torch(folder, *names, "--format", "json", "--tasks", "asr, endp,lid")
    assert done.returncode == 0, done.stderr
    for item, path in zip([json.loads(line) for line in done.stdout.splitlines()], names):
        samples = soundfile.read(path, dtype="float32")[0]
        ((best, *_),) = search(loaded, [samples], ["asr", "endp", "lid"], SearchOptions(force_language=True))
        assert item["raw"] == loaded.tokenizer.decode(best.tokens)
        assert (item["path"], item["name"], item["tasks"]) == (path, Path(path).stem, ["asr", "endp", "lid"])
        assert item["duration"] == 1.2 and "endpoints" in item and "entities" not in item


def test_the_runtime_reads_standard_input(exported, tmp_path, capsys, monkeypatch):
    folder, path = exported("wav2vec2-group")[1], speak(tmp_path / "a.wav")
    said = []
    for name in (path, "-"):
        with open(path, "rb") as file:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
            assert runtime_command([str(folder), name, "--format", "json"]) == 0
        said.append({**json.loads(capsys.readouterr().out), "path": ""})
    assert (said[0].pop("name"), said[1].pop("name")) == ("a", "stdin") and said[0] == said[1]


def test_formats_are_those_of_transcribe(exported, tmp_path, capsys):
    folder = exported("wav2vec2-group")[1]
    names = [speak(tmp_path / f"{i}.wav", seed=i) for i in range(2)]
    heard = [Runtime(folder).transcribe(name) for name in names]
    assert runtime_command([str(folder), names[0], "--format", "srt"]) == 0
    assert capsys.readouterr().out == render(heard[0], "srt") != ""
    assert runtime_command([str(folder), *names, "--format", "ctm"]) == 0
    assert capsys.readouterr().out == "".join(render(each, "ctm") for each in heard)
    assert runtime_command([str(folder), *names, "--format", "vtt"]) == 2
    assert capsys.readouterr().err == "error: --format vtt: expected one audio file, got 2\n"


def test_export_and_use(tmp_path):
    build("wav2vec2-group", tmp_path)
    done = run_ok("export", tmp_path / "model", "--output-dir", tmp_path / "out", "--int8")
    assert "encoder: differs from torch by" in done.stdout and "onnx, int8," in done.stdout
    assert Runtime(tmp_path / "out").transcribe(speak(tmp_path / "a.wav")).words


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{tmp}/nothing", "--output-dir", "{tmp}/out"], "no such folder, nor a model of the package"),
        (["{model}", "--output-dir", "{tmp}/out", "--chunk-ms", "320"], "--chunk-ms: only with --streaming, or with"),
        (["{model}", "--output-dir", "{tmp}/file"], "there is something else"),
        (["{model}", "--output-dir", "{tmp}"], "there is something else"),
        (["{model}", "--output-dir", "{tmp}/file/out"], "is not a folder"),
    ],
)
def test_bad_exports_are_one_line(exported, tmp_path, args, message):
    loaded, _ = exported("wav2vec2-group")
    (tmp_path / "file").write_text("mine")
    done = run("export", *(arg.format(tmp=tmp_path, model=loaded.folder) for arg in args))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bad_files_are_a_line_each_and_the_others_are_done(exported, tmp_path):
    _, folder = exported("whisper-frozen")
    (tmp_path / "text.wav").write_text("no audio")
    none, long, good = (speak(tmp_path / f"{seconds}.wav", seconds) for seconds in (0, 31, 1))
    done = without_torch(folder, tmp_path / "gone.wav", tmp_path / "text.wav", none, long, good)
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 2, done.stderr
    reasons = ["no such audio file", "not audio", "holds no samples"]
    assert re.fullmatch("".join(rf"error: .*\.wav.*{reason}.*\n" for reason in reasons), done.stderr)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", ""], "--tasks: names no task"),
        (["--tasks", "asr, emo"], "task 'emo': this model knows asr, scd, endp, ner, lid"),
        (["--language", "de"], "this model does not write [DE]"),
        (["--beam", "0"], "search option 'beam'"),
    ],
)
def test_bad_options_are_one_line(exported, tmp_path, args, message):
    _, folder = exported("wav2vec2-group")
    done = without_torch(folder, speak(tmp_path / "a.wav"), *args)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_files_of_any_container_rate_and_channels(exported, tmp_path, caplog):
    pytest.importorskip("soxr")
    runtime = Runtime(exported("wav2vec2-group")[1])
    soundfile.write(tmp_path / "phone.wav", np.stack(noise(8000, 8000), axis=1), 8000)
    assert runtime.transcribe(tmp_path / "phone.wav").duration == 1.0
    for container in ("wav", "flac", "mp3", "ogg", "sphere", "aiff"):
        path = tmp_path / f"{container}.m4a"
        path.write_bytes(written(container, 1.0))
        heard = runtime.transcribe(path)
        assert heard.duration == 1.0 and runtime.transcribe(path.read_bytes()).raw == heard.raw
    (tmp_path / "cut.flac").write_bytes(written("flac", 1.0)[:-9000])
    assert 0.4 < runtime.transcribe(tmp_path / "cut.flac").duration < 0.9
    assert caplog.messages[0].startswith(f"warning: {tmp_path / 'cut.flac'}: truncated: ")
    pytest.importorskip("av")
    heard = runtime.transcribe(packed(tmp_path / "talk.webm", "libopus").rename(tmp_path / "talk.wav"))
    assert heard.name == "talk" and heard.duration == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("count", [1, 2])
def test_less_than_a_frame_is_an_empty_transcript(exported, tmp_path, caplog, count):
    """As for `tokenverse-pp transcribe`: exit code 0, an empty line, and a warning."""
    loaded, folder = exported("wav2vec2-group")
    path = tmp_path / "blink.wav"
    soundfile.write(path, np.full(count, 0.1), 16000)
    heard = Runtime(folder).transcribe(path)
    assert (heard.raw, heard.words, heard.duration) == ("", (), round(count / 16000, 3))
    torch_heard = run("transcribe", path, "--model", loaded.folder, "--method", "greedy")
    assert (torch_heard.exit_code, torch_heard.stdout.strip()) == (0, "")
    assert [line.split(": ")[2] for line in caplog.messages] == [f"{count / 16000:.4f} s are less than a frame"] * 2
    with pytest.raises(UserError, match="this model knows"):
        Runtime(folder).transcribe(path, tasks=["emo"])
    done = without_torch(folder, path)
    assert (done.returncode, done.stdout) == (0, "\n") and done.stderr.startswith("warning: ")


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4000), np.float32),
        np.zeros(4000, np.int16),
        np.full(4000, np.nan, np.float32),
        np.full(4000, -3000, np.float32),
    ],
)
def test_arrays_that_are_no_audio(exported, bad):
    with pytest.raises(UserError, match=r"^audio: "):
        Runtime(exported("wav2vec2-group")[1]).transcribe(bad)


def edit(**values):
    def change(folder):
        data = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps({**data, **values}))

    return change


def truncate(folder):
    (folder / "encoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes()[:1000])


def flip(folder):
    content = bytearray((folder / "joiner.onnx").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "joiner.onnx").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message", "check_files"),
    [
        (shutil.rmtree, "no exported model: it has no export.json", True),
        (lambda folder: (folder / "export.json").write_text("{"), "export.json: cannot be read", True),
        (lambda folder: (folder / "export.json").write_text("[]"), "not what `tokenverse-pp export` writes", True),
        (edit(format=2), "has format 2, this version of tokenverse_pp reads 1", True),
        (edit(input="spectrogram"), "export.json: damaged", True),
        (edit(files={}), "export.json: damaged", True),
        (edit(tasks=5), "export.json: damaged: tasks: 5", True),
        (edit(vectors=[]), "export.json: damaged: vectors: []", True),
        (edit(task_options={"lid": [1]}), "export.json: damaged: task_options", True),
        (edit(frame_shift="x"), "export.json: damaged: frame_shift: 'x'", True),
        (edit(min_samples=None), "export.json: damaged: min_samples: None", True),
        (edit(tasks=["asr", "emo"]), "unknown task 'emo'", True),
        (truncate, "encoder.onnx: has 1000 bytes", True),
        (truncate, "encoder.onnx: not a graph that onnxruntime can run", False),
        (flip, "joiner.onnx: damaged, its checksum differs", True),
        (lambda folder: (folder / "predictor.onnx").unlink(), "predictor.onnx: no such file", True),
    ],
)
def test_damaged_folders_are_refused(exported, tmp_path, change, message, check_files):
    folder = shutil.copytree(exported("wav2vec2-group")[1], tmp_path / "copy")
    change(folder)
    with pytest.raises(UserError, match=re.escape(message)):
        Runtime(folder, check_files=check_files)
