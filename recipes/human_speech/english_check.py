#!/usr/bin/env python3
"""English by speakers outside the training data: five LibriVox sentences from a Debian package.

\b
python recipes/human_speech/english_check.py --model tokenverse_pp/pretrained/human_speech \\
    --encoder data/whisper-base

Gets pocketsphinx-testdata (BSD; 1.8 MB) by `apt-get download`, writes a CutSet beside it, and decodes that with
recipes/decode.py, whose output it prints. 71 words are a sanity check, not a test set: one word is 1.4%.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, Optional, Sequence

import click
from corpus.packages import check_package, get_packages
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.cut import MonoCut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.labels import validate_cuts
from tokenverse_pp.data.manifests import write_cuts
from tokenverse_pp.data.normalise import normalise

PACKAGE = "pocketsphinx-testdata"
TEST_DATA = Path("usr/share/pocketsphinx/test/data")
TRANSCRIPTIONS = {"librivox": "transcription", "cards": "cards.transcription"}
DECODE = Path(__file__).resolve().parents[1] / "decode.py"
# Sphinx: <s> words </s> (id)
LINE = re.compile(r"<s>(?P<text>.*)</s>\s*\((?P<id>[^()\s]+)\)\s*")


def unpack(folder: Path, packages_dir: Optional[Path] = None) -> Path:
    """Return the folder of the package's test data; download and unpack it first if necessary.

    Raises:
        UserError: if the package does not exist or is damaged.
    """
    target = folder / "unpacked"
    if not target.is_dir():
        file = get_packages([PACKAGE], folder, packages_dir)[PACKAGE]
        check_package(PACKAGE, file)
        aside = folder / "unpacked.partial"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        done = subprocess.run(["dpkg-deb", "-x", str(file), str(aside)], capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(f"{file}: not a whole Debian package (truncated download?): delete it and get it again")
        aside.rename(target)
    return target / TEST_DATA


def read_part(folder: Path, part: str) -> List[MonoCut]:
    """Cuts of one folder of recordings, labelled for asr and lid.

    Raises:
        UserError: for an invalid line of the transcription, or a missing recording.
    """
    listing = folder / TRANSCRIPTIONS[part]
    if not listing.is_file():
        raise UserError(f"{listing} is missing: expected the test data of {PACKAGE}")
    cuts = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{listing}, line {number}: expected '<s> words </s> (id)', found {line!r}")
        audio = folder / f"{match['id']}.wav"
        if not audio.is_file():
            raise UserError(f"{audio} is missing: {listing.name}, line {number} names it")
        cuts.append(make_cut(audio, f"{part}-{match['id']}", normalise(match["text"], "en"), part))
    return cuts


def make_cut(audio: Path, cut_id: str, text: str, part: str) -> MonoCut:
    """One recording as a cut with one turn; ``part`` is its corpus in the table of scores."""
    recording = Recording.from_file(audio.resolve(), recording_id=cut_id)
    turn = SupervisionSegment(cut_id, cut_id, 0.0, recording.duration, text=text, language="en", speaker=part)
    cut = MonoCut(cut_id, 0.0, recording.duration, 0, supervisions=[turn], recording=recording)
    cut.custom = {"tasks": ["asr", "lid"], "corpus": part}
    return cut


def write_manifest(folder: Path, parts: Sequence[str], packages_dir: Optional[Path] = None) -> Path:
    """Write ``cuts.jsonl.gz`` of the parts to ``folder``."""
    data = unpack(folder, packages_dir)
    cuts = CutSet.from_cuts([cut for part in parts for cut in read_part(data / part, part)])
    validate_cuts(cuts)
    manifest = folder / "cuts.jsonl.gz"
    write_cuts(cuts, manifest)
    return manifest


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True, "max_content_width": 100})
@click.option("--model", required=True, help="Model folder, checkpoint or experiment.")
@click.option("--encoder", default="", help="Where the pretrained encoder is, if not where it was in training.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("data/english_check"),
    show_default=True,
    help="Folder for the audio and the result.",
)
@click.option("--packages-dir", type=click.Path(path_type=Path), help="Folder with the .deb file: no download.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(sorted(TRANSCRIPTIONS)),
    multiple=True,
    default=("librivox",),
    show_default=True,
    help="cards: five recordings of names of playing cards.",
)
@click.argument("decode_options", nargs=-1, type=click.UNPROCESSED)
def main(
    model: str,
    encoder: str,
    folder: Path,
    packages_dir: Optional[Path],
    parts: Sequence[str],
    decode_options: Sequence[str],
) -> None:
    """See the module's docstring; further options go to decode.py."""
    manifest = write_manifest(folder, parts, packages_dir)
    command = [sys.executable, str(DECODE), "--model", model, "--cuts", str(manifest), "--output-dir"]
    command += [str(folder / "decode"), "--show", "5", "--no-report", *decode_options]
    command += ["--encoder", encoder] if encoder else []
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    with report_errors():
        main()
