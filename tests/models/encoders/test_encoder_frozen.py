import pytest
import torch
from torch.nn.functional import layer_norm
from transformers import AutoModel

from tokenverse_pp.models.encoders import EncoderConfig, build_encoder

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
SMALL = dict(kind="frozen", context_dim=16, context_heads=2, context_ffn=24, context_kernel=5, context_layers=2)


@pytest.fixture(params=["whisper", "wav2vec2", "hubert", "wavlm"])
def folder(request, wav2vec2_folder, whisper_folder):
    return whisper_folder if request.param == "whisper" else wav2vec2_folder(request.param)


@pytest.mark.parametrize("stack", [1, 2])
def test_padded_batch_equals_single_utterances(folder, batch, stack):
    encoder = build_encoder(EncoderConfig(folder, layers=[1, -1], stack=stack, **SMALL)).eval()
    audio, lens = batch
    features, feature_lens = encoder.extract(audio, lens)
    rubbish = torch.arange(features.shape[1]).unsqueeze(0) >= feature_lens.unsqueeze(1)
    output, output_lens = encoder.contextualise(features + 5.0 * rubbish.unsqueeze(-1), feature_lens)
    assert features.shape[2] == encoder.feature_dim == 32
    assert output.shape[2] == encoder.output_dim == 16
    for row in range(3):
        one, one_lens = encoder.extract(audio[row : row + 1, : lens[row]], lens[row : row + 1])
        torch.testing.assert_close(features[row, : one_lens[0]], one[0], atol=2e-5, rtol=1e-4)
        assert features[row, one_lens[0] :].abs().sum() == 0
        out, out_lens = encoder.contextualise(one, one_lens)
        assert out_lens == output_lens[row] == out.shape[1] == -(-int(one_lens) // stack)
        torch.testing.assert_close(output[row, : out_lens[0]], out[0], atol=2e-5, rtol=1e-4)
        assert output[row, out_lens[0] :].abs().sum() == 0


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_layers_are_the_hidden_states_of_transformers(wav2vec2_folder, batch, family):
    for style in ("layer", "group"):
        folder = wav2vec2_folder(family, style)
        encoder = build_encoder(EncoderConfig(folder, layers=[0, 2, -1], normalise_audio=False, **SMALL))
        states = AutoModel.from_pretrained(folder).eval()(batch[0][:1], output_hidden_states=True)
        features = encoder.extract(batch[0][:1], torch.tensor([4000]))[0]
        expected = [states.hidden_states[0], states.hidden_states[2], states.last_hidden_state]
        expected = torch.cat([layer_norm(x, x.shape[-1:]) for x in expected], dim=-1)
        torch.testing.assert_close(features, expected.detach(), atol=2e-5, rtol=1e-4)


def test_layers_above_the_highest_wanted_one_do_not_run(folder, batch):
    encoder = build_encoder(EncoderConfig(folder, layers=[1], **SMALL))
    calls = []
    for number, layer in enumerate(encoder.backbone.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    encoder.extract(*batch)
    assert calls == [1]


def test_first_half_never_trains(folder, batch):
    encoder = build_encoder(EncoderConfig(folder, **SMALL))
    assert encoder.training and encoder.context.training
    assert not any(module.training for module in encoder.train().backbone.modules())
    first, second = encoder.extract(*batch)[0], encoder.extract(*batch)[0]
    assert torch.equal(first, second) and not first.requires_grad
    encoder(*batch)[0].square().sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in encoder.backbone.parameters())
    assert all(p.grad is not None for p in encoder.context.parameters())


def test_frozen_prefixes_cover_exactly_the_pretrained_weights(folder):
    encoder = build_encoder(EncoderConfig(folder, **SMALL))
    kept = {key for key in encoder.state_dict() if not key.startswith(encoder.frozen_prefixes())}
    assert kept == {f"context.{key}" for key in encoder.context.state_dict()}
    assert build_encoder(EncoderConfig(folder)).frozen_prefixes() == ()


def test_lengths_need_no_run(folder, batch):
    encoder = build_encoder(EncoderConfig(folder, stack=2, **SMALL))
    features, feature_lens = encoder.extract(*batch)
    assert encoder.feature_lens(batch[1]).tolist() == feature_lens.tolist()
    assert features.shape[1] == feature_lens.max()
    assert encoder.output_lens(feature_lens).tolist() == encoder.contextualise(features, feature_lens)[1].tolist()


@pytest.mark.skipif(torch.__version__ < "2", reason="torch 1.13 has no LayerNorm for autocast on CPU")
def test_bfloat16_autocast_runs_and_is_near(folder, batch):
    encoder = build_encoder(EncoderConfig(folder, **SMALL)).eval()
    expected = encoder(*batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        features, lens = encoder.extract(*batch)
        output = encoder.contextualise(features, lens)[0]
    assert features.dtype == torch.float32  # what is stored always has one type
    assert (output.float() - expected).norm() < 0.1 * expected.norm()
