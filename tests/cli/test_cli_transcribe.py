"""`tokenverse-pp transcribe` through its command line: every kind of input, and what is wrong with it."""

import os
import re
import shutil
import sys
import types

import click
import numpy as np
import pytest
import soundfile
from audio_files import packed, written
from click.testing import CliRunner
from command_lines import run
from lhotse import CutSet
from tiny_models import write_model, write_speech
from toy_runs import read_cuts, save_frozen_encoder

from tokenverse_pp import Transcript
from tokenverse_pp.api.formats import FORMATS
from tokenverse_pp.api.model import RecognizerJob
from tokenverse_pp.base import engine
from tokenverse_pp.base.engine import ShardEngine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import TranscribeOptions
from tokenverse_pp.cli import transcribe as command
from tokenverse_pp.cli import transcribing as inputs
from tokenverse_pp.cli.main import cli


@pytest.fixture(scope="module")
def model(tiny_corpus, tmp_path_factory):
    return write_model(tiny_corpus, tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def calls(tiny_corpus, tmp_path):
    """A folder: two files of speech, one in a folder of its own, and something that is no audio."""
    folder = tmp_path / "calls"
    (folder / "late").mkdir(parents=True)
    write_speech(tiny_corpus, folder, "one")
    write_speech(tiny_corpus, folder / "late", "two")
    (folder / "notes.txt").write_text("no audio")
    return folder


def transcribe(model, *args, **options):
    return run("transcribe", "--model", model, "--method", "greedy", *args, **options)


def lines_of(done):
    return done.stderr.splitlines()


def test_one_file_is_plain_text(model, calls):
    done = transcribe(model, calls / "one.wav", "--tasks", "asr")
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "[" not in done.stdout and "one.wav" not in done.stdout


def test_several_files_stand_behind_their_names(model, calls):
    done = transcribe(model, calls, "--recursive", "--tasks", "asr")
    assert done.exit_code == 0, done.output
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        str(calls / "late" / "two.wav"),
        str(calls / "one.wav"),
    ]
    flat = transcribe(model, calls, "--tasks", "asr")
    assert [line.split(": ")[0] for line in flat.stdout.splitlines()] == [str(calls / "one.wav")]


def test_json_is_a_line_each(model, calls):
    done = transcribe(model, calls / "one.wav", calls / "late" / "two.wav", "--format", "json")
    found = [Transcript.from_json(line) for line in done.stdout.splitlines()]
    assert [heard.name for heard in found] == ["one", "two"] and found[0].raw == found[1].raw


def test_every_format_in_a_folder(model, calls, tmp_path):
    every = [word for name in FORMATS for word in ("--format", name)]
    assert tuple(FORMATS) == command.FORMATS  # written out there, so that `--help` need not import them
    done = transcribe(model, calls, "--recursive", "--output-dir", tmp_path / "out", *every)
    assert done.exit_code == 0, done.output
    endings = [form.ending for form in FORMATS.values()]
    expected = sorted(f"{name}{ending}" for name in ("one", "late/two") for ending in endings)
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert written == expected
    assert done.stdout.split() == [str(tmp_path / "out" / f"{n}{e}") for n in ("late/two", "one") for e in endings]
    heard = Transcript.from_json((tmp_path / "out" / "one.json").read_text())
    assert (tmp_path / "out" / "one.raw.txt").read_text() == heard.raw + "\n"
    assert "data:audio/ogg;base64," in (tmp_path / "out" / "one.html").read_text()


def test_cuts_of_a_manifest(model, tiny_corpus, tmp_path):
    cuts = [cut.with_id(f"talk/{i}") for i, cut in enumerate(read_cuts(tiny_corpus, "test")[:2])]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    done = transcribe(model, tmp_path / "cuts.jsonl.gz", "--output-dir", tmp_path / "out")
    assert done.exit_code == 0 and sorted(os.listdir(tmp_path / "out")) == ["talk-0.txt", "talk-1.txt"]
    printed = transcribe(model, tmp_path / "cuts.jsonl.gz", "--tasks", "asr")
    assert [line.split(": ")[0] for line in printed.stdout.splitlines()] == ["talk/0", "talk/1"]


