"""What is traced: the encoder with the joiner's projection, the predictor with its own, and the rest of the joiner.

Split like this, a search projects each frame and each context once, and per step only adds, squashes and multiplies.
"""

from __future__ import annotations

import copy
from typing import Any, Tuple

import torch
from torch import Tensor, nn

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.encoder.log_mel import LogMel
from tokenverse_pp.model.encoder.wav2vec2 import WavLMBackbone
from tokenverse_pp.model.transducer import Transducer


class GivenMel(nn.Module):
    """Stands in for `LogMel` where the input is a log-mel spectrogram already: (N, bins, T), zero on padding.

    ONNX has an STFT, but no runtime of it is as exact and as fast as NumPy's.
    """

    def __init__(self, log_mel: LogMel):
        super().__init__()
        self.hop = log_mel.hop

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 10 ms."""
        return torch.div(lens + self.hop - 1, self.hop, rounding_mode="floor")

    def forward(self, mel: Tensor, lens: Tensor, *_: Any) -> Tuple[Tensor, Tensor]:
        """As `LogMel.forward`: (N, bins, T) and lens (N,) samples -> the same, and frames (N,)."""
        return mel, self.frame_lens(lens)


class EncoderGraph(nn.Module):
    """Audio or log-mel -> what the joiner adds to a predictor's state."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, lens: Tensor, active: Tensor) -> Tuple[Tensor, Tensor]:
        """Inputs (N, S) or (N, bins, T), lens (N,) samples, active (N, K + 1) -> frames (N, T', J), their lens (N,)."""
        out, lens = self.model.encode(inputs, lens, active)
        return self.model.joiner.encoder_proj(out), lens


class PredictorGraph(nn.Module):
    """Contexts -> what the joiner adds to an encoder frame."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.predictor, self.projection = model.predictor, model.joiner.predictor_proj

    def forward(self, context: Tensor) -> Tensor:
        """Context (M, context_size) int64, the newest token last -> state (M, J)."""
        return self.projection(self.predictor.step(context))


class JoinerGraph(nn.Module):
    """Frame and state -> logits."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.joiner = model.joiner

    def forward(self, frame: Tensor, state: Tensor) -> Tensor:
        """Frame (M, J), state (M, J) -> logits (M, V)."""
        return self.joiner(frame, state)


def prepared(model: Transducer, given_mel: bool = True) -> Transducer:
    """A copy in eval mode that a tracer can go through, with the same output.

    Args:
        model: of any mode and device.
        given_mel: take the log-mel as it comes (`GivenMel`).

    Raises:
        UserError: for an encoder that cannot be exported.
    """
    model = copy.deepcopy(model).eval().cpu().float()
    model.requires_grad_(False)
    if any(isinstance(module, WavLMBackbone) for module in model.modules()):
        raise UserError("export: WavLM encoders cannot be exported: their attention is no plain sum of products")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if given_mel and isinstance(child, LogMel):
                setattr(parent, name, GivenMel(child))
    for vectors in (model.feature_vectors, model.encoder_vectors):
        if vectors is not None:  # the runtime refuses combinations that were not trained, a graph cannot
            vectors.trained.fill_(1)
    return model


def log_mel_of(model: Transducer) -> Any:
    """The model's `LogMel`, None where it hears the audio itself."""
    return next((module for module in model.modules() if isinstance(module, LogMel)), None)
