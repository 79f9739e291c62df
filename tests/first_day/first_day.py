#!/usr/bin/env python3
"""A user's first day: the commands of README and docs/transcribe.md, in order, in a fresh checkout, timed and scored.

    python tests/first_day/first_day.py                                 # with the packages of this interpreter
    python tests/first_day/first_day.py --install --output first.json   # also what README installs, in an environment

Each line of the blocks (of README also the code in its tables) is run by bash as it stands, after files of the names
that the pages use were made (`a.wav`, `calls/`, ..; the toy's synthetic speech). What names `exp/my` comes last: it is
the toy model that README trains. What cannot run here is listed in `SKIPPED` with a reason. Exit code 1: a command
failed, or a score is too low.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/transcribe.md")
# What is not run, and why. The first group is run with --install.
INSTALL = (r"^make venv", r"^pip install")
SKIPPED = (
    (r"^git clone", "the checkout is a copy of this one"),
    (r"^make (demo|docs)", "takes minutes, has a test of its own"),
    (r"[A-Z]+_FOLDER", "needs a corpus that is not free to download"),
    (r"--nproc-per-node 8", "needs eight GPUs"),
    (r"recipes/finetune\.py", "takes minutes, has a test of its own"),
)
CHANGED = {"--language fr": "--language qaa"}  # a language of the toy model
MODEL = "exp/my"
STARTED = ("tokenverse-pp serve",)  # commands that run until they are stopped, and what they print when they are ready
READY = "page: http"
BOUNDS = (
    "wer.all.wer<0.10",
    "scd.text.f1>0.9",
    "lid.accuracy>0.9",
)  # of README's `decode.py`, which decodes these tasks
PATIENCE = 3600.0  # seconds for a command


@dataclass
class Done:
    """A command, where it stands, how long it took and how it ended; ``skipped``: why it was not run."""

    page: str
    command: str
    seconds: float = 0.0
    code: Optional[int] = None
    skipped: Optional[str] = None
    stderr: str = ""

    @property
    def ok(self) -> bool:
        """Whether it did what it should."""
        return self.skipped is not None or self.code == 0


def commands(install: bool) -> List[Done]:
    """The commands of the pages in order, those that need the trained model last."""
    found = [Done(page, command) for page in PAGES for command in lines_of((ROOT / page).read_text(encoding="utf-8"))]
    skipped = [*SKIPPED, *((pattern, "installed already (--install)") for pattern in INSTALL if not install)]
    for item in found:
        item.skipped = next((why for pattern, why in skipped if re.search(pattern, item.command)), None)
    return sorted(found, key=lambda item: MODEL in item.command)


def lines_of(text: str) -> Iterator[str]:
    """The commands of a page: lines of its blocks of shell, its blocks of Python, each as one, and code in tables."""
    sys.path.insert(0, str(ROOT / "tests"))
    from doc_commands import INLINE, PROGRAM_LINE, blocks_of

    blocks, _ = blocks_of(text, ".md")
    python = set(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
    for block in blocks:
        if block in python:
            yield f"python - <<'END'\n{block}END"
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = re.sub(r"\s+#.*", "", line).strip()
            if PROGRAM_LINE.match(line):
                yield line
    for row in re.findall(r"^\|.*", text, flags=re.M):
        yield from (code for code in INLINE.findall(row) if code.startswith("tokenverse-pp "))


def fresh_checkout(folder: Path) -> None:
    """What git knows of this checkout, new files included."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def make_files(folder: Path, env: Dict[str, str]) -> None:
    """The files that the pages name, in the checkout: speech of the toy, a table, and a link to the model to come."""
    made = folder / "made"
    prepare = [
        sys.executable,
        "recipes/toy/prepare.py",
        "--output-dir",
        str(made),
        *"--train 4 --dev 4 --test 30".split(),
    ]
    subprocess.run(prepare, cwd=folder, env=env, check=True, capture_output=True)
    import soundfile

    speech = sorted((made / "audio").glob("*.flac"))
    for name, source in zip(("a", "call", "talk", "calls/one", "calls/more/two", "wav/x", "wav/y"), speech):
        target = folder / f"{name}.{'mkv' if name == 'talk' else 'wav'}"
        target.parent.mkdir(parents=True, exist_ok=True)
        samples, rate = soundfile.read(source)
        soundfile.write(target, samples, rate, format="WAV", subtype="PCM_16")
    (folder / "calls.csv").write_text("audio,transcript\nx.wav,one two\ny.wav,three\n", encoding="utf-8")
    shutil.copy(made / "cuts_test.jsonl.gz", folder / "cuts.jsonl.gz")
    shutil.copy(folder / "recipes" / "toy" / "conf" / "toy.yaml", folder / "my.yaml")
    (folder / "exp").mkdir()
    (folder / MODEL).symlink_to("toy")


