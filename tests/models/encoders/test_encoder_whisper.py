import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor, WhisperModel

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders import EncoderConfig, build_encoder
from tokenverse_pp.models.encoders.whisper import LogMel

LOG_MEL = LogMel(80)
EXTRACTOR = WhisperFeatureExtractor(feature_size=80)


def speechlike(samples, seed):
    """Bursts of a tone over faint noise, with a loud click as the last sample of every second seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    audio = 0.3 * np.sin(2 * np.pi * 300 * t) * (np.sin(9 * t + seed) > 0) + 1e-3 * rng.standard_normal(samples)
    audio[-1] = 1.0 if seed % 2 else audio[-1]
    return torch.from_numpy(audio.astype(np.float32))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 40000), min_size=1, max_size=3), st.integers(0, 99))
def test_log_mel_equals_the_extractor_on_valid_frames(lens, seed):
    audio = torch.randn(len(lens), max(lens))  # rubbish after the end
    for row, n in enumerate(lens):
        audio[row, :n] = speechlike(n, seed + row)
    mel, mel_lens = LOG_MEL(audio, torch.tensor(lens))
    for row, n in enumerate(lens):
        expected = EXTRACTOR(audio[row, :n].numpy(), sampling_rate=16000, return_tensors="pt").input_features[0]
        frames = -(-n // 160)
        assert mel_lens[row] == frames
        torch.testing.assert_close(mel[row, :, :frames], expected[:, :frames], atol=2e-4, rtol=0)
        assert mel[row, :, frames:].abs().sum() == 0


@pytest.mark.parametrize("samples", [479700, 479999, 480000])
def test_log_mel_near_and_at_30_seconds(samples):
    audio = speechlike(samples, 1)
    mel, lens = LOG_MEL(audio.unsqueeze(0), torch.tensor([samples]))
    expected = EXTRACTOR(audio.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    torch.testing.assert_close(mel, expected[:, :, : int(lens)], atol=2e-4, rtol=0)


def test_30_seconds_equal_transformers(whisper_folder):
    encoder = build_encoder(EncoderConfig(whisper_folder)).eval()
    reference = WhisperModel.from_pretrained(whisper_folder).eval().encoder
    audio = speechlike(480000, 0)
    mel = EXTRACTOR(audio.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        output, lens = encoder(audio.unsqueeze(0), torch.tensor([480000]))
        torch.testing.assert_close(output, reference(mel).last_hidden_state, atol=2e-4, rtol=1e-3)
    assert lens.tolist() == [1500]


def test_layerdrop_does_not_act(whisper_folder, batch):
    encoder = build_encoder(EncoderConfig(whisper_folder))  # encoder_layerdrop is 0.9
    torch.testing.assert_close(encoder.train()(*batch)[0], encoder.eval()(*batch)[0])


def test_longer_than_30_seconds_is_refused(whisper_folder):
    encoder = build_encoder(EncoderConfig(whisper_folder))
    with pytest.raises(UserError, match=r"30\.\d+ s.*30 s at most"):
        encoder.extract(torch.zeros(1, 480200), torch.tensor([480200]))


def test_freezing(whisper_folder, batch):
    encoder = build_encoder(EncoderConfig(whisper_folder, freeze_layers=2))
    encoder(*batch)[0].square().sum().backward()
    with_gradient = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert all("encoder.layers.2." in n or "encoder.layer_norm" in n for n in with_gradient)