def test_standard_input(model, calls):
    def piped(data, *args):
        words = ["transcribe", "--model", str(model), "--method", "greedy", "-", *args]
        return CliRunner().invoke(cli, words, input=data)

    samples, rate = soundfile.read(calls / "one.wav", dtype="int16")
    expected = transcribe(model, calls / "one.wav").stdout
    assert piped((calls / "one.wav").read_bytes()).output == expected
    bare = piped(samples.astype("<i2").tobytes(), "--raw", "--raw-rate", str(rate), "--format", "json")
    heard = Transcript.from_json(bare.output)
    assert heard.name == "stdin" and heard.duration == 1.5
    for data, args, said in (
        (b"", (), "stdin: the file is empty"),
        (b"what is this" * 9, (), "stdin: no audio"),
        (b"odd", ("--raw",), "stdin: --raw: expected samples of 2 bytes, got 3 bytes"),
    ):
        done = piped(data, *args)
        assert done.exit_code == 2 and done.output.startswith(f"error: {said}") and done.output.count("\n") == 1


@pytest.mark.parametrize("name", ["talk.webm", "talk.m4a", "talk.mp3", "talk.ogg", "talk.aiff"])
def test_any_container_on_standard_input_or_under_any_name(model, tmp_path, name):
    path = tmp_path / name
    if name in ("talk.webm", "talk.m4a"):
        pytest.importorskip("av")
        packed(path, "libopus" if name == "talk.webm" else "aac")
    else:
        path.write_bytes(written(name[5:], 1.0))
    expected = transcribe(model, path)
    assert expected.exit_code == 0 and expected.stdout.strip()
    other = path.rename(tmp_path / "talk.wav")
    assert transcribe(model, other).stdout == expected.stdout
    words = ["transcribe", "--model", str(model), "--method", "greedy", "-"]
    assert CliRunner().invoke(cli, words, input=other.read_bytes()).output == expected.stdout


ODD = {
    "empty.wav": "the file is empty",
    "text.wav": "no audio",
    "nan.wav": "NaN or infinity",
    "nothing.wav": "holds no samples",
    "damaged.flac": "damaged at ",
}
FINE = ("8khz.wav", "six-channels.wav", "blink.wav", "44khz.ogg", "cut-short.flac")


