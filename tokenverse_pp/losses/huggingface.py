"""The exact loss for the RNN-T models of Hugging Face transformers (Parakeet), in place of torchaudio's.

Call `use_rnnt_loss(model)` before training::

    model = ParakeetForRNNT.from_pretrained("nvidia/parakeet-rnnt-0.6b")
    use_rnnt_loss(model)               # the loss and the joint: the logits (B, T, U + 1, V) are never held
    use_rnnt_loss(model, joint=False)  # the loss alone

The reductions are those of `transformers.loss.loss_rnnt`.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Union

import torch
from torch import Tensor, nn

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses.exact import rnnt_loss, rnnt_loss_joiner

REDUCTIONS = ("mean_volume", "mean_batch", "mean", "sum", "none")


class JointInputs(NamedTuple):
    """The inputs of the joint, in place of its logits."""

    am: Tensor  # (B, T, J)
    lm: Tensor  # (B, U + 1, J)
    head: nn.Module
    activation: str


class DeferredLogits:
    """Placeholder for the logits (B, T, U + 1, V) between the joint and the loss, which computes them in chunks.

    It supports what a model's ``forward`` applies to logits: ``squeeze`` of an axis that is longer than 1, and cutting
    off frames that no utterance has.
    """

    def __init__(self, inputs: JointInputs):
        self.inputs = inputs

    def squeeze(self, axis: int) -> DeferredLogits:
        """Return self: no axis of a training batch is squeezed."""
        return self

    def __getitem__(self, index: Any) -> DeferredLogits:
        am = self.inputs.am[index]
        return DeferredLogits(self.inputs._replace(am=am))


class _Joint(nn.Module):
    """A joint that defers its logits in training and computes them otherwise, for generation."""

    def __init__(self, joint: Any, activation: str):
        super().__init__()
        self.head: nn.Linear = joint.head
        self.activation: Callable[[Tensor], Tensor] = joint.activation
        self.vocab_size = joint.vocab_size
        self.name = activation

    def forward(self, decoder_hidden_states: Tensor, encoder_hidden_states: Tensor) -> Union[Tensor, DeferredLogits]:
        """Logits (B, T, U + 1, V) of (B, 1, U + 1, J) and (B, T, 1, J); deferred if gradients are enabled."""
        training = torch.is_grad_enabled() and decoder_hidden_states.dim() == 4 and decoder_hidden_states.shape[2] > 1
        if training:
            am, lm = encoder_hidden_states.squeeze(2), decoder_hidden_states.squeeze(1)
            return DeferredLogits(JointInputs(am, lm, self.head, self.name))
        return self.head(self.activation(encoder_hidden_states + decoder_hidden_states))


def _reduce(losses: Tensor, lengths: Tensor, reduction: str) -> Tensor:
    lengths = lengths.to(losses.device, losses.dtype)
    if reduction == "mean_volume":
        return losses.sum() / lengths.sum()
    if reduction == "mean":
        return (losses / lengths).mean()
    if reduction == "mean_batch":
        return losses.mean()
    return losses.sum() if reduction == "sum" else losses


def loss_function(
    logits: Union[Tensor, DeferredLogits],
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    blank_token_id: int,
    reduction: str = "mean_volume",
    **_: Any,
) -> Tensor:
    """The loss of transformers' ``ParakeetForRNNTLoss``, by `rnnt_loss` or `rnnt_loss_joiner`.

    Raises:
      UserError: the reduction is unknown.
    """
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction should be one of {', '.join(REDUCTIONS)}, given {reduction!r}")
    lengths = (labels, logit_lengths, label_lengths)
    if isinstance(logits, DeferredLogits):
        am, lm, head, activation = logits.inputs
        losses = rnnt_loss_joiner(am, lm, head, *lengths, blank_token_id, "none", activation)
    else:
        losses = rnnt_loss(logits, *lengths, blank_token_id, reduction="none")
    return _reduce(losses, label_lengths, reduction)


def use_rnnt_loss(model: nn.Module, joint: bool = True) -> nn.Module:
    """Make a transformers RNN-T model train with the exact loss of this package; return the model.

    Args:
      model: a model with `joint` and `loss_function`, such as `ParakeetForRNNT`.
      joint: also replace the joint, so that training never holds the logits. Its parameters keep their names, and
        generation does not change. In training, the output's ``logits`` are then a `DeferredLogits`.

    Raises:
      UserError: the model has no such joint, or its activation is not relu or tanh.
    """
    if joint:
        found: Any = getattr(model, "joint", None)
        if not isinstance(getattr(found, "head", None), nn.Linear) or not hasattr(found, "activation"):
            raise UserError(f"{type(model).__name__} has no joint of an activation and a linear head; use joint=False")
        kind = _activation(found.activation)
        model.joint = _Joint(found, kind)
    model.loss_function = loss_function  # type: ignore[assignment]  # a property of transformers' models
    return model


def _activation(module: Callable[[Tensor], Tensor]) -> str:
    probe = torch.tensor([-1.0, 0.5, 2.0])
    for name, function in (("relu", torch.relu), ("tanh", torch.tanh)):
        if torch.equal(module(probe), function(probe)):
            return name
    raise UserError("the joint's activation should be relu or tanh; use joint=False")
