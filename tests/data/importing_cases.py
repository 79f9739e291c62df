"""What the tests of `manifest import` share: little audio files, and the command line in this process."""

import json
import math
from pathlib import Path

import numpy as np
import soundfile
from click.testing import CliRunner
from lhotse import CutSet, validate

from tokenverse_pp.cli.main import cli

RATE = 16000


def write_audio(path, seconds=4.0, rate=RATE, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(seconds * rate)) / rate
    tone = 0.1 * np.sin(2 * math.pi * 220 * times)
    soundfile.write(path, np.stack([tone] * channels, axis=1), rate)
    return path


def make_audio_dir(tmp_path_factory):
    """Recordings of 4 s: a.wav, b.wav, sub/c.flac; d.wav has 2 channels and 8 kHz."""
    folder = tmp_path_factory.mktemp("audio")
    for name in ("a.wav", "b.wav", "sub/c.flac"):
        write_audio(folder / name)
    write_audio(folder / "d.wav", rate=8000, channels=2)
    return folder


def _runner():
    try:
        return CliRunner(mix_stderr=False)
    except TypeError:  # click 8.2 keeps the two apart by itself
        return CliRunner()


def run(*arguments):
    """Exit code, standard output, standard error of `tokenverse-pp manifest ..`."""
    result = _runner().invoke(cli, ["manifest", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def imported(output, *arguments):
    """The cuts, as dictionaries, of an import that succeeds and whose manifest is valid, for lhotse too."""
    code, _, err = run("import", output, *arguments)
    assert code == 0, err
    code, _, err = run("validate", output)
    assert code == 0, err
    validate(CutSet.from_file(output), read_data=True)
    return [json.loads(line) for line in Path(output).read_text(encoding="utf-8").splitlines()]


def turns(cut):
    """(start, end, speaker, text) of a cut's turns."""
    return [
        (s["start"], round(s["start"] + s["duration"], 3), s.get("speaker"), s["text"]) for s in cut["supervisions"]
    ]
