import pytest
import torch
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor

from tokenverse_pp.models.encoders import EncoderConfig, build_encoder
from tokenverse_pp.models.encoders.wav2vec2 import Wav2Vec2Backbone, normalise_audio, time_major_convolution

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
MODELS = [(family, style) for family in ("wav2vec2", "hubert", "wavlm") for style in ("layer", "group")]


@pytest.fixture(params=MODELS, ids="-".join)
def folder(request, wav2vec2_folder):
    return wav2vec2_folder(*request.param)


def test_single_utterance_equals_transformers(folder, batch):
    encoder = build_encoder(EncoderConfig(folder)).eval()
    model = AutoModel.from_pretrained(folder).eval()
    audio = batch[0][:1]
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    values = extractor(audio[0].numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = model(values).last_hidden_state
        output, lens = encoder(audio, torch.tensor([4000]))
    assert lens.tolist() == [expected.shape[1]]
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_features_are_kept_and_gradients_are_those_of_single_utterances(folder, batch):
    encoder = build_encoder(EncoderConfig(folder)).eval()
    features, lens = encoder.extract(*batch)
    features = torch.randn_like(features).requires_grad_(True)  # rubbish on padded frames too
    before = features.detach().clone()
    encoder.contextualise(features, lens)[0].square().sum().backward()
    torch.testing.assert_close(features.detach(), before, atol=0, rtol=0)
    for row in range(3):
        one = before[row : row + 1, : lens[row]].clone().requires_grad_(True)
        encoder.contextualise(one, lens[row : row + 1])[0].square().sum().backward()
        torch.testing.assert_close(features.grad[row, : lens[row]], one.grad[0], atol=1e-3, rtol=1e-3)
        assert features.grad[row, lens[row] :].abs().sum() == 0


def test_spec_augment_and_layerdrop_do_not_act(wav2vec2_folder, batch):
    """Training mode equals eval mode with every dropout at zero, although the checkpoint asks for both."""
    quiet = dict.fromkeys(["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"], 0.0)
    for family in ("wav2vec2", "hubert", "wavlm"):
        changes = dict(quiet, layerdrop=0.9, apply_spec_augment=True, mask_time_prob=0.9, mask_time_length=2)
        encoder = build_encoder(EncoderConfig(wav2vec2_folder(family, mask_feature_prob=0.5, **changes)))
        assert encoder.training and encoder.backbone.encoder.training
        trained = encoder.train()(*batch)[0]
        torch.testing.assert_close(trained, encoder.eval()(*batch)[0])


@pytest.mark.parametrize("freeze_layers", [0, 2, -1])
def test_freezing(wav2vec2_folder, batch, freeze_layers):
    encoder = build_encoder(EncoderConfig(wav2vec2_folder("wav2vec2"), freeze_layers=freeze_layers))
    trainable = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert not any("convolutions" in name for name in trainable)
    assert any("projection" in name for name in trainable)
    layers = {name.split("layers.")[1][0] for name in trainable if "encoder.layers." in name}
    assert layers == {0: {"0", "1", "2"}, 2: {"2"}, -1: set()}[freeze_layers]
    if freeze_layers == -1:
        assert not any(name.startswith("backbone.encoder.") for name in trainable)
    encoder(*batch)[0].sum().backward()  # gradients pass through frozen layers to the seam
    assert encoder.backbone.projection.projection.weight.grad is not None


def test_unfrozen_convolutions_are_trained(wav2vec2_folder, batch):
    encoder = build_encoder(EncoderConfig(wav2vec2_folder("hubert", "group"), freeze_feature_encoder=False))
    encoder(*batch)[0].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.backbone.convolutions.parameters())


