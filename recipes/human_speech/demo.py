"""Parts of `demo.sh`: files to fine-tune on, scores on dev while it trains, and scores side by side at the end.

\b
python recipes/human_speech/demo.py clips data/human_speech/packages data/romanian
python recipes/finetune.py --output-dir exp/demo ... 2>&1 | python recipes/human_speech/demo.py watch exp/demo
python recipes/human_speech/demo.py scores exp/demo
"""

from __future__ import annotations

import csv
import json
import os
import select
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import click
import soundfile
from corpus import packages, tuxpaint
from corpus.clips import find_outliers
from corpus.split import connected, near_duplicates

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.validation import headline

HERE = Path(__file__).resolve().parent
DONE = "after/scores.json"  # the last file that `recipes/finetune.py` writes
WHISPER = HERE / "baselines" / "results.json"
# Names in log.jsonl and on the terminal. Words are 100% minus the WER, so that all bars grow as the model learns.
CURVES = {
    "wer": "words",
    "scd_f1": "speaker changes",
    "endp_f1": "endpoints",
    "ner_f1": "entities",
    "lid_accuracy": "language",
}
STAMPS = "tuxpaint-stamps-default"
LANGUAGE = "ro"  # `prepare.py` uses es, fr and ru of this package
WIDTH = 10  # characters of a bar
EIGHTHS = " ▏▎▍▌▋▊▉█"
POLL = 0.5  # seconds


@click.group(help=__doc__)
def main() -> None:
    """See the module's docstring."""


