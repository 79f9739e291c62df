"""The exact loss against the textbook, in both forms, and in transformers' Parakeet."""

from __future__ import annotations

import pytest
import torch
from cases import cases, make_case
from hypothesis import given, settings
from textbook import log_softmax, transducer_loss
from torch.nn.functional import relu

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses import native, rnnt_loss, rnnt_loss_joiner
from tokenverse_pp.losses.devices import triton_problem, use_kernels

KERNELS = ["torch"] if triton_problem(torch.device("cpu")) else ["torch", "triton"]


def problem(seed=1, batch=2, frames=5, symbols=3, vocab=6):
    """Logits (B, T, U + 1, V) of a joiner, its inputs and the lengths; blank is the last id."""
    case = make_case(seed, batch, frames, symbols, vocab=vocab, scale=0.7)
    targets = case.symbols - 1
    lengths = (case.boundary[:, 3].int(), case.boundary[:, 2].int())
    return case, targets, lengths


def logits_of(case, activation=torch.tanh):
    return activation(case.am.unsqueeze(2) + case.lm.unsqueeze(1)) @ case.weight.t() + case.bias


def expected_losses(logits, targets, lengths):
    return [
        transducer_loss(logits[b, :t, : u + 1].detach().numpy(), targets[b].numpy(), logits.shape[3] - 1)
        for b, (t, u) in enumerate(zip(*(x.tolist() for x in lengths)))
    ]


@settings(max_examples=40, deadline=None)
@given(cases())
def test_loss_of_logits_is_the_textbook_loss(case):
    targets, lengths = case.symbols - 1, (case.boundary[:, 3], case.boundary[:, 2])
    logits = logits_of(case)
    loss = rnnt_loss(logits, targets, *lengths, reduction="none")
    assert loss.tolist() == pytest.approx(expected_losses(logits, targets, lengths), abs=1e-9)


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_joiner_without_logits_has_the_same_loss_and_gradients(which, activation):
    case, targets, lengths = problem()
    inputs = [x.clone().requires_grad_() for x in (case.am, case.lm, case.weight, case.bias)]
    layer = torch.nn.Module()
    am, lm, layer.weight, layer.bias = inputs
    logits = {"tanh": torch.tanh, "relu": relu}[activation](am.unsqueeze(2) + lm.unsqueeze(1)) @ inputs[2].t() + inputs[
        3
    ]
    expected = rnnt_loss(logits, targets, *lengths, reduction="sum")
    expected_grads = torch.autograd.grad(expected, inputs)
    with use_kernels(which):
        loss = rnnt_loss_joiner(am, lm, layer, targets, *lengths, reduction="sum", activation=activation)
    assert loss.item() == pytest.approx(sum(expected_losses(logits, targets, lengths)), abs=1e-9)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), expected_grads):
        assert torch.allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("which", KERNELS)
def test_log_probabilities_clamping_and_reductions(which):
    case, targets, lengths = problem(2)
    logits = logits_of(case).requires_grad_()
    expected = torch.tensor(expected_losses(logits, targets, lengths), dtype=torch.float64)
    with use_kernels(which):
        given_probs = torch.from_numpy(log_softmax(logits.detach().numpy()))
        loss = rnnt_loss(given_probs, targets, *lengths, reduction="none", fused_log_softmax=False)
        assert torch.allclose(loss, expected)
        mean = rnnt_loss(logits, targets, *lengths, clamp=0.01)
    assert mean.item() == pytest.approx(expected.mean().item())
    with pytest.raises(ValueError, match="reduction"):
        rnnt_loss(logits, targets, *lengths, clamp=0.01, reduction="median")


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("fused", [True, False])
def test_each_utterances_gradient_is_clamped_before_it_is_scaled(which, fused):
    """As in torchaudio's kernel, whose result is then multiplied by the gradient of each loss."""
    case, targets, (frames, symbols) = problem(2, batch=3, frames=3, symbols=2)
    logits = logits_of(case).requires_grad_()
    rows = []
    for b in range(3):
        row = logits[b : b + 1].detach().requires_grad_()
        loss = rnnt_loss(row, targets[b : b + 1], frames[b : b + 1], symbols[b : b + 1], fused_log_softmax=fused)
        rows.append(torch.autograd.grad(loss, row)[0])
    free = torch.cat(rows)
    assert free.abs().amax((1, 2, 3)).min() > 0.1
    clamped = free.clamp(-0.1, 0.1)
    cases = [("none", [5e4, 0.0, -3.0], [5e4, 0.0, -3.0])]
    if which == "torch":  # the kernels know no reductions
        cases += [("mean", [300.0], [100.0, 100.0, 100.0]), ("sum", [0.1], [0.1, 0.1, 0.1])]
    for reduction, scales, each in cases:
        with use_kernels(which):
            options = {"clamp": 0.1, "reduction": reduction, "fused_log_softmax": fused}
            loss = (rnnt_loss(logits, targets, frames, symbols, **options) * torch.tensor(scales)).sum()
            times = (1, 2) if which == "torch" else (1,)  # the graph may be used more than once
            for number in times:
                (found,) = torch.autograd.grad(number * loss, logits, retain_graph=True)
                assert torch.allclose(found, clamped * number * torch.tensor(each).view(-1, 1, 1, 1), atol=1e-9)


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("padding", [-100, -1, 10**6])
def test_padding_may_be_any_id(which, padding):
    case, targets, (frames, lengths) = problem(4)
    lengths[1] = 1
    padded = targets.masked_fill(torch.arange(3) >= lengths[:, None], padding)
    with use_kernels(which):
        for loss in (
            lambda ids: rnnt_loss(logits_of(case), ids, frames, lengths),
            lambda ids: rnnt_loss_joiner(case.am, case.lm, case.linear(), ids, frames, lengths),
        ):
            assert loss(padded).item() == pytest.approx(loss(targets).item(), abs=1e-12)


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("form", ["logits", "joiner"])
def test_padding_may_be_nan(which, form):
    """Frames and positions past the end of an utterance have no part in its loss and no gradient, as in torchaudio."""
    case, targets, (frames, symbols) = problem(4, frames=3, symbols=2, vocab=4)
    frames[1], symbols[1] = 2, 1
    clean = [case.am, case.lm] if form == "joiner" else [logits_of(case)]
    padded = [x.clone() for x in clean]
    padded[0][1, 2:] = padded[-1][1, ..., 2:, :] = float("nan")

    def gradients(inputs):
        inputs, layer = [x.detach().requires_grad_() for x in inputs], case.linear()
        if form == "joiner":
            loss = rnnt_loss_joiner(*inputs, layer, targets, frames, symbols, reduction="sum")
            inputs += [layer.weight, layer.bias]
        else:
            loss = rnnt_loss(*inputs, targets, frames, symbols, reduction="sum")
        return torch.autograd.grad(loss, inputs)

    with use_kernels(which):
        found = gradients(padded)
    for ours, wanted in zip(found, gradients(clean)):
        assert torch.allclose(ours, wanted, atol=1e-12)