def test_stacking_doubles_the_width(wav2vec2_folder, batch):
    folder = wav2vec2_folder("wav2vec2")
    plain = build_encoder(EncoderConfig(folder)).eval()
    stacked = build_encoder(EncoderConfig(folder, stack=2)).eval()
    x, lens = plain(*batch)
    y, y_lens = stacked(*batch)
    assert stacked.output_dim == 2 * plain.output_dim == y.shape[2]
    assert stacked.output_frame_shift == 2 * stacked.frame_shift
    assert y_lens.tolist() == stacked.output_lens(lens).tolist() == [(n + 1) // 2 for n in lens.tolist()]
    for row, n in enumerate(lens.tolist()):
        torch.testing.assert_close(y[row].reshape(-1, 16)[:n], x[row, :n], atol=0, rtol=0)


def test_normalise_audio_is_do_normalize(batch):
    audio, lens = batch
    ours = normalise_audio(audio, lens)
    arrays = [audio[row, :n].numpy() for row, n in enumerate(lens.tolist())]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True, padding_value=0.0)
    theirs = extractor(arrays, sampling_rate=16000, padding=True, return_tensors="pt").input_values
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_preprocessor_config_decides_about_normalisation(wav2vec2_folder, batch):
    folder = wav2vec2_folder("wavlm")
    assert build_encoder(EncoderConfig(folder)).backbone.normalise
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    assert not build_encoder(EncoderConfig(folder)).backbone.normalise
    assert build_encoder(EncoderConfig(folder, normalise_audio=True)).backbone.normalise


@pytest.mark.skipif(torch.__version__ < "2", reason="torch 1.13 has no LayerNorm for autocast on CPU")
def test_convolutions_get_no_frames_in_bfloat16_that_they_do_not_use(folder, batch):
    """oneDNN's gradient of their weights is NaN now and then where they do (`devices.without_unused_frames`)."""
    backbone = build_encoder(EncoderConfig(folder)).backbone
    unused = []
    for layer in backbone.convolutions:
        layer.conv.register_forward_pre_hook(
            lambda conv, inputs: unused.append((inputs[0].shape[2] - conv.kernel_size[0]) % conv.stride[0])
        )
    audio, lens = batch[0][:, :3997], batch[1].clamp(max=3997)
    with torch.no_grad():
        exact = backbone.embed(audio, lens)
    assert any(unused)
    unused.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone.embed(audio, lens)
    assert len(unused) == 3 and not any(unused)
    assert found.shape == exact.shape


@pytest.mark.parametrize(
    "kernel, stride, channels", [(10, 5, 1), (3, 2, 8), (2, 2, 8), (4, 3, 5), (5, 1, 3), (1, 2, 4)]
)
def test_convolution_by_matrix_products(kernel, stride, channels):
    for bias in (True, False):
        conv = torch.nn.Conv1d(channels, 6, kernel, stride, bias=bias)
        for length in (kernel, kernel + 1, 47):
            x = torch.randn(2, channels, length)
            found = time_major_convolution(conv, x.transpose(1, 2), torch.float32).transpose(1, 2)
            torch.testing.assert_close(found, conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dtype, tolerance",
    [
        (torch.float32, 1e-5),
        pytest.param(
            *(torch.bfloat16, 0.03),
            marks=pytest.mark.skipif(torch.__version__ < "2", reason="torch 1.13 has no LayerNorm for autocast on CPU"),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_convolutions_time_first_are_those_of_transformers(norm, dtype, tolerance):
    config = Wav2Vec2Config(
        conv_dim=(16, 16, 24), conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2), conv_bias=norm == "layer",
        feat_extract_norm=norm, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    backbone = Wav2Vec2Backbone(AutoModel.from_config(config))
    first = int(norm == "group")  # which stays as it is
    x = torch.randn(2, 16 if first else 1, 900)
    expected = x
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for layer in backbone.convolutions[first:]:
            expected = layer(expected)
        found = backbone._convolve_time_major(x.transpose(1, 2), first)
    assert found.dtype == dtype and found.is_contiguous()
    error = (found.transpose(1, 2).float() - expected.float()).norm() / expected.float().norm()
    assert error < tolerance
