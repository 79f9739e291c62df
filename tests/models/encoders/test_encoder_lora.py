"""Adapters: nothing at first, only they are trained, and merged they give the same."""

import pytest
import torch

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders import EncoderConfig, build_encoder
from tokenverse_pp.models.encoders.kinds import merge_lora

pytest.importorskip("peft")


def build(folder, **changes):
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(str(folder), lora_rank=2, lora_alpha=4.0, **changes)).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3000, generator=generator), torch.tensor([3000, 2000])


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_adapters_change_nothing_at_first_are_all_that_learns_and_can_be_merged(wav2vec2_folder, batch, family):
    folder = wav2vec2_folder(family)
    plain = build_encoder(EncoderConfig(str(folder))).eval()
    adapted = build(folder)
    torch.testing.assert_close(adapted(*batch)[0], plain(*batch)[0])
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 3 * 4 * 2 and all("lora_" in name for name in trained)  # layers, projections, A and B
    adapted(*batch)[0].square().sum().backward()
    assert all(p.grad is not None for p in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        moved = adapted(*batch)[0]
        assert not torch.allclose(moved, plain(*batch)[0], atol=1e-2)
        merge_lora(adapted.backbone)
        torch.testing.assert_close(adapted(*batch)[0], moved, atol=1e-4, rtol=1e-4)
    assert set(adapted.state_dict()) == set(plain.state_dict())


def test_wavlm_and_frozen_encoders_are_refused(wav2vec2_folder):
    with pytest.raises(UserError, match="WavLM"):
        build(wav2vec2_folder("wavlm"))
    with pytest.raises(UserError, match=r"encoder\.lora_rank"):
        build(wav2vec2_folder("wav2vec2"), kind="frozen")