def run(item: Done, folder: Path, env: Dict[str, str]) -> None:
    """Run a command with bash; one that serves is stopped as soon as it is ready."""
    serves = item.command.startswith(STARTED)
    command = f"exec {item.command} --port 0" if serves else item.command
    for said, changed in CHANGED.items():
        command = command.replace(said, changed)
    begun = time.monotonic()
    process = subprocess.Popen(
        [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    timer = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    lines, ready = [], False
    try:
        for line in process.stderr or ():
            lines.append(line)
            if serves and READY in line and not ready:
                ready = True
                item.seconds = time.monotonic() - begun
                process.terminate()
        item.code = process.wait()
    finally:
        timer.cancel()
    if serves and not ready:
        item.code = item.code or 1
    item.seconds = item.seconds or time.monotonic() - begun
    item.stderr = "".join(lines)[-2000:]


def environment(folder: Path, install: bool) -> Dict[str, str]:
    """As in a shell with the environment activated; without ``install`` that of this interpreter, and the checkout."""
    own = folder / ".venv" / "bin" if install else Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{own}{os.pathsep}{os.environ['PATH']}"}
    if not install:
        env.update(PYTHONPATH=str(folder), HF_HUB_OFFLINE="1")
    return env


def first_day(install: bool = False, report: bool = True) -> Tuple[List[Done], List[str]]:
    """Run all commands; they, and the scores as `.ci/check_scores.py` prints them."""
    with tempfile.TemporaryDirectory(prefix="first-day-") as temporary:
        folder = Path(temporary)
        fresh_checkout(folder)
        env = environment(folder, install)
        make_files(folder, {**os.environ, "PYTHONPATH": str(folder)})
        if install:
            subprocess.run([sys.executable, "-m", "venv", ".venv"], cwd=folder, check=True)
        done = commands(install)
        for item in done:
            if item.skipped is None:
                run(item, folder, env)
            if report:
                print(line_of(item), flush=True)
        check = [sys.executable, str(ROOT / ".ci" / "check_scores.py"), "out/scores.json", *BOUNDS]
        checked = subprocess.run(check, cwd=folder, capture_output=True, text=True)
        if checked.returncode:
            done.append(
                Done("scores", "check_scores.py", code=checked.returncode, stderr=checked.stdout + checked.stderr)
            )
        return done, checked.stdout.splitlines()


def line_of(item: Done) -> str:
    """One line of the table, with the end of stderr below a command that failed."""
    state = "-" if item.skipped else "ok" if item.ok else f"FAILED {item.code}"
    command = item.command.splitlines()[0]
    line = f"{item.seconds:7.1f} s  {state:10} {item.page:18} {command}{f'  ({item.skipped})' if item.skipped else ''}"
    return line if item.ok else f"{line}\n{item.stderr}"


def main(words: Optional[Sequence[str]] = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="run README's installation too, in a new environment")
    parser.add_argument("--output", type=Path, help="write commands, seconds and scores as JSON")
    given = parser.parse_args(words)
    done, scores = first_day(given.install)
    print(*scores, sep="\n")
    print(f"{sum(item.seconds for item in done):.0f} s in all, {sum(not item.ok for item in done)} failed")
    if given.output:
        given.output.write_text(json.dumps({"commands": [asdict(x) for x in done], "scores": scores}, indent=2) + "\n")
    return int(not all(item.ok for item in done))


if __name__ == "__main__":
    sys.exit(main())
