#!/usr/bin/env python3
"""Write copies of training cuts that are played faster or slower, louder or softer, and with noise.

\b
python recipes/human_speech/augment.py data/human_speech/cuts_train.jsonl.gz data/human_speech/augmented --copies 3

Made once before training, as in Kaldi's recipes, so that training reads plain files: resampling and mixing would take
longer than the steps of a small model on a GPU.
"""

from __future__ import annotations

import random
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import List

import click
import numpy as np
import soundfile
import torch
from lhotse import AudioSource, CutSet, Recording
from lhotse.cut import MonoCut
from lhotse.utils import fastcopy

from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.manifests import read_cuts, write_cuts

RATE = 16000  # Hz
SPEEDS = (0.9, 0.95, 1.0, 1.05, 1.1)
GAIN = (-12.0, 3.0)  # dB
NOISY = 0.5  # share of the cuts
SNR = (5.0, 25.0)  # dB
# The power of a noise falls with frequency to this power: white, pink and brown noise.
COLOURS = (0.0, 1.0, 2.0)
NOISE_SECONDS = 60


@cache
def noise_of(exponent: float) -> np.ndarray:
    """A minute of noise of unit power whose spectral density is proportional to f ** -exponent above 20 Hz."""
    size = NOISE_SECONDS * RATE
    spectrum = np.fft.rfft(np.random.default_rng(int(exponent)).standard_normal(size))
    spectrum *= np.maximum(np.fft.rfftfreq(size, 1 / RATE), 20.0) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, size).astype(np.float32)
    return noise / np.sqrt(np.mean(noise**2))


def with_noise(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Audio (S,) with noise of a random colour, at a random ratio to the power of the whole recording."""
    noise = noise_of(COLOURS[rng.integers(len(COLOURS))])
    start = rng.integers(len(noise))
    noise = np.take(noise, np.arange(start, start + len(audio)), mode="wrap")
    power = np.mean(audio**2) / 10 ** (rng.uniform(*SNR) / 10)
    return audio + np.float32(np.sqrt(power)) * noise


def write_copy(cut: MonoCut, number: int, folder: Path, seed: int) -> MonoCut:
    """Write the audio of copy ``number`` of a cut as 16-bit WAV; return the cut of that file."""
    torch.set_num_threads(1)  # one process a core
    rng = np.random.default_rng([seed, number, zlib.crc32(cut.id.encode())])
    speed = SPEEDS[rng.integers(len(SPEEDS))]
    changed = cut if speed == 1 else cut.perturb_speed(speed)
    audio = changed.load_audio()[0]
    if rng.random() < NOISY:
        audio = with_noise(audio, rng)
    audio = audio * 10 ** (rng.uniform(*GAIN) / 20)
    audio = audio * min(1.0, 0.999 / max(1e-9, float(np.abs(audio).max())))  # never clipped
    name = f"{cut.id}-copy{number}"
    path = folder / f"copy{number}" / f"{name}.wav"
    soundfile.write(path, audio, RATE, subtype="PCM_16")
    seconds = len(audio) / RATE
    source = AudioSource("file", [0], str(path.absolute()))
    recording = Recording(name, [source], RATE, len(audio), seconds)
    supervisions = [
        fastcopy(s, id=f"{s.id}-copy{number}", recording_id=name, duration=min(s.duration, seconds - s.start))
        for s in changed.supervisions
    ]
    return fastcopy(changed, id=name, start=0, duration=seconds, supervisions=supervisions, recording=recording)


def write_copies(cuts: List[MonoCut], folder: Path, copies: int, workers: int, seed: int) -> List[Path]:
    """Write ``copies`` of the cuts into a folder; return the manifests, whose cuts are in random order."""
    manifests = []
    with ProcessPoolExecutor(workers) as pool:
        for number in range(1, copies + 1):
            (folder / f"copy{number}").mkdir(parents=True, exist_ok=True)
            made = list(pool.map(write_copy, cuts, repeat(number), repeat(folder), repeat(seed), chunksize=32))
            random.Random(f"{seed}/{number}").shuffle(made)
            manifests.append(folder / f"cuts_train_copy{number}.jsonl.gz")
            write_cuts(CutSet.from_cuts(made), manifests[-1])
    return manifests


@click.command(help=__doc__)
@click.argument("cuts", type=click.Path(exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--copies", type=click.IntRange(min=1), default=3, show_default=True, help="Copies of each cut.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Processes that write files at the same time.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of all that is drawn.")
def main(cuts: str, folder: Path, copies: int, workers: int, seed: int) -> None:
    """Write the copies of the cuts in a manifest."""
    for path in write_copies(list(read_cuts(cuts)), folder, copies, workers, seed):
        click.echo(path)


if __name__ == "__main__":
    with report_errors():
        main()
