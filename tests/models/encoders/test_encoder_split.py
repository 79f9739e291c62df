import pytest
import torch

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders import EncoderConfig, build_encoder
from tokenverse_pp.models.encoders.kinds import merge_lora

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
SMALL = dict(layers=[1, -1], stack=2, context_dim=16, context_heads=2, context_ffn=24, context_kernel=5)


@pytest.fixture(params=["whisper", "wav2vec2", "hubert", "wavlm"])
def folder(request, wav2vec2_folder, whisper_folder):
    return whisper_folder if request.param == "whisper" else wav2vec2_folder(request.param)


def split(folder, **changes):
    return build_encoder(EncoderConfig(folder, kind="split", split_layer=1, **{**SMALL, **changes}))


def test_is_the_frozen_kind_until_it_is_trained(folder, batch):
    frozen = build_encoder(EncoderConfig(folder, kind="frozen", **SMALL)).eval()
    encoder = split(folder).eval()
    encoder.context.load_state_dict(frozen.context.state_dict())
    features, lens = encoder.extract(*batch)
    assert features.shape[2] == encoder.feature_dim == 16  # one hidden state, not two
    torch.testing.assert_close(encoder.contextualise(features, lens)[0], frozen(*batch)[0], atol=2e-5, rtol=1e-4)


def test_padded_batch_equals_single_utterances(folder, batch):
    encoder = split(folder).eval()
    audio, lens = batch
    features, feature_lens = encoder.extract(audio, lens)
    rubbish = torch.arange(features.shape[1]).unsqueeze(0) >= feature_lens.unsqueeze(1)
    output, output_lens = encoder.contextualise(features + 5.0 * rubbish.unsqueeze(-1), feature_lens)
    for row in range(3):
        one, one_lens = encoder(audio[row : row + 1, : lens[row]], lens[row : row + 1])
        assert one_lens[0] == output_lens[row]
        torch.testing.assert_close(output[row, : one_lens[0]], one[0], atol=2e-5, rtol=1e-4)


def test_the_layers_above_the_seam_are_trained_and_saved_and_no_others(folder, batch):
    encoder = split(folder)
    encoder(*batch)[0].square().sum().backward()
    moved = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    layer = {f"backbone.encoder.layers.{n}" for n in (1, 2)}
    assert layer == {name[: len("backbone.encoder.layers.1")] for name in moved if ".layers." in name} - {
        name[: len("backbone.encoder.layers.1")] for name in moved if name.startswith("context.")
    }
    kept = {key for key in encoder.state_dict() if not key.startswith(encoder.frozen_prefixes())}
    assert moved == kept


def test_the_frozen_half_gives_the_same_in_training(folder, batch):
    encoder = split(folder).train()
    first, second = encoder.extract(*batch)[0], encoder.extract(*batch)[0]
    assert torch.equal(first, second) and not first.requires_grad
    lower = encoder.backbone.layers[0]
    assert not any(module.training for module in lower.modules())
    assert encoder.backbone.layers[1].training and encoder.context.training


@pytest.mark.parametrize("all_matrices", [False, True])
@pytest.mark.parametrize("family", ["whisper", "hubert"])
def test_adapters_lie_above_the_seam_and_merge_into_what_is_saved(
    family, all_matrices, wav2vec2_folder, whisper_folder, batch
):
    pytest.importorskip("peft")
    folder = whisper_folder if family == "whisper" else wav2vec2_folder(family)
    encoder = split(folder, lora_rank=2, lora_feed_forward=all_matrices).eval()
    kept = {key for key in encoder.state_dict() if not key.startswith(encoder.frozen_prefixes())}
    adapters = {key for key in kept if key.startswith("backbone.")}
    assert len(adapters) == 2 * (6 if all_matrices else 4) * 2 and all(
        "lora_" in key and ".layers.0." not in key for key in adapters
    )
    with torch.no_grad():
        for key, value in encoder.state_dict().items():
            if "lora_" in key:
                value.normal_(generator=torch.Generator().manual_seed(len(key)), std=0.1)
    expected = encoder(*batch)[0]
    merge_lora(encoder.backbone)
    torch.testing.assert_close(encoder(*batch)[0], expected, atol=2e-5, rtol=1e-4)
    again = split(folder).eval()  # the merged weights are all in the state dict
    kept = {k: v for k, v in encoder.state_dict().items() if not k.startswith(encoder.frozen_prefixes())}
    again.load_state_dict(kept, strict=False)
    torch.testing.assert_close(again(*batch)[0], expected, atol=2e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing(whisper_folder, batch):
    plain, saving = (split(whisper_folder, gradient_checkpointing=on, context_dropout=0.0) for on in (False, True))
    saving.load_state_dict(plain.state_dict())
    for encoder in (plain, saving):
        encoder(*batch)[0].square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    "changes, option", [({"split_layer": 3}, "split_layer"), ({"split_layer": 2, "layers": [1, -1]}, "layers")]
)
def test_wrong_options_are_named(whisper_folder, changes, option):
    with pytest.raises(UserError, match=rf"encoder\.{option}"):
        build_encoder(EncoderConfig(whisper_folder, kind="split", **{**SMALL, **changes}))
