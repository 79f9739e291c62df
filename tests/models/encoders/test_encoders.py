"""Every kind of encoder on every family: padding, lengths, bfloat16, gradients, and which half is trained."""

import pytest
import torch
from encoder_families import assert_padding_changes_nothing, assert_same_gradients, gradients, move_and_merge
from torch.nn.functional import layer_norm
from transformers import AutoModel

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders import EncoderConfig, build_encoder
from tokenverse_pp.models.encoders.kinds import merge_lora

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
CONTEXT = dict(context_dim=16, context_heads=2, context_ffn=24, context_kernel=5)
KINDS = {
    "finetune": dict(),
    "frozen": dict(kind="frozen", layers=[1, -1], context_layers=2, **CONTEXT),
    "split": dict(kind="split", split_layer=1, layers=[1, -1], stack=2, **CONTEXT),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("folder", ["whisper", "wav2vec2", "hubert", "wavlm"], indirect=True)
ALL = ["whisper", *(f"{name}-{style}" for name in ("wav2vec2", "hubert", "wavlm") for style in ("layer", "group"))]
each_model = pytest.mark.parametrize("folder", ALL, indirect=True)


@pytest.fixture
def folder(request, wav2vec2_folder, whisper_folder):
    return whisper_folder if request.param == "whisper" else wav2vec2_folder(*request.param.split("-"))


def build(folder, kind, **changes):
    return build_encoder(EncoderConfig(folder, **{**KINDS[kind], **changes}))


@each_model
@pytest.mark.parametrize("kind, stack", [("finetune", 1), ("frozen", 1), ("frozen", 2), ("split", 2)])
def test_padded_batch_equals_single_utterances(folder, batch, kind, stack):
    encoder = build(folder, kind, stack=stack).eval()
    assert encoder.feature_dim == (32 if kind == "frozen" else 16) and encoder.output_dim == 16
    for frames, outputs in assert_padding_changes_nothing(encoder, *batch, atol=2e-5, rtol=1e-4):
        assert outputs == -(-frames // stack)


@pytest.mark.skipif(torch.__version__ < "2", reason="torch 1.13 has no LayerNorm for autocast on CPU")
@each_model
@pytest.mark.parametrize("kind", ["finetune", "frozen"])
def test_bfloat16_autocast_runs_and_is_near(folder, batch, kind):
    encoder = build(folder, kind).eval()
    expected = encoder(*batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        features, lens = encoder.extract(*batch)
        output = encoder.contextualise(features, lens)[0]
    assert kind == "finetune" or features.dtype == torch.float32  # what is stored always has one type
    assert (output.float() - expected).norm() < 0.1 * expected.norm()


@each_model
@pytest.mark.parametrize("kind", ["finetune", "split"])
def test_gradient_checkpointing_changes_nothing_and_no_parameter_is_unused(folder, batch, kind):
    """Or DDP would stop at an unused one."""
    grads, changes = [], {"context_dropout": 0.0} if kind == "split" else {}
    depth = {"finetune": 3, "split": 5}[kind]  # split: two layers and three of the context network
    recomputing = [{"checkpoint_layers": count} for count in (1, depth - 1, depth + 9)]
    for options in ({}, {"gradient_checkpointing": True}, *recomputing):
        torch.manual_seed(0)
        encoder = build(folder, kind, **options, **changes)
        count = min(depth, options.get("checkpoint_layers", depth if options else 0))
        assert encoder.trained_depth == depth and sum(s.recomputed for s, _ in encoder.layer_stacks()) == count
        torch.manual_seed(0)
        encoder(*batch)[0].square().sum().backward()
        grads.append(gradients(encoder))
    for found in grads[1:]:
        assert_same_gradients(found, grads[0], atol=1e-4)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_layers_are_the_hidden_states_of_transformers(wav2vec2_folder, batch, family):
    for style in ("layer", "group"):
        folder = wav2vec2_folder(family, style)
        encoder = build(folder, "frozen", layers=[0, 2, -1], normalise_audio=False)
        states = AutoModel.from_pretrained(folder).eval()(batch[0][:1], output_hidden_states=True)
        features = encoder.extract(batch[0][:1], torch.tensor([4000]))[0]
        expected = [states.hidden_states[0], states.hidden_states[2], states.last_hidden_state]
        expected = torch.cat([layer_norm(x, x.shape[-1:]) for x in expected], dim=-1)
        torch.testing.assert_close(features, expected.detach(), atol=2e-5, rtol=1e-4)


@each_family
def test_layers_above_the_highest_wanted_one_do_not_run(folder, batch):
    encoder, calls = build(folder, "frozen", layers=[1]), []
    for number, layer in enumerate(encoder.backbone.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    encoder.extract(*batch)
    assert calls == [1]


@each_family
@pytest.mark.parametrize("kind", ["frozen", "split"])
def test_the_frozen_half_never_trains_and_is_not_saved(folder, batch, kind):
    encoder = build(folder, kind).train()
    lower = encoder.backbone if kind == "frozen" else encoder.backbone.layers[0]
    assert not any(module.training for module in lower.modules()) and encoder.context.training
    assert encoder.backbone.layers[1].training == (kind == "split")
    first, second = encoder.extract(*batch)[0], encoder.extract(*batch)[0]
    assert torch.equal(first, second) and not first.requires_grad
    encoder(*batch)[0].square().sum().backward()
    moved = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert moved == {key for key in encoder.state_dict() if not key.startswith(encoder.frozen_prefixes())}
    layers = {name.split(".")[3] for name in moved if name.startswith("backbone.encoder.layers.")}
    assert layers == ({"1", "2"} if kind == "split" else set())
    assert build(folder, "finetune").frozen_prefixes() == ()


@each_family
def test_split_is_the_frozen_kind_until_it_is_trained(folder, batch):
    frozen, encoder = (build(folder, kind, stack=2, context_layers=1).eval() for kind in ("frozen", "split"))
    encoder.context.load_state_dict(frozen.context.state_dict())
    torch.testing.assert_close(encoder(*batch)[0], frozen(*batch)[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes, option", [({"split_layer": 3}, "split_layer"), ({"split_layer": 2, "layers": [1, -1]}, "layers")]
)
def test_wrong_options_of_split_are_named(whisper_folder, changes, option):
    with pytest.raises(UserError, match=rf"encoder\.{option}"):
        build(whisper_folder, "split", **changes)


@pytest.mark.parametrize("folder", ["wav2vec2", "hubert"], indirect=True)
def test_adapters_change_nothing_at_first_are_all_that_learns_and_can_be_merged(folder, batch):
    pytest.importorskip("peft")
    plain, adapted = (build(folder, "finetune", lora_rank=rank, lora_alpha=4.0).eval() for rank in (0, 2))
    torch.testing.assert_close(adapted(*batch)[0], plain(*batch)[0])
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 3 * 4 * 2 and all("lora_" in name for name in trained)  # layers, projections, A and B
    adapted(*batch)[0].square().sum().backward()
    assert all(p.grad is not None for p in trained.values())
    moved = move_and_merge(adapted, trained.values(), batch, tolerance=1e-4)
    assert not torch.allclose(moved, plain(*batch)[0], atol=1e-2)
    assert set(adapted.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("all_matrices", [False, True])
@pytest.mark.parametrize("folder", ["whisper", "hubert"], indirect=True)
def test_adapters_lie_above_the_seam_and_merge_into_what_is_saved(folder, all_matrices, batch):
    pytest.importorskip("peft")
    encoder = build(folder, "split", lora_rank=2, lora_feed_forward=all_matrices).eval()
    kept = {key for key in encoder.state_dict() if not key.startswith(encoder.frozen_prefixes())}
    adapters = {key for key in kept if key.startswith("backbone.")}
    assert len(adapters) == 2 * (6 if all_matrices else 4) * 2
    assert all("lora_" in key and ".layers.0." not in key for key in adapters)
    with torch.no_grad():
        for key, value in encoder.state_dict().items():
            if "lora_" in key:
                value.normal_(generator=torch.Generator().manual_seed(len(key)), std=0.1)
    expected = encoder(*batch)[0]
    merge_lora(encoder.backbone)
    torch.testing.assert_close(encoder(*batch)[0], expected, atol=2e-5, rtol=1e-4)
    again = build(folder, "split").eval()  # the merged weights are all in the state dict
    saved = {k: v for k, v in encoder.state_dict().items() if not k.startswith(encoder.frozen_prefixes())}
    again.load_state_dict(saved, strict=False)
    torch.testing.assert_close(again(*batch)[0], expected, atol=2e-5, rtol=1e-4)


def test_wavlm_and_frozen_encoders_take_no_adapters(wav2vec2_folder):
    pytest.importorskip("peft")
    for family, kind, said in (("wavlm", "finetune", "WavLM"), ("wav2vec2", "frozen", r"encoder\.lora_rank")):
        with pytest.raises(UserError, match=said):
            build(wav2vec2_folder(family), kind, lora_rank=2)
