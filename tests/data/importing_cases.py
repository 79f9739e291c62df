"""What the tests of `manifest import` share: little audio files, and the command line in this process."""

import json
import math
import os
from pathlib import Path

import numpy as np
import soundfile
from command_lines import run as command_line
from hypothesis import HealthCheck, settings
from lhotse import CutSet, validate

RATE = 16000


def examples(count):
    """So many random examples of a property, or as many as TOKENVERSE_FUZZ says."""
    count = int(os.environ.get("TOKENVERSE_FUZZ", count))
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_audio(path, seconds=4.0, rate=RATE, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(seconds * rate)) / rate
    tone = 0.1 * np.sin(2 * math.pi * 220 * times)
    soundfile.write(path, np.stack([tone] * channels, axis=1), rate)
    return path


def run(*arguments):
    """Exit code, standard output, standard error of `tokenverse-pp manifest ..`; an import replaces its output."""
    result = command_line("manifest", *arguments, *(["--overwrite"] if arguments[0] == "import" else []))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def write(path, text):
    """A file of text or bytes, with its folders -> its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table_of(folder, rows, columns=("audio", "text")):
    """A table of rows as JSON lines."""
    return write(folder / "T.jsonl", "\n".join(json.dumps(dict(zip(columns, row))) for row in rows))


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
