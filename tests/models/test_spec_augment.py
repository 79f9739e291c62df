"""SpecAugment: only in training, within the valid frames, and about as much as it says."""

import pytest
import torch

from tokenverse_pp.base.config import SpecAugmentConfig
from tokenverse_pp.models.transducer import SpecAugment


def masked(config, lens, frames, channels=64, seed=0):
    """Where ones became zeros, (N, T, F)."""
    torch.manual_seed(seed)
    return SpecAugment(config)(torch.ones(len(lens), frames, channels), torch.tensor(lens)) == 0


def test_nothing_in_eval_mode_or_without_shares():
    x = torch.randn(2, 50, 8)
    assert SpecAugment(SpecAugmentConfig()).eval()(x, torch.tensor([50, 20])) is x
    assert not masked(SpecAugmentConfig(time_share=0.0, channel_share=0.0), [50, 20], 50).any()


def test_input_is_not_changed_in_place():
    x = torch.ones(2, 200, 64)
    torch.manual_seed(0)
    out = SpecAugment(SpecAugmentConfig())(x, torch.tensor([200, 100]))
    assert (out == 0).any() and (x == 1).all()


def test_time_spans_cover_about_their_share_and_whole_frames():
    config = SpecAugmentConfig(time_share=0.2, time_span=10, channel_share=0.0)
    found = masked(config, [1000] * 40, 1000)
    frames = found.all(dim=2)
    assert torch.equal(frames, found.any(dim=2))
    # Spans overlap: 1 - exp(-0.2) = 0.18 of the frames.
    assert frames.float().mean() == pytest.approx(0.181, abs=0.015)
    assert len({tuple(row.tolist()) for row in frames}) == 40  # each utterance has masks of its own


def test_channel_spans_cover_about_their_share_and_whole_channels():
    config = SpecAugmentConfig(time_share=0.0, channel_share=0.1, channel_span=16)
    found = masked(config, [30] * 400, 30, channels=256)
    channels = found.all(dim=1)
    assert torch.equal(channels, found.any(dim=1))
    assert channels.float().mean() == pytest.approx(0.095, abs=0.015)


def test_short_utterances_are_masked_in_proportion_to_their_own_length():
    config = SpecAugmentConfig(time_share=0.2, time_span=10, channel_share=0.0)
    frames = masked(config, [1000, 50] * 200, 1000).all(dim=2)
    assert not frames[1::2, 50:].any()
    assert frames[1::2, :50].float().mean() == pytest.approx(0.18, abs=0.03)


def test_spans_longer_than_the_utterance_are_no_error():
    config = SpecAugmentConfig(time_share=0.9, time_span=100, channel_share=0.9, channel_span=500)
    assert masked(config, [3, 1, 0], 3, channels=4).shape == (3, 3, 4)


def test_same_seed_same_masks():
    config = SpecAugmentConfig()
    assert torch.equal(masked(config, [300, 200], 300, seed=3), masked(config, [300, 200], 300, seed=3))
    assert not torch.equal(masked(config, [300, 200], 300, seed=3), masked(config, [300, 200], 300, seed=4))
