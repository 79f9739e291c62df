"""Whatever holds audio gives the samples that it holds; what holds none is refused by name."""

import io

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording

from tokenverse_pp.api.transcribing import decode_options
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import TranscribeOptions
from tokenverse_pp.data.audio.inputs import Refused, is_single, open_audio, open_or_refuse, several
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.tasks import build_tasks

TONE = (0.4 * np.sin(np.arange(8000) / 7)).astype(np.float32)


def samples_of(*arguments):
    return load_inputs(open_audio(*arguments).cut, convert=True).numpy()


def encoded(samples, rate=16000, **how):
    memory = io.BytesIO()
    soundfile.write(memory, samples, rate, **{"format": "WAV", "subtype": "FLOAT", **how})
    return memory.getvalue()


@pytest.mark.parametrize(
    "audio",
    [
        TONE,
        TONE.astype(np.float64),
        torch.from_numpy(TONE),
        (TONE, 16000),
        {"array": TONE, "sampling_rate": 16000},
        {"array": list(map(float, TONE)), "sampling_rate": 16000, "path": "x/call.wav"},
        encoded(TONE),
        bytearray(encoded(TONE)),
        io.BytesIO(encoded(TONE)),
        np.stack([TONE, TONE]),
        np.stack([TONE + 0.1, TONE - 0.1], axis=1),
        np.repeat(TONE[None], 6, axis=0),
        Recording.from_bytes(encoded(TONE), "call"),
        Recording.from_bytes(encoded(TONE), "call").to_cut(),
    ],
    ids=lambda audio: type(audio).__name__,
)
def test_the_samples_are_those(audio):
    assert is_single(audio)
    np.testing.assert_allclose(samples_of(audio), TONE, atol=1e-6)


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 2**15), (np.int32, 2**31)])
def test_whole_numbers_are_scaled(dtype, scale):
    np.testing.assert_allclose(samples_of((TONE.astype(np.float64) * scale).astype(dtype)), TONE, atol=2**-14)


def test_bytes_are_scaled():
    np.testing.assert_allclose(samples_of(np.uint8(TONE * 127 + 128)), TONE, atol=0.02)


def test_other_rates_are_resampled():
    slow = np.sin(2 * np.pi * 200 * np.arange(8000) / 8000).astype(np.float32)
    found = samples_of(slow, 8000)
    expected = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=0.01)


@pytest.mark.parametrize("rate", [0, -8000, "fast"])
def test_rates_that_are_none(rate):
    for audio, given in ((TONE, rate), ({"array": TONE, "sampling_rate": rate}, None)):
        with pytest.raises(UserError, match=f"expected a sample rate in Hz, got {rate!r}"):
            open_audio(audio, given)


def test_names_of_files_and_cuts(tmp_path):
    soundfile.write(tmp_path / "call.one.wav", TONE, 16000)
    found = open_audio(str(tmp_path / "call.one.wav"))
    assert (found.name, found.label) == ("call.one", str(tmp_path / "call.one.wav"))
    assert open_audio(Recording.from_bytes(encoded(TONE), "r1").to_cut().with_id("c1")).name == "c1"
    assert open_audio({"array": TONE, "path": "x/call.wav", "sampling_rate": 16000}).name == "call"


BAD_SAMPLES = {
    "holds no samples": np.zeros(0, np.float32),
    "NaN": np.array([0.0, np.nan], np.float32),
    "infinity": np.array([np.inf] * 9),
    "divide by 32768": TONE * 20000,
    "got bool of shape": np.zeros(9, bool),
    r"float32 of shape \(2, 3, 4\)": np.zeros((2, 3, 4), np.float32),
    r"shape \(100, 200\)": np.zeros((100, 200), np.float32),
    "expected a sample rate in Hz, got 0.5": (TONE, 0.5),
    "expected 'array' and 'sampling_rate', found sound": {"sound": TONE},
    "got int": 5,
    "the file is empty": b"",
    "no audio": b"not audio at all" * 9,
}


@pytest.mark.parametrize("said", BAD_SAMPLES)
def test_samples_that_are_none(said):
    with pytest.raises(UserError, match=said) as caught:
        open_audio(BAD_SAMPLES[said])
    assert "\n" not in str(caught.value)
    assert isinstance(open_or_refuse(BAD_SAMPLES[said]), Refused)


def test_files_that_are_none(tmp_path):
    for path, reason in ((tmp_path / "gone.wav", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=f"{path}: {reason}") as caught:
            open_audio(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("audio", [5, None, 1.5])
def test_what_is_neither_one_nor_several(audio):
    assert not is_single(audio)
    with pytest.raises(UserError, match="expected a file, samples"):
        several(audio)


def test_tasks_and_languages_may_have_commas_as_on_the_command_line():
    known = build_tasks(["scd", "ner", "lid"], {"lid": {"languages": ["fr", "nl"]}})
    given = decode_options(TranscribeOptions(tasks="asr, lid", language="fr,nl"), known)
    assert given == decode_options(TranscribeOptions(tasks=["asr", "lid"], language=("fr", "nl")), known)
    assert given.tasks == ("asr", "lid") and given.search.languages == ("fr", "nl")
    assert decode_options(TranscribeOptions(), known).tasks == known.names
    for nothing in ("", " , ", [], ()):
        with pytest.raises(UserError, match="tasks: names no task; expected some, such as asr,lid, or asr alone"):
            decode_options(TranscribeOptions(tasks=nothing), known)
        with pytest.raises(UserError, match="language: names no language"):
            decode_options(TranscribeOptions(language=nothing), known)
    with pytest.raises(UserError, match="tasks: task 'sdc': this model knows asr"):
        decode_options(TranscribeOptions(tasks="asr,sdc"), known)
