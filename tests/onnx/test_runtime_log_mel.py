"""Log-mel in NumPy beside the one that the model was trained with."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenverse_pp.models.encoders.whisper import LogMel as TorchLogMel
from tokenverse_pp.onnx.inputs import NumpyLogMel

REFERENCE = TorchLogMel(80)
OURS = NumpyLogMel(REFERENCE.filters.numpy(), REFERENCE.n_fft, REFERENCE.hop)
# The floor of the range is 80 dB below the loudest, where torch's float32 has few digits left.
CLOSE = 1e-4


def both(audio):
    expected, lens = REFERENCE(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    return OURS(audio), expected[0, :, : int(lens)].numpy()


@settings(max_examples=30)
@given(st.integers(1, 40000), st.integers(0, 99), st.floats(1e-4, 1.0))
@example(1, 0, 0.1)
@example(160, 0, 0.1)
@example(161, 0, 0.1)
@example(200, 0, 0.1)
def test_noise_of_any_length(size, seed, level):
    found, expected = both((level * np.random.default_rng(seed).standard_normal(size)).astype(np.float32))
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=CLOSE)


@pytest.mark.parametrize("size", [479700, 479999, 480000])
def test_up_to_thirty_seconds(size):
    time = np.arange(size) / 16000
    audio = (0.3 * np.sin(2 * np.pi * 440 * time) * np.exp(-time / 9)).astype(np.float32)
    np.testing.assert_allclose(*both(audio), atol=CLOSE)


def test_silence():
    found, expected = both(np.zeros(5000, dtype=np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-6)
