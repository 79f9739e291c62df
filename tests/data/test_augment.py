"""data.augment: what each change does to the sound, what it keeps, and that a resumed run hears the same."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet
from safetensors.torch import load_file
from toy_runs import assert_one_line, call, call_ok, read_cuts, toy_options, toy_parts

from tokenverse_pp.base.config import AugmentConfig, DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.augment import COLOURS, ROOMS, T60, Augmentation, generated_noise, generated_rooms
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.samplers import SamplerState, TrainSampler, open_rounds, train_batches

EVERYTHING = AugmentConfig(
    speed=[0.9, 1.0, 1.1],
    rooms=["generated"],
    noise=["generated"],
    telephone_prob=0.3,
    volume_db=[-12.0, 3.0],
)
OPTIONS = {
    "data__augment__speed": [0.9, 1.0, 1.1],
    "data__augment__rooms": ["generated"],
    "data__augment__noise": ["generated"],
    "data__augment__telephone_prob": 0.3,
    "data__augment__volume_db": [-12, 3],
}


@pytest.fixture(scope="module")
def cuts(tiny_corpus):
    return read_cuts(tiny_corpus)


@pytest.fixture(scope="module")
def everything():
    return Augmentation(EVERYTHING, seed=1)


def power(samples):
    return float((samples.double() ** 2).mean())


def test_nothing_is_changed_by_default(cuts):
    off = Augmentation(AugmentConfig(), seed=1)
    assert not off.config.enabled
    assert off.change_speed(cuts[0], 0) is cuts[0] and torch.equal(off.load(cuts[0], 0), load_inputs(cuts[0]))


@settings(max_examples=10)
@given(number=st.integers(0, 15), epoch=st.integers(0, 3))
def test_changes_depend_on_seed_epoch_and_cut_alone(cuts, everything, number, epoch):
    cut = cuts[number]
    changed = everything.change_speed(cut, epoch)
    assert changed.id == cut.id and labelled_tasks(changed) == labelled_tasks(cut)
    assert [s.text for s in changed.supervisions] == [s.text for s in cut.supervisions]
    speed = cut.duration / changed.duration
    assert min(abs(speed - factor) for factor in EVERYTHING.speed) < 2e-3
    for old, new in zip(cut.supervisions, changed.supervisions):
        assert new.start == pytest.approx(old.start / speed, abs=2e-3) and new.end <= changed.duration + 1e-3
    samples = everything.load(changed, epoch)
    assert len(samples) == changed.num_samples and bool(torch.isfinite(samples).all())
    again = Augmentation(EVERYTHING, seed=1)
    assert torch.equal(again.load(again.change_speed(cut, epoch), epoch), samples)
    others = [(Augmentation(EVERYTHING, seed=2), epoch), (everything, epoch + 1)]
    assert any(not torch.equal(other.load(changed, e), samples) for other, e in others)


@settings(max_examples=10)
@given(snr=st.floats(-10, 40), epoch=st.integers(0, 99))
def test_noise_has_the_ratio_that_was_drawn(cuts, snr, epoch):
    config = AugmentConfig(noise=["generated"], noise_prob=1, noise_snr=[snr, snr])
    clean = load_inputs(cuts[0])
    noise = Augmentation(config, epoch).load(cuts[0], epoch) - clean
    assert 10 * np.log10(power(clean) / power(noise)) == pytest.approx(snr, abs=0.1)


def test_short_noise_of_the_user_sounds_once_and_has_no_words(cuts, tmp_path):
    CutSet.from_cuts([cuts[1].truncate(duration=0.5)]).to_file(tmp_path / "noise.jsonl")
    config = AugmentConfig(noise=[str(tmp_path / "noise.jsonl")], noise_prob=1, noise_snr=[0, 0])
    augmentation = Augmentation(config, 1)
    noise = augmentation.load(cuts[0], 0) - load_inputs(cuts[0])
    (heard,) = noise.abs().gt(1e-5).nonzero(as_tuple=True)
    assert len(noise) == cuts[0].num_samples and 0 < int(heard.max() - heard.min()) <= 8000
    assert augmentation.noise[0].supervisions == []


def test_telephone_takes_away_what_is_above_4_khz(cuts):
    loud = Augmentation(AugmentConfig(noise=["generated"], noise_prob=1, noise_snr=[0, 0]), 1)
    narrow = Augmentation(dataclasses.replace(loud.config, telephone_prob=1), 1)
    spectra = [np.abs(np.fft.rfft(a.load(cuts[0], 0).numpy())) ** 2 for a in (loud, narrow)]
    hertz = np.fft.rfftfreq(cuts[0].num_samples, 1 / 16000)
    high, low = hertz > 5000, (hertz > 300) & (hertz < 3000)
    assert spectra[1][high].sum() < 0.01 * spectra[0][high].sum()
    assert spectra[1][low].sum() == pytest.approx(spectra[0][low].sum(), rel=0.05)


def test_volume_is_within_the_range(cuts):
    quiet = Augmentation(AugmentConfig(volume_db=[-12.0, -6.0]), 1)
    clean = power(load_inputs(cuts[0]))
    gains = [10 * np.log10(power(quiet.load(cuts[0], epoch)) / clean) for epoch in range(8)]
    assert -12 <= min(gains) < max(gains) <= -6


def test_rooms_keep_length_and_power(cuts):
    room = Augmentation(AugmentConfig(rooms=["generated"], room_prob=1), 1)
    clean, changed = load_inputs(cuts[0]), room.load(cuts[0], 0)
    assert len(changed) == len(clean) and not torch.allclose(changed, clean, atol=1e-3)
    assert power(changed) == pytest.approx(power(clean), rel=0.01)
    responses = [cut.load_audio()[0] for cut in generated_rooms()]
    assert len(responses) == ROOMS and {int(response.argmax()) for response in responses} == {0}
    assert all(T60[0] <= len(response) / 16000 <= T60[1] for response in responses)


def test_power_of_generated_noise_falls_with_frequency():
    for cut, exponent in zip(generated_noise(), COLOURS.values()):
        noise = cut.load_audio()[0]
        spectrum, hertz = np.abs(np.fft.rfft(noise)) ** 2, np.fft.rfftfreq(len(noise), 1 / 16000)
        low, high = (spectrum[(hertz >= f) & (hertz < 2 * f)].mean() for f in (200, 3200))
        assert low / high == pytest.approx(16**exponent, rel=0.05)


@pytest.mark.filterwarnings("ignore:You are using")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same_after_a_resume_and_in_workers(tiny_corpus, everything, workers):
    parts = toy_parts(tiny_corpus)
    config = DataConfig([f"{tiny_corpus}/cuts_train.jsonl.gz"], max_duration=16.0, num_buckets=2, num_workers=workers)
    parts.dataset.augment = everything.load

    def batches(start):
        sampler = TrainSampler(open_rounds(config, 1), config, 1, DistributedContext(), change=everything.change_speed)
        return list(train_batches(sampler, parts.dataset, config, start))

    whole = batches(SamplerState(1))
    assert len(whole) > 3
    rest = batches(whole[1][0])
    assert [place for place, _ in rest] == [place for place, _ in whole[2:]]
    for (_, again), (_, first) in zip(rest, whole[2:]):
        assert again["cut_ids"] == first["cut_ids"] and again["durations"] == first["durations"]
        assert torch.equal(again["inputs"], first["inputs"]) and torch.equal(again["tokens"], first["tokens"])
    # Limits hold for the durations that are heard.
    assert all(b["inputs"].shape[1] == round(16000 * max(b["durations"])) for _, b in whole)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(train_script, tiny_corpus, tmp_path):
    changes = {**OPTIONS, "data__valid": [], "training__max_steps": 4, "training__save_every": 2, "data__max_cuts": 4}
    call_ok(train_script.main, *toy_options(tiny_corpus, tmp_path / "a", **changes))
    start = tmp_path / "a" / "checkpoints" / "step-00000002"
    call_ok(train_script.main, *toy_options(tiny_corpus, tmp_path / "b", **changes, training__resume=start))
    ours, theirs = (load_file(tmp_path / name / "checkpoints" / "step-00000004" / "model.safetensors") for name in "ba")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


WRONG = {
    "stored features": ({"data__stored_features": "true", "model__encoder__kind": "frozen"}, ["--data.augment"]),
    "speed": ({"data__augment__speed": [0.1]}, ["--data.augment.speed", "0.5 to 2"]),
    "ratio": ({"data__augment__noise_snr": [20, 5]}, ["--data.augment.noise_snr", "lowest"]),
    "gain": ({"data__augment__volume_db": [3]}, ["--data.augment.volume_db"]),
    "no noise": ({"data__augment__noise": ["/no/such"]}, ["--data.augment.noise", "/no/such", "no such file"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_one_line(train_script, tiny_corpus, tmp_path, name):
    changes, said = WRONG[name]
    failure = call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", **{**OPTIONS, **changes}))
    assert_one_line(failure, *said)
    assert not (tmp_path / "exp").exists()


def test_rooms_and_noise_are_at_16_khz(cuts, tmp_path):
    CutSet.from_cuts([cuts[0].resample(8000)]).to_file(tmp_path / "cuts.jsonl")
    for option in ("rooms", "noise"):
        with pytest.raises(UserError, match=rf"--data.augment.{option}: .*expected 16000 Hz, found 8000"):
            Augmentation(AugmentConfig(**{option: [str(tmp_path / "cuts.jsonl")]}), 1)
