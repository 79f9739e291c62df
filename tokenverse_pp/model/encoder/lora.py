"""Low-rank adapters (LoRA, Hu et al. 2021) on the matrices of a pretrained encoder's layers, through peft."""

from __future__ import annotations

from typing import Any, Optional

from torch import nn

from tokenverse_pp.errors import UserError, one_line
from tokenverse_pp.model.encoder.base import Backbone
from tokenverse_pp.model.encoder.config import EncoderConfig

# Names in transformers' wav2vec2, HuBERT (`attention`, `feed_forward`) and Whisper (`self_attn`, `fc1`, `fc2`) layers.
PROJECTIONS = r".*layers\.({})\.(attention|self_attn)\.(q_proj|k_proj|v_proj|out_proj)"
FEED_FORWARD = r".*layers\.({})\.(fc1|fc2|feed_forward\.(intermediate|output)_dense)"


def add_lora(backbone: Backbone, config: EncoderConfig, first: int = 0, last: Optional[int] = None) -> None:
    """Freeze a backbone and put adapters beside its matrices, as ``config.lora_*`` says; at first they change nothing.

    Args:
        first: the number of the lowest layer, counted from 0, that takes adapters.
        last: the number of the first layer above it that takes none; None: all above do.

    Raises:
        UserError: without peft, for WavLM, whose attention uses the weights of its projections directly, and where no
            layer is left.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except Exception as error:  # a peft that is there may fail in other ways than ImportError
        said = f"--model.encoder.lora_rank: needs peft ({one_line(error)}): pip install 'tokenverse_pp[lora]'"
        raise UserError(said) from None
    if type(backbone).__name__ == "WavLMBackbone":
        raise UserError("--model.encoder.lora_rank: WavLM's attention takes no adapters; use wav2vec2 or HuBERT models")
    numbers = "|".join(str(number) for number in range(first, len(backbone.layers) if last is None else last))
    if not numbers:
        raise UserError(
            f"--model.encoder.lora_rank={config.lora_rank}: no layer runs above "
            f"--model.encoder.split_layer={first}: --model.encoder.layers names none"
        )
    backbone.requires_grad_(False)
    targets = PROJECTIONS.format(numbers)
    if config.lora_feed_forward:
        targets = f"({targets})|({FEED_FORWARD.format(numbers)})"
    options: Any = {"r": config.lora_rank, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
    inject_adapter_in_model(LoraConfig(target_modules=targets, **options), backbone)
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