@pytest.fixture
def odd(calls):
    """Beside one.wav: files that can be transcribed, and files that cannot."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    (calls / "empty.wav").touch()
    (calls / "text.wav").write_text("this is no audio " * 20)
    soundfile.write(calls / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    soundfile.write(calls / "nothing.wav", noise[:0], 16000)
    soundfile.write(calls / "cut-short.flac", noise, 16000)
    data = (calls / "cut-short.flac").read_bytes()
    (calls / "cut-short.flac").write_bytes(data[: len(data) // 2])
    (calls / "damaged.flac").write_bytes(data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :])
    soundfile.write(calls / "8khz.wav", noise[:8000], 8000)
    soundfile.write(calls / "six-channels.wav", np.stack([noise] * 6, axis=1), 16000)
    soundfile.write(calls / "blink.wav", noise[:160], 16000)
    soundfile.write(calls / "44khz.ogg", np.repeat(noise, 3)[:44100], 44100)
    return calls


def test_odd_audio_is_refused_in_a_line_and_the_rest_is_done(model, odd, tmp_path, caplog):
    names = [*ODD, *FINE, "one.wav", "gone.wav"]
    done = transcribe(model, *(odd / name for name in names), "--output-dir", tmp_path / "out")
    assert done.exit_code == 2
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        os.path.splitext(name)[0] + ".txt" for name in (*FINE, "one.wav")
    )
    expected = {**ODD, "gone.wav": "no such file"}
    refused = [line for line in lines_of(done) if not line.startswith("warning: ")]
    assert len(refused) == len(expected)
    for line, (name, reason) in zip(refused, expected.items()):
        assert line.startswith(f"error: {odd / name}: ") and reason in line, line
    short, blink = caplog.messages
    assert short.startswith(f"warning: {odd / 'cut-short.flac'}: truncated: ") and short.endswith(" s of 1.000 s")
    assert blink == f"warning: {odd / 'blink.wav'}: 0.0100 s are less than a frame: nothing to hear"


def test_files_of_two_formats_do_not_meet(tmp_path):
    """The text of a.raw.wav and what was written of a.wav would both be a.raw.txt."""
    heard = inputs.open_audio((np.zeros(160, dtype="<i2"), 16000), label="x")
    output = inputs.Output(["text", "raw"], tmp_path, several=True)
    made = [
        output.reserve(inputs.NamedRecording(f"{name}.wav", name, heard)).output for name in ("a", "a.raw", "b", "b")
    ]
    assert made == ["a", "a.raw-2", "b", "b-2"]


@pytest.mark.parametrize("seconds", ["0", "nan", "inf"])
def test_the_length_of_a_batch_is_named_as_it_was_given(seconds):
    with pytest.raises(UserError, match=f"batch_seconds: expected seconds above 0, got {seconds}"):
        TranscribeOptions(batch_seconds=float(seconds)).check()


def test_two_inputs_of_one_name(model, calls, tmp_path):
    shutil.copy(calls / "one.wav", calls / "late" / "one.wav")
    files = [calls / "one.wav", calls / "late" / "one.wav", calls / "one.wav"]
    done = transcribe(model, *files, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0 and sorted(os.listdir(tmp_path / "out")) == ["one-2.txt", "one.txt"]
    assert lines_of(done) == [f"{files[1]}: named one-2, since {files[0]} is one"]
    (calls / "one.flac").write_bytes((calls / "one.wav").read_bytes())
    done = transcribe(model, calls, "--recursive", "--output-dir", tmp_path / "folder")
    assert sorted(os.listdir(tmp_path / "folder")) == ["late", "one-2.txt", "one.txt"]


def test_channels_are_averaged_or_transcribed_each(model, calls, tiny_corpus, tmp_path):
    left, rate = soundfile.read(calls / "one.wav", dtype="float32")
    right = np.zeros_like(left)
    soundfile.write(calls / "both.wav", np.stack([left, right], 1), rate)
    alone = transcribe(model, calls / "one.wav", "--format", "raw").stdout
    done = transcribe(model, calls / "both.wav", "--format", "raw", "--channels", "each")
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first == f"{calls / 'both.wav'}, channel 1: {alone.strip()}"
    assert second.startswith(f"{calls / 'both.wav'}, channel 2:") and alone.strip() not in second
    options = ["--output-dir", tmp_path / "out", "--format", "json", "--channels", "each"]
    assert transcribe(model, calls / "both.wav", calls / "one.wav", *options).exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["both-1.json", "both-2.json", "one.json"]
    names = [Transcript.from_json((tmp_path / "out" / f"both-{n}.json").read_text()).name for n in (1, 2)]
    assert names == ["both-1", "both-2"]
    told = transcribe(model, calls / "both.wav", "--format", "srt", "--channels", "each")
    assert told.exit_code == 2 and "--format srt: --channels each needs --output-dir" in told.stderr


def test_recordings_have_names_of_their_own(model, calls):
    (calls / "late" / "one.wav").write_bytes((calls / "one.wav").read_bytes())
    done = transcribe(model, calls, "--recursive", "--tasks", "asr", "--format", "json")
    assert [Transcript.from_json(line).name for line in done.stdout.splitlines()] == ["late/one", "late/two", "one"]
    # Words of two recordings under one name could not be told apart.
    done = transcribe(model, calls / "one.wav", calls / "late" / "one.wav", "--tasks", "asr", "--format", "ctm")
    assert done.exit_code == 0 and {line.split()[0] for line in done.stdout.splitlines()} == {"one", "one-2"}
    assert lines_of(done) == [f"{calls / 'late' / 'one.wav'}: named one-2, since {calls / 'one.wav'} is one"]


def test_what_cannot_be_written_is_named_and_the_rest_is_done(model, calls, tmp_path):
    (tmp_path / "out" / "one.txt").mkdir(parents=True)
    done = transcribe(model, calls, "--recursive", "--output-dir", tmp_path / "out")
    assert done.exit_code == 2 and (tmp_path / "out" / "late" / "two.txt").is_file()
    (line,) = lines_of(done)
    assert line.startswith(f"error: {calls / 'one.wav'}: cannot write ") and "one.txt" in line
    done = transcribe(model, calls, "--recursive", "--output-dir", "nostore://bucket/out")  # each is named
    assert done.exit_code == 2 and sorted(line.split(": ")[1] for line in lines_of(done)) == [
        str(calls / "late" / "two.wav"),
        str(calls / "one.wav"),
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["late", "one.txt"]


def test_what_could_not_be_written_is_not_computed_again_by_a_cluster(model, calls, tmp_path, monkeypatch):
    """Audio in memory has a key in each run too."""
    packed(calls / "one.mkv", "flac")

    class Cluster(ShardEngine):
        is_cluster = True

    def start(job):
        starts.append(job)
        return load(job)

    load, starts = RecognizerJob.__call__, []
    monkeypatch.setattr(engine, "RayEngine", lambda options: Cluster())
    monkeypatch.setattr(RecognizerJob, "__call__", start)
    output = tmp_path / "out"
    (output / "one.txt").mkdir(parents=True)
    for stderr, has_parts, number in (("cannot write", True, 1), ("", False, 1), ("", False, 2)):
        done = transcribe(model, calls, "--recursive", "--output-dir", output, "--engine", "ray")
        assert stderr in done.stderr and done.exit_code == (2 if stderr else 0), done.stderr
        assert (output / "parts").exists() == has_parts and len(starts) == number
        if has_parts:
            (output / "one.txt").rmdir()
    assert {path.name for path in output.iterdir()} == {"late", "one.txt", "one-2.txt"}


def test_wrong_options_are_one_line(model, calls, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "hotwords.txt").write_text("ba\t-1\n")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    (tmp_path / "nothing").mkdir()
    one = calls / "one.wav"
    for args, said in [
        ((), "AUDIO: expected files"),
        ((one, "--tasks", "asr,dance"), "task 'dance': this model knows"),
        ((one, "--tasks", " ,"), "--tasks: names no task; expected some, such as asr,lid, or asr alone"),
        ((one, "--language", "xx"), "does not write [XX]"),
        ((one, "--language", "qaa", "--tasks", "asr"), "with the task lid only"),
        ((one, "--format", "srt", "--format", "vtt"), "several formats need --output-dir"),
        ((one, one, "--format", "srt"), "--format srt: several inputs need --output-dir"),
        ((one, "--output-dir", tmp_path / "file"), "file: is a file, expected a folder"),
        ((one, "--hotwords", tmp_path / "hotwords.txt"), "hotwords.txt"),
        ((one, "--hotwords", tmp_path / "gone.txt"), "gone.txt: no such file; expected a file of phrases, one a line"),
        ((one, "--lm", tmp_path / "gone"), f"--lm: {tmp_path / 'gone'}: no such file or folder"),
        ((one, "--lm-scale", "0"), "'lm_scale': expected a number above 0"),
        ((one, "--lm-scale", "0.5"), "'lm_scale': has no effect without a language model"),
        ((one, "--method", "beam", "--beam", "0"), "'beam': expected a whole number"),
        ((one, "--batch-seconds", "0"), "expected seconds above 0"),
        ((one, "--device", "abacus"), "device 'abacus'"),
        ((one, "--raw"), "--raw: is for samples on standard input (-)"),
        ((one, "--model", tmp_path / "gone"), "no such folder"),
        ((one, "--model", "some/model"), "the Hugging Face hub cannot be reached"),
        ((one, "--encoder", tmp_path), "there is no config.json"),
        ((tmp_path / "bad.jsonl",), "bad.jsonl, line 1: not a lhotse cut"),
        ((tmp_path / "nothing",), "no audio files in this folder (--recursive looks into its folders)"),
    ]:
        done = transcribe(model, *args)
        assert done.exit_code == 2 and done.stdout == "", (args, done.output)
        assert len(lines_of(done)) == 1 and done.stderr.startswith("error: ") and said in done.stderr, done.stderr


def test_hotwords_and_a_language_model(model, calls, tmp_path):
    (tmp_path / "hotwords.txt").write_text("ba\t1.5\n")
    words = ["--beam", "2", "--hotwords", tmp_path / "hotwords.txt"]
    done = run("transcribe", "--model", model, calls / "one.wav", *words)
    assert done.exit_code == 0 and done.stdout
    # A list of one word that the model writes.
    plain = run("transcribe", "--model", model, calls / "one.wav")
    words = [w for w in plain.stdout.split() if w.isalpha()]
    (tmp_path / "words.tsv").write_text(f"{words[0]}\t1\n", encoding="utf-8")
    fused = run("transcribe", "--model", model, calls / "one.wav", "--lm", tmp_path / "words.tsv")
    assert fused.exit_code == 0 and fused.stdout


def test_what_models_know(model):
    done = run("transcribe", "--model", model, "--list-tasks")
    assert done.exit_code == 0 and re.search(r"^ner +\[NE\] \[/NE\]$", done.stdout, re.M)
    assert done.stdout.endswith("languages: qaa, qab\n")
    # The model of the package says what it is.
    done = run("transcribe", "--list-tasks")
    assert done.exit_code == 0 and "languages: " in done.stdout
    assert done.stderr.startswith("model: human-speech: an example model")


def test_a_frozen_encoder_by_option(tiny_corpus, calls, tmp_path):
    changes = save_frozen_encoder(tiny_corpus, tmp_path / "pretrained")
    model = write_model(tiny_corpus, tmp_path / "model", **changes)
    shutil.move(tmp_path / "pretrained", tmp_path / "elsewhere")
    lost = transcribe(model, calls / "one.wav")
    assert lost.exit_code == 2 and "say where its encoder is: encoder= (--encoder)" in lost.stderr
    assert transcribe(model, calls / "one.wav", "--encoder", tmp_path / "elsewhere").exit_code == 0


def test_on_a_terminal(model, calls, monkeypatch, capsys):
    """Colours, unless NO_COLOR is set; no control character of a file's name reaches the terminal."""
    shutil.copy(calls / "one.wav", calls / "evil\x1b[2J.wav")
    options = ["--model", str(model), "--method", "greedy", str(calls / "evil\x1b[2J.wav")]
    shown = {}
    for no_colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        command.transcribe.main(options, standalone_mode=False)
        shown[no_colour] = capsys.readouterr().out
    assert "\x1b[1m" in shown[""] and "\x1b" not in shown["1"]
    assert click.unstyle(shown[""]) == shown["1"] and "evil?[2J.wav  1.5 s" in shown["1"]
    assert re.search(r"^  0:0\d\.\d  ", shown["1"], re.M)