@main.command()
@click.argument("packages_dir", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def clips(packages_dir: Path, folder: Path) -> None:
    """Put Tux Paint's recordings in Romanian from PACKAGES_DIR into FOLDER, with a table, as for your own files."""
    with report_errors():
        click.echo(write_clips(packages_dir, folder))


def write_clips(packages_dir: Path, folder: Path) -> str:
    """Write `audio/*.ogg`, `licence.txt` and, last, `clips.csv`: audio, text, and a number shared by near-duplicates.

    Raises:
        UserError: the package is not in the folder, or is damaged.
    """
    table = folder / "clips.csv"
    if table.is_file():
        return f"{table}: already there"
    file = packages.get_packages([STAMPS], packages_dir, packages_dir)[STAMPS]
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows: List[Tuple[str, str, int]] = []
    with tempfile.TemporaryDirectory(dir=folder) as work:
        root = Path(work) / "unpacked"
        packages.extract_package(file, root)
        found = tuxpaint.read_clips(root, LANGUAGE)
        wrong = find_outliers(found, {clip.id: soundfile.info(clip.path).duration for clip in found})
        found = [clip for clip in found if clip.id not in wrong]
        for clip, alike in zip(found, connected(len(found), near_duplicates([clip.text for clip in found]))):
            rows.append((f"audio/{clip.id}.ogg", clip.text, alike))
            shutil.move(clip.path, folder / rows[-1][0])
        shutil.move(str(root / "usr/share/doc" / STAMPS / "copyright"), folder / "licence.txt")
        with open(Path(work) / "clips.csv", "w", encoding="utf-8", newline="") as sink:
            csv.writer(sink).writerows([("audio", "text", "alike"), *rows])
        os.replace(Path(work) / "clips.csv", table)
    return f"{table}: {len(rows)} recordings of one speaker; licence ({packages.LICENCES['tuxpaint']}): licence.txt"


@main.command()
@click.argument("exp_dir", type=click.Path(path_type=Path))
def watch(exp_dir: Path) -> None:
    """Draw the scores on dev as a run logs them; the run's output goes from stdin to EXP_DIR/train.log."""
    with report_errors():
        draw_run(exp_dir, sys.stdin.fileno())


def draw_run(exp_dir: Path, source: int) -> None:
    """Print a line of bars for each validation of a run until its output, read from descriptor ``source``, ends.

    Raises:
        UserError: if it ended without a model; includes the last lines of its output.
    """
    exp_dir.mkdir(parents=True, exist_ok=True)
    shown, started, running = 0, time.monotonic(), True
    with open(exp_dir / "train.log", "wb") as log:
        while running:
            if select.select([source], [], [], POLL)[0]:
                text = os.read(source, 1 << 16)
                running = bool(text)
                log.write(text)
                log.flush()
            records = read_log(exp_dir / "log.jsonl")
            valid = [record for record in records if record["kind"] == "valid"]
            seconds = time.monotonic() - started
            for number, record in enumerate(valid[shown:], start=shown):
                status("")
                if number == 0:
                    click.echo(curve_head(record))
                click.echo(curve_line(record, seconds))
            shown = len(valid)
            status(progress(records, seconds) if running else "")
    if not (exp_dir / DONE).is_file():
        last = (exp_dir / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        raise UserError("\n".join([f"training has stopped: {exp_dir / 'train.log'} ends with", *last]))


def curve_head(scores: Mapping[str, float]) -> str:
    """The header above the lines of `curve_line`."""
    return "   time  step  " + "  ".join(f"{name:{WIDTH + 7}}" for task, name in CURVES.items() if task in scores)


def curve_line(scores: Mapping[str, float], seconds: float) -> str:
    """A validation as a line of bars: each curve runs down the screen."""
    shares = [1 - scores[name] if name == "wer" else scores[name] for name in CURVES if name in scores]
    cells = [f"{bar(share)} {share:6.1%}" for share in shares]
    return f"{clock(seconds)}  {scores['step']:4}  " + "  ".join(cells)


def bar(share: float) -> str:
    """A horizontal bar of `WIDTH` characters.

    >>> bar(0.55)
    '█████▌    '
    """
    eighths = round(min(1.0, max(0.0, share)) * WIDTH * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + EIGHTHS[rest] * (rest > 0)).ljust(WIDTH)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75)
    '   1:15'
    """
    return f"{int(seconds) // 60:4}:{int(seconds) % 60:02}"


def progress(records: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """The progress of a run, for a line that is overwritten."""
    train = [record for record in records if record["kind"] == "train"]
    if not train:
        return f"{clock(seconds)}  loading, and scoring what it starts from"
    last = train[-1]
    return f"{clock(seconds)}  step {last['step']}, loss {last['pruned']:.3f}, {last['speed']:.0f} times real time"


def status(line: str) -> None:
    """Overwrite the last line of a terminal; does nothing if the output is a file."""
    if sys.stdout.isatty():
        click.echo(f"\r\033[K{line}", nl=False)


@main.command()
@click.argument("exp_dir", type=click.Path(path_type=Path))
def scores(exp_dir: Path) -> None:
    """Print the scores of EXP_DIR beside Whisper-base's, where the reports are, and what to do next."""
    with report_errors():
        click.echo(last_screen(exp_dir))


def last_screen(exp_dir: Path) -> str:
    """The text of `scores`.

    Raises:
        UserError: if a run or a decoding of the demo is missing.
    """
    valid = [record for record in read_log(exp_dir / "log.jsonl") if record["kind"] == "valid"]
    if not valid:
        raise UserError(f"{exp_dir / 'log.jsonl'}: holds no validation: run demo.sh first")
    names = ("before", "after", "decode", "decode_words")
    before, after, plain, words = (read_scores(exp_dir / name / "scores.json") for name in names)
    peers = read_scores(WHISPER)["scores"]["systems"]
    steps = f"after {valid[-1]['step']} steps"
    old = [
        ("human-speech", headline(plain)),
        ("human-speech and lists of words", headline(words)),
        ("Whisper-base, language given *", headline({"wer": peers["whisper_given"]["wer"]})),
        ("Whisper-base and a part a task *", headline(peers["cascade"])),
    ]
    blocks = [
        score_table("Romanian, dev, greedy search", [("before: human-speech", valid[0]), (steps, valid[-1])]),
        score_table(
            f"Romanian, test, {after['utterances']} cuts",
            [("before: human-speech", headline(before)), (steps, headline(after))],
        ),
        FORGETS,
        score_table(f"the seven languages that human-speech was trained on, test, {plain['utterances']} cuts", old),
        f"* of record: {WHISPER.relative_to(HERE.parents[1])}; it was not run here. Words: errors, less is better.",
        f"human-speech: {speed_line(plain)}; with lists of words: {speed_line(words)}",
        f"reports: {', '.join(str(exp_dir / name / 'report.html') for name in names)}",
        f"curves: {exp_dir / 'curves.png'}   model: {exp_dir}   output of the training: {exp_dir / 'train.log'}",
        NEXT.format(exp_dir=exp_dir),
    ]
    return "\n\n".join(blocks)


FORGETS = """The price (of record): on the seven languages below the fine-tuned model has forgotten: WER 81%, not 39.
A model for both needs the old corpora in its training as well (docs/transfer.md)."""
NEXT = """Next:
  .venv/bin/tokenverse-pp transcribe YOUR.wav       # all tasks; in Romanian: --model {exp_dir} --tasks asr,lid
  .venv/bin/tokenverse-pp serve                     # streaming, with a web page
  .venv/bin/python recipes/finetune.py --table YOUR.csv --output-dir exp/mine --set language=en   # recipes/own_data"""


def score_table(title: str, rows: Sequence[Tuple[str, Mapping[str, float]]]) -> str:
    """A plain-text table of scores in percent, for the tasks of any row; '-' if a system does not have a task."""
    scored = [task for task in CURVES if any(task in found for _, found in rows)]
    units = {"wer": "WER %", "lid_accuracy": f"{CURVES['lid_accuracy']} %"}
    head = [title, *(units.get(task, f"{CURVES[task]} F1 %") for task in scored)]
    cells = [[name, *(percent(found.get(task)) for task in scored)] for name, found in rows]
    return aligned([head, *cells])


def percent(share: Optional[float]) -> str:
    """
    >>> percent(0.4567), percent(None)
    ('45.7', '-')
    """
    return "-" if share is None else f"{100 * share:.1f}"


def speed_line(found: Mapping[str, Any]) -> str:
    """How long a decoding took, including the encoder: it starts from the audio."""
    speed = found["speed"]
    return f"{speed['audio_seconds']:.0f} s in {speed['wall_seconds']:.0f} s, real-time factor {speed['rtf']:.3f}"


def read_scores(path: Path) -> Dict[str, Any]:
    """Read a JSON file (raises UserError)."""
    try:
        found: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return found


if __name__ == "__main__":
    main()
