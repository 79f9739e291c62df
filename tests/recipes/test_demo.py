"""recipes/human_speech/demo.py: what `make demo` shows."""

import csv
import doctest
import json
import os
import re
import shutil

import click.testing
import numpy as np
import pytest
import soundfile
from scripts import ROOT, build_package, load_script

from tokenverse_pp.base.errors import UserError

FOLDER = ROOT / "recipes" / "human_speech"
STARTED = {"kind": "valid", "step": 0, "loss": 1.0, "wer": 0.5, "scd_f1": 0.0, "lid_accuracy": 0.99}
LATER = {**STARTED, "step": 20, "wer": 0.45, "scd_f1": 0.75}


@pytest.fixture(scope="module")
def demo():
    return load_script(FOLDER / "demo.py", "human_speech_demo")


def write_log(folder, *records):
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def watched(demo, folder, output):
    """What `watch` prints for a run that has written ``output`` and ended."""
    source, sink = os.pipe()
    os.write(sink, output)
    os.close(sink)
    runner = click.testing.CliRunner()
    with runner.isolation() as streams:
        try:
            demo.draw_run(folder, source)
        finally:
            os.close(source)
        return streams[0].getvalue().decode()


def test_each_validation_is_a_line_of_bars(demo, tmp_path):
    write_log(tmp_path, STARTED, {"kind": "train", "step": 5, "pruned": 0.5, "speed": 20.0}, LATER)
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "scores.json").write_text("{}")
    head, first, last = watched(demo, tmp_path, b"tasks asr, scd\n").splitlines()
    assert "words" in head and "speaker changes" in head and "entities" not in head
    assert first.split()[1:] == ["0", "█████", "50.0%", "0.0%", "█████████▉", "99.0%"]
    assert last.split()[1:] == ["20", "█████▌", "55.0%", "███████▌", "75.0%", "█████████▉", "99.0%"]
    assert first.index("99.0%") == last.index("99.0%") and head.index("language") == last.rindex("█████████▉")
    assert (tmp_path / "train.log").read_bytes() == b"tasks asr, scd\n"


def test_a_run_that_stops_says_why(demo, tmp_path):
    with pytest.raises(UserError, match=r"error: --optim\.lr: no"):
        watched(demo, tmp_path, b"error: --optim.lr: no\n")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
def test_clips_become_a_table_of_files(demo, tmp_path):
    root = tmp_path / demo.STAMPS
    stamps, doc = root / "usr/share/tuxpaint/stamps", root / "usr/share/doc" / demo.STAMPS
    for folder in (stamps, doc):
        folder.mkdir(parents=True)
    (doc / "copyright").write_text("License: test")
    for name, text in {"a": "O pisică neagră.", "b": "Neagră pisică, o.", "c": "Un măr", "d": "(remark)"}.items():
        (stamps / f"{name}.txt").write_text(f"A thing.\nro.utf8={text}\nfr.utf8=Un chat\n")
        for language in ("ro", "fr"):
            tone = np.sin(np.arange(8000 + 100 * ord(name)) / 20)
            soundfile.write(stamps / f"{name}_desc_{language}.ogg", tone, 22050)
    packed = tmp_path / "packages"
    packed.mkdir()
    build_package(root, packed, demo.STAMPS)
    runner, folder = click.testing.CliRunner(), tmp_path / "own"
    done = runner.invoke(demo.main, ["clips", str(packed), str(folder)])
    assert done.exit_code == 0 and "3 recordings" in done.output, done.output
    with open(folder / "clips.csv", encoding="utf-8", newline="") as file:
        rows = {row["text"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"o pisică neagră", "neagră pisică o", "un măr"}
    assert rows["o pisică neagră"]["alike"] == rows["neagră pisică o"]["alike"] != rows["un măr"]["alike"]
    assert all(soundfile.info(folder / row["audio"]).samplerate == 22050 for row in rows.values())
    assert sorted(path.name for path in folder.iterdir()) == ["audio", "clips.csv", "licence.txt"]
    assert "already there" in runner.invoke(demo.main, ["clips", str(packed), str(folder)]).output
    missing = runner.invoke(demo.main, ["clips", str(tmp_path / "none"), str(tmp_path / "other")])
    assert missing.exit_code == 2 and demo.STAMPS in missing.output


def test_helpers_do_what_their_examples_say(demo):
    assert doctest.testmod(demo).failed == 0


def test_last_screen_has_every_number_from_a_file(demo, tmp_path):
    runner = click.testing.CliRunner()
    missing = runner.invoke(demo.main, ["scores", str(tmp_path)])
    assert missing.exit_code == 2 and "holds no validation" in missing.output
    write_log(tmp_path, STARTED, LATER)
    speed = {"audio_seconds": 100.0, "wall_seconds": 6.0, "rtf": 0.06}
    for name, wer in {"before": 0.861, "after": 0.467, "decode": 0.441, "decode_words": 0.335}.items():
        (tmp_path / name).mkdir()
        found = {"wer": {"all": {"wer": wer}}, "utterances": 608, "speed": speed}
        task = {"lid": {"accuracy": 0.99}} if name in ("before", "after") else {"scd": {"text": {"f1": 0.918}}}
        (tmp_path / name / "scores.json").write_text(json.dumps({**found, **task}), encoding="utf-8")
    done = runner.invoke(demo.main, ["scores", str(tmp_path)])
    assert done.exit_code == 0, done.output
    table = [re.split(r" {2,}", line) for line in done.output.splitlines() if line]
    assert [cells[1:] for cells in table if cells[0] == "before: human-speech"] == [
        ["50.0", "0.0", "99.0"],
        ["86.1", "99.0"],
    ]
    assert [cells[1:] for cells in table if cells[0] == "after 20 steps"] == [
        ["45.0", "75.0", "99.0"],
        ["46.7", "99.0"],
    ]
    lines = {name: cells for name, *cells in table}
    assert lines["human-speech"][:2] == ["44.1", "91.8"] and lines["human-speech and lists of words"][0] == "33.5"
    recorded = json.loads((FOLDER / "baselines" / "results.json").read_text(encoding="utf-8"))["scores"]["systems"]
    known = f"{100 * recorded['whisper_given']['wer']['all']['wer']:.1f}"
    assert lines["Whisper-base, language given *"] == [known, "-", "-", "-", "-"]
    assert "real-time factor 0.060" in done.output and str(tmp_path / "decode_words" / "report.html") in done.output
    assert len([line for line in done.output.partition("Next:")[2].splitlines() if line.startswith("  ")]) == 3
