"""The options of an encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Literal, Optional

from tokenverse_pp.errors import UserError


@dataclass
class EncoderConfig:
    """Which pretrained encoder to use, and how its two halves are made.

    Attributes:
        name: hub name or folder of a wav2vec2 (XLSR, XLS-R, MMS), HuBERT, WavLM or Whisper model.
        kind: ``finetune``: the halves are the pretrained encoder's own, convolutions + feature projection |
            transformer. ``frozen``: the first half is the whole pretrained encoder, not trained, whose output
            can be stored; the second is a small trainable context network. ``split``: the first half ends behind
            the layer ``split_layer`` and can be stored too; the second is the layers above, which are trained, and
            a context network.
        layers: ``frozen`` and ``split``: the hidden states that the context network sees. 0 is the input of the
            lowest layer, n the output of layer n (without the final norm), -1 the output of the highest after the
            final norm. Each goes through a LayerNorm without parameters, then they are concatenated. ``frozen``:
            these are the features at the seam; ``split``: none is below ``split_layer``, and only the layers up to
            the highest of them are trained (the final norm only with -1).
        split_layer: ``split`` only: the number of the hidden state at the seam.
        stack: frames joined into one, 1 or 2. ``frozen`` and ``split``: before the context network. ``finetune``:
            after the transformer, and nothing follows, so the output dimension doubles.
        normalise_audio: zero mean and unit variance of each utterance's samples before a wav2vec2-like model;
            by default what its ``preprocessor_config.json`` says (true where there is none). Whisper ignores
            it.
        freeze_feature_encoder: ``finetune``: do not train the convolutions.
        freeze_layers: ``finetune``: do not train the lowest n transformer layers and the position embedding
            below them; -1: nor the final norm, that is nothing of the transformer.
        random_init: random weights, only the sizes are from config.json (from-scratch training, toy models).
        gradient_checkpointing: compute the layers that are trained (the transformer's, or the context network's)
            again in the backward pass instead of keeping their activations, to save memory.
        lora_rank: ``finetune`` and ``split``: freeze the whole encoder and train adapters of this rank (LoRA, needs
            peft) on its (``split``: the upper layers') attention projections; 0: none. They are new weights and
            take ``optim.lr``.
        lora_alpha: the adapters' output is scaled by ``lora_alpha / lora_rank``.
        lora_dropout: dropout before the adapters.
        lora_feed_forward: adapters on the two matrices of each feed-forward part as well.
        context_layers: ``frozen`` and ``split`` only, as all below: number of conformer layers of the context network.
        context_dim: width of the context network, the encoder's output dimension.
        context_heads: attention heads; must divide ``context_dim`` into even sizes.
        context_ffn: inner width of each of the two feed-forward halves of a layer.
        context_kernel: frames seen by the depthwise convolution, odd.
        context_dropout: dropout after each part of a layer (none inside).
    """

    name: str = ""
    kind: Literal["finetune", "frozen", "split"] = "finetune"
    layers: List[int] = field(default_factory=lambda: [-1])
    split_layer: int = 0
    stack: int = 1
    normalise_audio: Optional[bool] = None
    freeze_feature_encoder: bool = True
    freeze_layers: int = 0
    random_init: bool = False
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_feed_forward: bool = False
    context_layers: int = 3
    context_dim: int = 256
    context_heads: int = 4
    context_ffn: int = 768
    context_kernel: int = 15
    context_dropout: float = 0.1

    def validate(self, num_layers: int) -> None:
        """Check the values that do not depend on weights, given the pretrained encoder's number of layers.

        Raises:
            UserError: names the option and what was expected.
        """
        if self.kind not in ("finetune", "frozen", "split"):
            raise UserError(f"encoder.kind: expected finetune, frozen or split, got {self.kind!r}")
        if self.stack not in (1, 2):
            raise UserError(f"encoder.stack: expected 1 or 2, got {self.stack}")
        if not -1 <= self.freeze_layers <= num_layers:
            raise UserError(f"encoder.freeze_layers: expected -1 to {num_layers}, got {self.freeze_layers}")
        if self.lora_rank < 0 or (self.lora_rank and self.kind == "frozen"):
            raise UserError(
                f"encoder.lora_rank: expected 0 or, with kind finetune or split, a rank; got {self.lora_rank}"
            )
        if self.kind == "split":
            self._validate_split(num_layers)
        if self.kind != "finetune":
            self._validate_context(num_layers)

    def _validate_split(self, num_layers: int) -> None:
        if not 0 <= self.split_layer < num_layers:
            raise UserError(f"encoder.split_layer: expected 0 to {num_layers - 1}, got {self.split_layer}")
        if any(layer != -1 and layer < self.split_layer for layer in self.layers):
            raise UserError(
                f"encoder.layers: expected -1 or numbers from split_layer={self.split_layer}, got {self.layers}"
            )

    def _validate_context(self, num_layers: int) -> None:
        if not self.layers or any(not -1 <= layer <= num_layers for layer in self.layers):
            raise UserError(f"encoder.layers: expected numbers from -1 to {num_layers}, got {self.layers}")
        for name in ("context_layers", "context_dim", "context_heads", "context_ffn", "context_kernel"):
            if getattr(self, name) < 1:
                raise UserError(f"encoder.{name}: expected at least 1, got {getattr(self, name)}")
        if self.context_dim % (2 * self.context_heads):
            raise UserError(
                f"encoder.context_dim: expected a multiple of 2 * context_heads = {2 * self.context_heads}, "
                f"got {self.context_dim}"
            )
        if self.context_kernel % 2 == 0:
            raise UserError(f"encoder.context_kernel: expected an odd number, got {self.context_kernel}")
