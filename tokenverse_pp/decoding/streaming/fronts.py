"""The fronts of streaming encoders, from audio to frames. Nothing is computed twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.decoding.streaming.stages import ChunkPlace, Stage, State
from tokenverse_pp.models.encoders.chunks import Moments, convolve
from tokenverse_pp.models.encoders.wav2vec2 import Wav2Vec2Backbone
from tokenverse_pp.models.encoders.whisper import LEAST, WhisperBackbone


class Wav2Vec2Front(Stage):
    """Audio (N, S) -> output of the feature projection (N, T, C), for wav2vec2 and HuBERT."""

    def __init__(self, backbone: Wav2Vec2Backbone) -> None:
        self.backbone = backbone

    def start(self) -> State:
        """See Stage; one entry per convolution for the inputs that its next frames will see."""
        like = next(self.backbone.parameters())
        state, channels = {}, 1
        if self.backbone.normalise:
            state["front.audio"] = torch.zeros(3, 1, dtype=torch.float64, device=like.device)
        for number, layer in enumerate(self.backbone.convolutions):
            state[f"front{number}.seen"] = like.new_zeros(channels, 0)
            channels = layer.conv.out_channels
            if has_group_norm(layer):
                state["front.channels"] = torch.zeros(3, channels, dtype=torch.float64, device=like.device)
        return state

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        x = x.unsqueeze(1)
        if self.backbone.normalise:
            mean, scale = add_moments(x, state, "front.audio").mean_and_scale(1e-7)
            x = (x - mean) * scale
        for number, layer in enumerate(self.backbone.convolutions):
            x = self._convolve(layer, x, state, f"front{number}.seen")
        return self.backbone.project(x)

    @staticmethod
    def _convolve(layer: Any, x: Tensor, state: State, key: str) -> Tensor:
        """One convolution with its norm and activation, (N, C, T) -> (N, C', T')."""
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        x = torch.cat([state[key], x], dim=-1)
        frames = max(0, (x.shape[-1] - kernel) // stride + 1)
        state[key] = x[..., frames * stride :]
        if frames == 0:
            return x.new_zeros(x.shape[0], layer.conv.out_channels, 0)
        if not has_group_norm(layer):
            return layer(x)
        x = layer.conv(x)
        norm = layer.layer_norm
        mean, scale = add_moments(x, state, "front.channels").mean_and_scale(norm.eps)
        return layer.activation((x - mean) * scale * norm.weight.view(1, -1, 1) + norm.bias.view(1, -1, 1))


def has_group_norm(layer: Any) -> bool:
    """Whether a convolution is followed by a norm over time."""
    return isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm)


def add_moments(x: Tensor, state: State, key: str) -> Moments:
    """Add frames (N, C, T) to the running moments (N, 3, C) ``state[key]`` -> all moments, (N, C, 1) each."""
    number = torch.full(x.shape[:2], x.shape[2], dtype=torch.float64, device=x.device)
    total, squares = x.sum(-1, dtype=torch.float64), x.square().sum(-1, dtype=torch.float64)
    state[key] = state[key] + torch.stack([number, total, squares], dim=1)
    return Moments(*state[key].unsqueeze(-1).unbind(1))


class WhisperFront(Stage):
    """Audio (N, S) -> output of the second convolution (N, T, C), for Whisper.

    In the last chunk silence follows the audio, as in a whole utterance.
    """

    def __init__(self, backbone: WhisperBackbone, chunks: ChunkOptions) -> None:
        self.backbone = backbone
        self.log_mel = backbone.log_mel
        self.grid = self.log_mel.grid(chunks)

    def start(self) -> State:
        """See Stage; the convolutions start with their left padding of one zero."""
        like = next(self.backbone.parameters())
        return {
            "front.samples": torch.zeros((), dtype=torch.int64, device=like.device),
            "front.frames": torch.zeros((), dtype=torch.int64, device=like.device),
            "front.audio": like.new_zeros(0),
            "front.peak": like.new_full((1,), LEAST),
            "front.mel": like.new_zeros(self.log_mel.filters.shape[0], 1),
            "front.hidden": like.new_zeros(self.backbone.hidden_size, 1),
        }

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        state["front.samples"] = state["front.samples"] + x.shape[1]
        mel = torch.cat([state["front.mel"], self._mel(x, state, place)], dim=-1)
        if place.last:
            mel = F.pad(mel, (0, 1))
        state["front.mel"] = mel[..., -2:]
        encoder: Any = self.backbone.encoder
        hidden = mel.new_zeros(mel.shape[0], self.backbone.hidden_size, 0)
        if mel.shape[-1] > 2:
            hidden = F.gelu(convolve(encoder.conv1, mel))
        hidden = torch.cat([state["front.hidden"], hidden], dim=-1)
        if place.last and int(state["front.frames"][0]) % 2:
            hidden = F.pad(hidden, (0, 1))
        frames = max(0, (hidden.shape[-1] - 1) // 2)
        state["front.hidden"] = hidden[..., 2 * frames :]
        if frames == 0:
            return hidden.new_zeros(hidden.shape[0], 0, hidden.shape[1])
        conv = encoder.conv2
        return F.gelu(F.conv1d(hidden, conv.weight, conv.bias, stride=2)).transpose(1, 2)

    def _mel(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """Return the complete frames of 10 ms, (N, M, T)."""
        size, hop = self.log_mel.n_fft, self.log_mel.hop
        x = torch.cat([state["front.audio"], x], dim=1)
        if place.last:
            x = F.pad(x, (0, size))
        if place.first:
            x = torch.cat([self.log_mel.mirrored_start(x), x], dim=1)
        done = int(state["front.frames"][0])
        frames = (x.shape[1] - size) // hop + 1
        if place.last:
            frames = -(-int(state["front.samples"][0]) // hop) - done
        state["front.audio"] = x[:, frames * hop :]
        state["front.frames"] = state["front.frames"] + frames
        if frames == 0:
            return x.new_zeros(x.shape[0], state["front.mel"].shape[1], 0)
        mel = self.log_mel.log_power(x[:, : size + (frames - 1) * hop])
        pieces = []
        for piece in mel.split(self.grid.segments(done, frames), dim=-1):
            highest = torch.maximum(state["front.peak"], piece.amax(dim=(1, 2)).unsqueeze(1))
            state["front.peak"] = highest
            pieces.append(self.log_mel.clip(piece, highest))
        return torch.cat(pieces, dim=-1)
