#!/usr/bin/env python3
"""Synthetic speech of words that the corpora lack: phrases of random words, spoken by espeak-ng.

    pip install espeakng-loader soxr                # the library of espeak-ng (GPL-3), without the command
    python recipes/human_speech/word_lists.py data/words
    python recipes/human_speech/synthetic.py --words data/words --letters-of data/human_speech/cuts_train.jsonl.gz \\
        --output-dir data/synthetic

The cuts are labelled for asr and lid. A predictor that sees two tokens does not learn the order of words from them. Voice,
speed and pitch are drawn for each phrase. What it is good for: RESULTS.md.
"""

from __future__ import annotations

import ctypes
import random
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Set, Tuple

import click
import numpy as np
import soundfile
import soxr
from lhotse import CutSet, Recording, SupervisionSegment
from tqdm import tqdm

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.manifests import write_cuts
from tokenverse_pp.data.samplers import load_cuts

SAMPLE_RATE = 16000
# Names of espeak-ng's voices, and their share of the speech: French and Russian spelling says least of the sound.
VOICES: Dict[str, Tuple[Tuple[str, ...], float]] = {
    "cs": (("cs",), 2.0),
    "en": (("en", "en-us"), 0.5),
    "es": (("es", "es-419"), 1.5),
    "fr": (("fr", "fr-be"), 2.5),
    "it": (("it",), 0.5),
    "nl": (("nl",), 2.0),
    "ru": (("ru",), 2.5),
}
VARIANTS = [*(f"m{n}" for n in range(1, 9)), *(f"f{n}" for n in range(1, 6))]
ELIDED = ("c", "d", "j", "l", "m", "n", "qu", "s", "t")  # French words before a vowel
VOWELS = "aàâeéèêiîoôuûœyh"
MOST_WORDS = 8
FLATTER = 0.4  # power of a word's frequency with which it is drawn: rare words are what is missing


class Phrase(NamedTuple):
    """What is said, and how."""

    id: str
    language: str
    text: str
    voice: str
    words_per_minute: int
    pitch: int
    range: int


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option("--words", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of word lists.")
@click.option("--letters-of", required=True, help="CutSet: words with letters that its texts lack are left out.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, help="Folder for audio and cuts.jsonl.gz.")
@click.option("--phrases", type=click.IntRange(min=1), default=10_000, show_default=True, help="Of all languages.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(words: Path, letters_of: str, output_dir: Path, phrases: int, jobs: int, seed: int) -> None:
    """See the module's docstring."""
    drawn = list(draw_phrases(words, letters(letters_of), phrases, random.Random(seed)))
    audio = output_dir / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        cuts = list(tqdm(pool.map(Speaker(audio), drawn, chunksize=20), total=len(drawn), unit="phrase"))
    write_cuts(CutSet.from_cuts(cuts), output_dir / "cuts.jsonl.gz")
    click.echo(f"{output_dir / 'cuts.jsonl.gz'}: {len(cuts)} cuts, {sum(c.duration for c in cuts) / 3600:.2f} h")


def letters(path: str) -> Dict[str, Set[str]]:
    """The letters of the texts of a CutSet by language."""
    found: Dict[str, Set[str]] = defaultdict(set)
    for cut in load_cuts([path], "letters-of"):
        for supervision in cut.supervisions:
            found[supervision.language].update(supervision.text)
    return found


def draw_phrases(words: Path, known: Dict[str, Set[str]], count: int, rng: random.Random) -> Iterator[Phrase]:
    """Phrases of 1 to `MOST_WORDS` words of a language; every word has two letters at least."""
    shares = {code: share for code, (_, share) in VOICES.items() if code in known}
    for code, share in shares.items():
        rows = [line.split("\t") for line in (words / f"{code}.tsv").read_text(encoding="utf-8").splitlines()]
        spoken = [(w, float(f) ** FLATTER) for w, f in rows if len(w) > 1 and set(w) <= known[code]]
        listed, weights = [w for w, _ in spoken], list(accumulate(f for _, f in spoken))
        for number in range(round(count * share / sum(shares.values()))):
            chosen = rng.choices(listed, cum_weights=weights, k=rng.randint(1, MOST_WORDS))
            if code == "fr":
                chosen = [elide(word, rng) for word in chosen if word not in ELIDED] or ["rien"]
            voice = f"{rng.choice(VOICES[code][0])}+{rng.choice(VARIANTS)}"
            how = (rng.randint(120, 210), rng.randint(25, 75), rng.randint(30, 80))
            yield Phrase(f"synthetic-{code}-{number:05d}", code, " ".join(chosen), voice, *how)


def elide(word: str, rng: random.Random) -> str:
    """A French word, before a vowel often with an article or pronoun as the corpora spell it: l'arbre."""
    return f"{rng.choice(ELIDED)}'{word}" if word[0] in VOWELS and "'" not in word and rng.random() < 0.3 else word


class Speaker:
    """Says phrases into files, each process with a library of its own."""

    library = None  # of this process

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, phrase: Phrase) -> object:
        """Write the audio of a phrase; return its cut."""
        if Speaker.library is None:
            Speaker.library = Library()
        samples = soxr.resample(Speaker.library.say(phrase), Speaker.library.rate, SAMPLE_RATE)
        path = self.folder / f"{phrase.id}.wav"
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        cut = Recording.from_file(path, recording_id=phrase.id).to_cut()
        cut.id = phrase.id
        cut.custom = {"tasks": ["asr", "lid"], "corpus": "synthetic"}
        speaker = f"espeak-{phrase.voice}"
        segment = {"start": 0.0, "duration": cut.duration, "text": phrase.text, "language": phrase.language}
        cut.supervisions = [SupervisionSegment(phrase.id, phrase.id, speaker=speaker, **segment)]
        return cut


class Library:
    """espeak-ng's library (speak_lib.h), which gives the samples to a function."""

    RETRIEVAL, UTF8, CHARACTER = 1, 1, 1
    RATE, PITCH, RANGE = 1, 3, 4

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise UserError("espeakng_loader is missing: pip install espeakng-loader") from None
        self.espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        folder = espeakng_loader.get_data_path().encode()
        self.rate = self.espeak.espeak_Initialize(self.RETRIEVAL, 0, folder, 0)
        if self.rate <= 0:
            raise UserError(f"espeak-ng does not start with the data in {folder.decode()}")
        self.found: List[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = kind(self._take)  # must live as long as the library
        self.espeak.espeak_SetSynthCallback(self.callback)

    def _take(self, samples: object, count: int, events: object) -> int:
        if samples and count > 0:
            self.found.append(np.ctypeslib.as_array(samples, (count,)).copy())  # type: ignore[call-overload]
        return 0

    def say(self, phrase: Phrase) -> np.ndarray:
        """The samples (S,) of a phrase, in -1 .. 1."""
        if self.espeak.espeak_SetVoiceByName(phrase.voice.encode()):
            raise UserError(f"espeak-ng has no voice {phrase.voice}")
        for key, value in ((self.RATE, phrase.words_per_minute), (self.PITCH, phrase.pitch), (self.RANGE, phrase.range)):
            self.espeak.espeak_SetParameter(key, value, 0)
        self.found = []
        text = phrase.text.encode() + b"\0"
        self.espeak.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, self.CHARACTER, 0, self.UTF8, None, None)
        self.espeak.espeak_Synchronize()
        if not self.found:
            raise UserError(f"espeak-ng says nothing for {phrase.text!r}")
        return np.concatenate(self.found).astype(np.float32) / 32768.0


if __name__ == "__main__":
    with report_errors():
        main()
