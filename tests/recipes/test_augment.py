"""recipes/human_speech/augment.py: what a copy of a cut keeps, and what it changes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.manifests import read_cuts

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "human_speech"


@pytest.fixture(scope="module")
def augment():
    sys.path.insert(0, str(FOLDER))
    try:
        import augment
    finally:
        sys.path.remove(str(FOLDER))
    return augment


def test_copies_keep_words_and_labels_and_change_the_sound(augment, tiny_corpus, tmp_path):
    cuts = list(read_cuts(tiny_corpus / "cuts_train.jsonl.gz"))[:6]
    manifests = augment.write_copies(cuts, tmp_path, copies=2, workers=1, seed=3)
    copies = [list(read_cuts(path)) for path in manifests]
    assert [len(copy) for copy in copies] == [6, 6]
    assert len({cut.id for copy in copies for cut in copy} | {cut.id for cut in cuts}) == 18
    for number, copy in enumerate(copies, start=1):
        found = {cut.id: cut for cut in copy}
        for cut in cuts:
            new = found[f"{cut.id}-copy{number}"]
            assert [s.text for s in new.supervisions] == [s.text for s in cut.supervisions]
            assert labelled_tasks(new) == labelled_tasks(cut)
            speed = cut.duration / new.duration
            assert min(abs(speed - known) for known in augment.SPEEDS) < 2e-3
            for old, changed in zip(cut.supervisions, new.supervisions):
                assert changed.start == pytest.approx(old.start / speed, abs=2e-3)
                assert changed.end <= new.duration + 1e-6
            audio = new.load_audio()[0]
            assert len(audio) == new.recording.num_samples and 0 < np.abs(audio).max() <= 1
            assert len(audio) != cut.num_samples or not np.allclose(audio, cut.load_audio()[0], atol=1e-3)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_power_of_noise_falls_with_frequency(augment, exponent):
    noise = augment.noise_of(exponent)
    assert np.mean(noise**2) == pytest.approx(1, rel=1e-4)
    power = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(len(noise), 1 / augment.RATE)
    low, high = (power[(hertz >= f) & (hertz < 2 * f)].mean() for f in (200, 3200))
    assert low / high == pytest.approx(16**exponent, rel=0.05)


def test_noise_is_within_the_ratios(augment):
    rng = np.random.default_rng(0)
    audio = np.sin(np.arange(20000) / 7).astype(np.float32)
    for _ in range(20):
        noise = augment.with_noise(audio, rng) - audio
        ratio = 10 * np.log10(np.mean(audio**2) / np.mean(noise**2))
        # A second of a minute of brown noise may be louder or softer than all of it.
        assert augment.SNR[0] - 12 < ratio < augment.SNR[1] + 12
