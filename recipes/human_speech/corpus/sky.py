"""Reads Beneath a Steel Sky: acted English lines; the number of a text gives the number of its recording.

The scripts that say who speaks a line, and after which other, are not read: the lines are for speech recognition and
language identification, and the speaker is not known.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import List, Tuple

import numpy as np
import soundfile

from corpus.clips import Clip
from corpus.rnc import RncError
from corpus.sky_archive import END_OF_SPEECH, FIRST_SPEECH, SAMPLE_RATE, SECTION_SPEECH, SkyArchive
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing
from tokenverse_pp.data.normalise import has_digits, normalise

CORPUS = "sky"
DATA = Path("usr/share/scummvm/beneath-a-steel-sky")
SPEAKER = f"{CORPUS}-unknown"
ENGLISH = 0

_UNSURE = re.compile(r"[<>()\[\]{}#@=/\\^_|~&+%$*]")


def speech_number(text: int) -> int:
    """The number of the recording of a text (section: bits 12 to 15).

    >>> speech_number(0x1007)
    50607
    """
    return FIRST_SPEECH + SECTION_SPEECH[text >> 12] + (text & 0xFFF)


def read_clips(root: Path, sounds: Path) -> Tuple[List[Clip], Counter]:
    """Clips in the order of their texts, and how many recordings were left out, by reason.

    Recordings are written to `sounds` as WAV (what is there already is kept). 32 texts with neighbouring numbers, which
    mostly are of one conversation, are one group of the split.

    Raises:
        UserError: the archive is missing, damaged or of another version, or holds no speech with a text.
    """
    archive = SkyArchive(root / DATA)
    sounds.mkdir(parents=True, exist_ok=True)
    dropped: Counter = Counter()
    clips = []
    paired = set()
    for number, original in archive.texts(ENGLISH):
        speech = speech_number(number)
        if speech not in archive.places or speech >= END_OF_SPEECH:
            continue
        paired.add(speech)
        text = normalise(original)
        if not text:
            dropped["recordings whose text has no words"] += 1
        elif has_digits(text) or _UNSURE.search(original):
            dropped["texts with digits, brackets or signs"] += 1
        else:
            path = sounds / f"{speech}.wav"
            try:
                _write(archive, speech, path)
            except RncError:
                dropped["recordings that are not packed as speech is, or damaged"] += 1
                continue
            clips.append(
                Clip(
                    id=f"{CORPUS}-en-{speech}",
                    corpus=CORPUS,
                    language="en",
                    speaker=SPEAKER,
                    path=str(path),
                    text=text,
                    key=str(speech),
                    group=f"{number >> 5:04d}",
                )
            )
    found = {number for number in archive.places if FIRST_SPEECH <= number < END_OF_SPEECH}
    dropped["recordings without a text"] = len(found - paired)
    if not clips:
        raise UserError(f"{archive.path}: no speech with a text found")
    return clips, dropped


def _write(archive: SkyArchive, speech: int, path: Path) -> None:
    if path.is_file():
        return
    samples = np.frombuffer(archive.speech(speech), np.uint8)
    if not len(samples):
        raise RncError("no samples")
    with replacing(path) as aside, open(aside, "wb") as sink:
        soundfile.write(sink, (samples.astype(np.float32) - 128.0) / 128.0, SAMPLE_RATE, "PCM_U8", format="WAV")