@pytest.mark.parametrize("which", KERNELS)
def test_a_second_derivative_is_refused(which):
    """It would lack the part of the lattice, and so be wrong."""
    case, targets, lengths = problem(batch=1, frames=2, symbols=1)
    logits, am = logits_of(case).requires_grad_(), case.am.clone().requires_grad_()
    layer = case.linear()
    with use_kernels(which):
        losses = [
            (rnnt_loss(logits, targets, *lengths, reduction="sum"), logits),
            (rnnt_loss_joiner(am, case.lm, layer, targets, *lengths, reduction="sum"), am),
            (native.rnnt_loss_simple(case.lm_simple, case.am_simple + am.sum(), case.symbols, 0, reduction="sum"), am),
        ]
        for loss, x in losses:
            with pytest.raises(RuntimeError, match="second derivative"):
                torch.autograd.grad(loss, x, create_graph=True)


def test_arguments_that_do_not_fit_are_named():
    case, targets, lengths = problem(3)
    with pytest.raises(ValueError, match=r"need targets \(2, 3\)"):
        rnnt_loss(logits_of(case), targets[:, 1:], *lengths)
    with pytest.raises(ValueError, match="tanh or relu"):
        rnnt_loss_joiner(case.am, case.lm, case.linear(), targets, *lengths, activation="silu")


@pytest.fixture(scope="module")
def parakeet():
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "ParakeetForRNNT"):
        pytest.skip("this transformers has no ParakeetForRNNT")
    torch.manual_seed(0)
    encoder = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "subsampling_conv_channels": 8, "num_mel_bins": 16, "conv_kernel_size": 3,
    }  # fmt: skip
    config = transformers.ParakeetRNNTConfig(
        encoder_config=encoder, vocab_size=9, blank_token_id=8, pad_token_id=8, decoder_hidden_size=12,
        num_decoder_layers=1,
    )  # fmt: skip
    return transformers.ParakeetForRNNT(config).train()


@pytest.mark.parametrize("joint", [False, True])
def test_parakeet_trains_with_it(parakeet, joint):
    """The loss of transformers' own forward is the textbook's of its own logits, and so are the gradients."""
    from copy import deepcopy

    from tokenverse_pp.losses.huggingface import DeferredLogits, use_rnnt_loss

    model = deepcopy(parakeet).eval()  # no dropout
    features = torch.randn(2, 96, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[1, 2, 3], [4, 5, 8]])
    inputs = {"input_features": features, "decoder_input_ids": torch.nn.functional.pad(labels, (1, 0), value=8)}
    inputs["attention_mask"] = torch.ones(2, 96, dtype=torch.bool)
    logits = model(**inputs).logits
    lengths = (torch.full((2,), logits.shape[1]), torch.tensor([3, 2]))
    expected = sum(expected_losses(logits.double(), labels, lengths)) / 5
    rnnt_loss(logits, labels, *lengths, blank=8, reduction="sum").div(5).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert use_rnnt_loss(model, joint) is model
    output = model(**inputs, labels=labels)
    assert isinstance(output.logits, DeferredLogits) == joint
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    output.loss.backward()
    assert grads and set(grads) == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        if name in grads:
            assert torch.allclose(p.grad, grads[name], atol=1e-5), name
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, logits, atol=1e-6)


def test_models_it_does_not_fit_are_refused(parakeet):
    from copy import deepcopy

    from tokenverse_pp.losses.huggingface import loss_function, use_rnnt_loss

    with pytest.raises(UserError, match="Linear has no joint"):
        use_rnnt_loss(torch.nn.Linear(2, 2))
    model = deepcopy(parakeet)
    model.joint.activation = torch.nn.SiLU()
    with pytest.raises(UserError, match="relu or tanh"):
        use_rnnt_loss(model)
    with pytest.raises(UserError, match="mean_volume"):
        loss_function(torch.zeros(1, 1, 1, 2), torch.zeros(1, 0), torch.ones(1), torch.zeros(1), 0, reduction="median")
