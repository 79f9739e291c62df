"""The command lines: exporting, and transcribing where torch cannot be imported."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import packed, written
from command_lines import run
from scripts import ROOT
from tiny_exports import build

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.search import search
from tokenverse_pp.onnx.folder import PACKAGES
from tokenverse_pp.runtime import Runtime

# Stands in for a machine where only the documented packages are installed, and what these need themselves: importing
# any other one fails. Arguments: the names that may be imported, then those of the command.
ONLY_DOCUMENTED = """
import importlib.machinery
import runpy
import sys

allowed = set(sys.argv.pop(1).split(","))
sys.argv[0] = "runtime"


class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in allowed or path is not None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and "site-packages" in str(spec.origin or spec.submodule_search_locations):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Bar())
runpy.run_module("tokenverse_pp.runtime", run_name="__main__")
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


def speak(path, seconds=1.2, rate=16000, seed=3):
    samples = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))
    soundfile.write(path, samples, rate)
    return str(path)


def without_torch(*args):
    """``python -m tokenverse_pp.runtime`` with these arguments, and no packages but `PACKAGES`."""
    command = [sys.executable, "-c", ONLY_DOCUMENTED, ",".join(importable(PACKAGES)), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_documents_name_all_packages_that_the_runtime_needs(exported):
    install = "pip install --no-deps tokenverse_pp && pip install " + " ".join(PACKAGES)
    readme = (exported("wav2vec2-group")[1] / "README.md").read_text(encoding="utf-8")
    for text in ((ROOT / "docs" / "onnx.md").read_text(encoding="utf-8"), readme):
        assert f"    {install}\n" in text
    assert not importable(PACKAGES) & {"torch", "lhotse", "transformers", "kaldialign", "click", "yaml"}


@pytest.mark.parametrize("case", ["whisper-frozen", "wav2vec2-group"])
def test_files_are_transcribed_without_torch(exported, tmp_path, case):
    loaded, folder = exported(case)
    names = [speak(tmp_path / f"{i}.wav", seed=i) for i in range(2)]
    done = without_torch(folder, *names, "--format", "json", "--tasks", "asr,endp,lid")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    audio = [soundfile.read(name, dtype="float32")[0] for name in names]
    options = SearchOptions(force_language=True)
    for item, samples, path in zip(found, audio, names):
        ((best, *_),) = search(loaded, [samples], ["asr", "endp", "lid"], options)
        assert item["raw"] == loaded.tokenizer.decode(best.tokens)
        assert (item["path"], item["name"], item["tasks"]) == (path, Path(path).stem, ["asr", "endp", "lid"])
        assert item["duration"] == 1.2 and "endpoints" in item and "entities" not in item


def test_export_and_use(tmp_path):
    build("wav2vec2-group", tmp_path)
    done = run("export", tmp_path / "model", "--output-dir", tmp_path / "out", "--int8")
    assert done.exit_code == 0, done.stderr
    assert "encoder: differs from torch by" in done.stdout and "onnx, int8," in done.stdout
    assert Runtime(tmp_path / "out").transcribe(speak(tmp_path / "a.wav")).words


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{tmp}/nothing", "--output-dir", "{tmp}/out"], "no model here"),
        (["{model}", "--output-dir", "{tmp}/out", "--int8", "--float16"], "--int8, --float16: expected one of them"),
        (["{model}", "--output-dir", "{tmp}/file"], "there is something else"),
        (["{model}", "--output-dir", "{tmp}/file/out"], "Not a directory"),
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
    good, short = speak(tmp_path / "good.wav"), speak(tmp_path / "none.wav", 0)
    long = speak(tmp_path / "long.wav", 30.01)
    done = without_torch(folder, tmp_path / "gone.wav", tmp_path / "text.wav", short, long, good)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1  # the text of the good one
    errors = done.stderr.splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") and ".wav" in line for line in errors)
    for line, reason in zip(errors, ["no such audio file", "not audio", "holds no samples", "30 s at most"]):
        assert reason in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "asr,emo"], "task 'emo': this model knows asr, scd, endp, ner, lid"),
        (["--language", "de"], "this model does not write [DE]"),
        (["--beam", "0"], "search option 'beam'"),
    ],
)
def test_bad_options_are_one_line(exported, tmp_path, args, message):
    _, folder = exported("wav2vec2-group")
    done = without_torch(folder, speak(tmp_path / "a.wav"), *args)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_other_rates_and_channels(exported, tmp_path):
    pytest.importorskip("soxr")
    runtime = Runtime(exported("wav2vec2-group")[1])
    samples = 0.1 * np.random.default_rng(0).standard_normal((8000, 2))
    soundfile.write(tmp_path / "phone.wav", samples, 8000)
    assert runtime.transcribe(tmp_path / "phone.wav").duration == 1.0


def test_what_transcribe_takes_the_runtime_takes(exported, tmp_path, caplog):
    pytest.importorskip("soxr")
    runtime = Runtime(exported("wav2vec2-group")[1])
    seconds = {"wav": 1.0, "flac": 1.0, "mp3": 1.0, "ogg": 1.0, "sphere": 1.0, "aiff": 1.0}
    for container, expected in seconds.items():
        path = tmp_path / f"{container}.m4a"
        path.write_bytes(written(container, 1.0))
        heard = runtime.transcribe(path)
        assert heard.duration == expected and runtime.transcribe(path.read_bytes()).raw == heard.raw
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
    "bad", [np.zeros((2, 4000), np.float32), np.zeros(4000, np.int16), np.full(4000, np.nan, np.float32)]
)
def test_arrays_that_are_no_audio(exported, bad):
    with pytest.raises(UserError, match=r"^audio: "):
        Runtime(exported("wav2vec2-group")[1]).transcribe(bad)


def damaged(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


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
    ("change", "message"),
    [
        (shutil.rmtree, "no exported model: it has no export.json"),
        (lambda folder: (folder / "export.json").write_text("{"), "export.json: cannot be read"),
        (lambda folder: (folder / "export.json").write_text("[]"), "not what `tokenverse-pp export` writes"),
        (edit(format=2), "has format 2, this version of tokenverse_pp reads 1"),
        (edit(input="spectrogram"), "export.json: damaged"),
        (edit(files={}), "export.json: damaged"),
        (edit(tasks=["asr", "emo"]), "unknown task 'emo'"),
        (truncate, "encoder.onnx: has 1000 bytes"),
        (flip, "joiner.onnx: damaged, its checksum differs"),
        (lambda folder: (folder / "predictor.onnx").unlink(), "predictor.onnx: no such file"),
    ],
)
def test_damaged_folders_are_refused(exported, tmp_path, change, message):
    folder = damaged(exported("wav2vec2-group")[1], tmp_path, change)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        Runtime(folder)


def test_a_damaged_graph_is_refused_without_sums_too(exported, tmp_path):
    folder = damaged(exported("wav2vec2-group")[1], tmp_path, truncate)
    with pytest.raises(UserError, match=r"encoder.onnx: not a graph that onnxruntime can run"):
        Runtime(folder, check_files=False)
