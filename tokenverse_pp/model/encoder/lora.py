"""Low-rank adapters (LoRA, Hu et al. 2021) on the attention projections of a pretrained encoder, through peft."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.encoder.base import Backbone

# Names in transformers' wav2vec2, HuBERT (`attention`) and Whisper (`self_attn`) layers.
PROJECTIONS = r".*layers\.({})\.(attention|self_attn)\.(q_proj|k_proj|v_proj|out_proj)"


def add_lora(backbone: Backbone, rank: int, alpha: float, dropout: float, first: int = 0) -> None:
    """Freeze a backbone and put adapters beside its attention projections; at first they change nothing.

    ``first``: the number of the lowest layer, counted from 0, that takes adapters.

    Raises:
        UserError: without peft, or for WavLM, whose attention uses the weights of its projections directly.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("--model.encoder.lora_rank: needs peft: pip install 'tokenverse_pp[lora]'") from None
    if type(backbone).__name__ == "WavLMBackbone":
        raise UserError("--model.encoder.lora_rank: WavLM's attention takes no adapters; use wav2vec2 or HuBERT models")
    backbone.requires_grad_(False)
    numbers = "|".join(str(number) for number in range(first, len(backbone.layers)))
    options: Any = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": PROJECTIONS.format(numbers),
    }
    inject_adapter_in_model(LoraConfig(**options), backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_lora(backbone: nn.Module) -> None:
    """Add the adapters to the weights beside them and take them out: a plain encoder with the same output."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in backbone.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, module.get_base_layer())