def test_the_progress_bar_is_for_terminals_only(model, calls, tmp_path, monkeypatch, capsys):
    options = ["--model", model, "--method", "greedy", "--output-dir", tmp_path / "out", calls / "one.wav"]
    options = list(map(str, options))
    command.transcribe.main(options, standalone_mode=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    command.transcribe.main(options, standalone_mode=False)
    assert "transcribing: 1 files" in capsys.readouterr().err


@pytest.mark.parametrize("output", [[], ["--format", "json"], ["--format", "html", "--output-dir", "{out}"]])
def test_windows_of_a_long_file_are_counted_whatever_is_written(model, tmp_path, monkeypatch, capsys, output):
    noise = np.random.default_rng(0).normal(0, 0.1, 29 * 16000).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    output = [word.format(out=tmp_path / "out") for word in output]
    options = ["--model", model, "--method", "greedy", "--tasks", "asr", "--batch-seconds", "30", tmp_path / "long.wav"]
    command.transcribe.main([*map(str, options), *output], standalone_mode=False)
    heard = capsys.readouterr()
    assert re.search(r"long\.wav: +0%.* 0/2 .* windows", heard.err) and "transcribing: 1 files" in heard.err
    assert heard.out


def test_times_of_paragraphs(model, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 15 * 16000).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    whole = transcribe(model, tmp_path / "long.wav", "--tasks", "asr")
    lines = whole.stdout.splitlines()
    assert len(lines) > 1 and all(re.match(r"0:\d\d\.\d  \S", line) for line in lines)
    bare = transcribe(model, tmp_path / "long.wav", "--tasks", "asr", "--no-times").stdout.splitlines()
    assert bare == [line.split("  ", 1)[1] for line in lines]


def test_standard_input_that_is_a_terminal(monkeypatch):
    monkeypatch.setattr(inputs, "sys", types.SimpleNamespace(stdin=types.SimpleNamespace(isatty=lambda: True)))
    (source,) = inputs.sources(["-"], False, None)
    assert source.heard.reason.startswith("stdin: expected audio from a pipe")
