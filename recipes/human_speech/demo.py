"""What `demo.sh` shows: scores on dev while it trains, and scores side by side at the end.

python recipes/train.py --training.exp_dir exp/demo ... 2>&1 | python recipes/human_speech/demo.py watch exp/demo
python recipes/human_speech/demo.py scores exp/demo
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import click

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.validation import headline

HERE = Path(__file__).resolve().parent
WHISPER = HERE / "baselines" / "results.json"
# Name on the terminal by the name in log.jsonl. Of words, 100% less the errors: all bars grow as the model learns.
CURVES = {
    "wer": "words",
    "scd_f1": "speaker changes",
    "endp_f1": "endpoints",
    "ner_f1": "entities",
    "lid_accuracy": "language",
}
WIDTH = 10  # characters of a bar
EIGHTHS = " ▏▎▍▌▋▊▉█"
POLL = 0.5  # seconds


@click.group(help=__doc__)
def main() -> None:
    """See the module's docstring."""


@main.command()
@click.argument("exp_dir", type=click.Path(path_type=Path))
def watch(exp_dir: Path) -> None:
    """Draw the scores on dev as a run logs them; its own output is read from stdin and goes to EXP_DIR/train.log."""
    with report_errors():
        draw_run(exp_dir, sys.stdin.fileno())


def draw_run(exp_dir: Path, source: int) -> None:
    """Print a line of bars for each validation of a run until its output, of the file descriptor ``source``, ends.

    Raises:
        UserError: it ended without a model; with the end of its output.
    """
    exp_dir.mkdir(parents=True, exist_ok=True)
    click.echo(curve_head())
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
            for record in valid[shown:]:
                status("")
                click.echo(curve_line(record, seconds))
            shown = len(valid)
            status(progress(records, seconds) if running else "")
    if not (exp_dir / "model").is_dir():
        last = (exp_dir / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        raise UserError("\n".join([f"training has stopped: {exp_dir / 'train.log'} ends with", *last]))


def curve_head() -> str:
    """The head of the lines of `curve_line`."""
    return "   time  step  " + "  ".join(f"{name:{WIDTH + 6}}" for name in CURVES.values())


def curve_line(scores: Mapping[str, float], seconds: float) -> str:
    """A validation as a line of bars: each curve runs down the screen."""
    cells = []
    for name in CURVES:
        value = scores.get(name)
        share = None if value is None else 1 - value if name == "wer" else value
        cells.append(f"{'':{WIDTH + 6}}" if share is None else f"{bar(share)} {share:5.1%}")
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
    """What the run is at, for a line that is written over."""
    train = [record for record in records if record["kind"] == "train"]
    if not train:
        return f"{clock(seconds)}  loading, and scoring what it starts from"
    last = train[-1]
    return f"{clock(seconds)}  step {last['step']}, loss {last['pruned']:.3f}, {last['speed']:.0f} times real time"


def status(line: str) -> None:
    """Write over the last line of a terminal; nothing where the output is a file."""
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
        UserError: a run or a decoding of the demo is not there.
    """
    valid = [record for record in read_log(exp_dir / "log.jsonl") if record["kind"] == "valid"]
    if not valid:
        raise UserError(f"{exp_dir / 'log.jsonl'}: holds no validation: run demo.sh first")
    plain, words = (read_scores(exp_dir / name / "scores.json") for name in ("decode", "decode_words"))
    peers = read_scores(WHISPER)["scores"]["systems"]
    dev = [("before training", valid[0]), (f"after {valid[-1]['step']} steps", valid[-1])]
    test = [
        ("this model", headline(plain)),
        ("this model and lists of words", headline(words)),
        ("Whisper-base, told the language *", headline({"wer": peers["whisper_given"]["wer"]})),
        ("Whisper-base and a part a task *", headline(peers["cascade"])),
    ]
    blocks = [
        score_table("dev, greedy search", dev),
        score_table(f"test, {plain['utterances']} cuts", test),
        f"* of record: {WHISPER.relative_to(HERE.parents[1])}; it was not run here. Words: errors, less is better.",
        f"this model: {speed_line(plain)}; with lists of words: {speed_line(words)}",
        f"report: {exp_dir / 'decode_words' / 'report.html'}   (without lists: {exp_dir / 'decode' / 'report.html'})\n"
        f"curves: {exp_dir / 'curves.png'}",
        NEXT.format(exp_dir=exp_dir),
    ]
    return "\n\n".join(blocks)


NEXT = """Next:
  .venv/bin/tokenverse-pp transcribe --model {exp_dir} YOUR.wav      # other speech, with all tasks
  .venv/bin/tokenverse-pp serve --model {exp_dir}                    # streaming, with a web page
  DEMO_STEPS=600 make demo                                         # train longer; your own speech: docs/tutorial.md"""


def score_table(title: str, rows: Sequence[Tuple[str, Mapping[str, float]]]) -> str:
    """A plain-text table of scores in percent; '-' where a system has no such task."""
    tasks = [f"{name} %" if task == "lid_accuracy" else f"{name} F1 %" for task, name in CURVES.items()]
    head = [title, "WER %", *tasks[1:]]
    cells = [[name, *(percent(found.get(task)) for task in CURVES)] for name, found in rows]
    return aligned([head, *cells])


def percent(share: Optional[float]) -> str:
    """
    >>> percent(0.4567), percent(None)
    ('45.7', '-')
    """
    return "-" if share is None else f"{100 * share:.1f}"


def speed_line(found: Mapping[str, Any]) -> str:
    """How long a decoding took, encoder included: it starts from the audio."""
    speed = found["speed"]
    return f"{speed['audio_seconds']:.0f} s in {speed['wall_seconds']:.0f} s, real-time factor {speed['rtf']:.3f}"


def read_scores(path: Path) -> Dict[str, Any]:
    """The JSON of a file (raises UserError)."""
    try:
        found: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return found


if __name__ == "__main__":
    main()
