"""Augmentation of the audio of training cuts (``data.augment``) with lhotse's transforms.

The changes of a cut depend only on the seed, the epoch and the cut (`draw_id`): they are the same for any number of
ranks and workers, and after a resume. The speed is changed before the sampler sees the cut, since batches are made by
duration. The other changes are made when the audio is loaded.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache
from typing import Callable, List

import numpy as np
import torch
from lhotse.augmentation import get_or_create_resampler
from lhotse.cut import Cut

from tokenverse_pp.base.config import AugmentConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio.inputs import cut_of_samples
from tokenverse_pp.data.dataset import SAMPLING_RATE, check_recording, draw_id, load_inputs
from tokenverse_pp.data.samplers import load_cuts

GENERATED = "generated"  # given in place of a manifest
COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # e: power is proportional to frequency ** -e
NOISE_SECONDS = 60
ROOMS = 40
T60 = (0.2, 0.8)  # reverberation time of generated rooms: seconds until the sound falls by 60 dB
DIRECT = (-3.0, 12.0)  # direct-to-reverberant ratio in dB
TELEPHONE = 8000  # Hz


class Augmentation:
    """Augments cuts (raises UserError naming the option and the manifest or cut that cannot be used).

    Args:
        config: the changes, made in the order of its fields.
        seed: for all random draws.
    """

    def __init__(self, config: AugmentConfig, seed: int):
        self.config = config
        self.seed = seed
        self.rooms = [cut.recording for cut in _sounds(config.rooms, "rooms", generated_rooms)]
        self.noise = _sounds(config.noise, "noise", generated_noise)

    def change_speed(self, cut: Cut, epoch: int) -> Cut:
        """Return the cut at a randomly drawn speed, with its new duration and the same id."""
        speed = self._draws("speed", cut, epoch).choice(self.config.speed) if self.config.speed else 1.0
        return cut if speed == 1.0 else cut.perturb_speed(speed, affix_id=False)

    def load(self, cut: Cut, epoch: int) -> torch.Tensor:
        """Return the audio (S,) of a cut with all changes but the speed; raises UserError as `load_inputs` does."""
        c, rng, length = self.config, self._draws("sound", cut, epoch), cut.num_samples
        if self.rooms and rng.random() < c.room_prob:
            cut = cut.reverb_rir(rng.choice(self.rooms), affix_id=False)
        if self.noise and rng.random() < c.noise_prob:
            noise = rng.choice(self.noise)
            spare = cut.duration - noise.duration
            if spare < 0:
                noise = noise.truncate(offset=rng.uniform(0, -spare), duration=cut.duration)
            at = rng.uniform(0, max(0.0, spare))
            cut = cut.mix(noise, offset_other_by=at, snr=rng.uniform(*c.noise_snr), preserve_id="left")
        samples = load_inputs(cut)[:length]  # the noise may end a sample later
        if rng.random() < c.telephone_prob:  # not by `Cut.resample`, which needs torchaudio or scipy
            low = get_or_create_resampler(SAMPLING_RATE, TELEPHONE)(samples[None])
            samples = get_or_create_resampler(TELEPHONE, SAMPLING_RATE)(low)[0, :length]
        return samples * 10 ** (rng.uniform(*c.volume_db) / 20) if c.volume_db else samples

    def _draws(self, what: str, cut: Cut, epoch: int) -> random.Random:
        return random.Random(hashlib.sha256(f"{what}/{self.seed}/{epoch}/{draw_id(cut)}".encode()).digest())


def _sounds(paths: List[str], option: str, generate: Callable[[], List[Cut]]) -> List[Cut]:
    """The cuts of manifests, without their supervisions; raises UserError."""
    found: List[Cut] = []
    for path in paths:
        if path == GENERATED:
            found += generate()
            continue
        for cut in load_cuts([path], f"data.augment.{option}"):
            try:
                check_recording(cut)
            except UserError as error:
                raise UserError(f"--data.augment.{option}: {path}: {error}") from None
            if option == "rooms" and not hasattr(cut, "recording"):
                raise UserError(f"--data.augment.rooms: {path}: cut {cut.id}: expected one recording, found a mix")
            found.append(cut.drop_supervisions())
    return found


@cache
def generated_noise() -> List[Cut]:
    """A minute each of white, pink and brown noise: spectral density proportional to f ** -exponent above 20 Hz."""
    size, found = NOISE_SECONDS * SAMPLING_RATE, []
    for name, exponent in COLOURS.items():
        spectrum = np.fft.rfft(np.random.default_rng(int(exponent)).standard_normal(size))
        spectrum *= np.maximum(np.fft.rfftfreq(size, 1 / SAMPLING_RATE), 20.0) ** (-exponent / 2)
        samples = np.fft.irfft(spectrum, size)
        found.append(cut_of_samples(samples / np.abs(samples).max(), SAMPLING_RATE, name))
    return found


@cache
def generated_rooms() -> List[Cut]:
    """Room impulse responses by Polack's model: the direct sound, then noise that decays exponentially."""
    found = []
    for number in range(ROOMS):
        rng = np.random.default_rng(number)
        t60 = rng.uniform(*T60)
        times = np.arange(int(t60 * SAMPLING_RATE)) / SAMPLING_RATE
        tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / t60)
        tail[: int(0.002 * SAMPLING_RATE)] = 0.0  # no reflection arrives earlier
        tail *= np.sqrt(10 ** (-rng.uniform(*DIRECT) / 10) / np.sum(tail**2))
        tail[0] = 1.0
        found.append(cut_of_samples(tail / np.abs(tail).max(), SAMPLING_RATE, f"room{number}"))
    return found
