"""XLSR-Transducer, TokenVerse and TokenVerse++: encoder, task vectors, predictor, joiner and loss.

The task vectors of TokenVerse++ (arXiv 2508.19856) are added to the acoustic embeddings: X~ = X + v, where v encodes
which tasks are active.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenverse_pp.base.config import ChunkOptions, ModelConfig, SpecAugmentConfig, VectorsConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import sharded_like
from tokenverse_pp.losses import pruned_transducer_loss
from tokenverse_pp.losses.entry import token_log_probs
from tokenverse_pp.models.encoders import Encoder
from tokenverse_pp.models.encoders.base import length_mask
from tokenverse_pp.models.predictor import make_predictor

MAX_COMBINATION_TASKS = 10  # 2^10 rows; beyond that most rows would never be trained


class TaskVectors(nn.Module):
    """One vector per task, summed over the active tasks, or one vector per combination of active tasks.

    Both are ``scale * weights @ table``: every row is in the graph of every step, so DDP finds no unused
    parameters when a task is absent. Rows are initialised to zero: a new model equals one without vectors.

    With ``code`` ``binary`` a task's weight is 1 if it is active and 0 if not (the form of TokenVerse++), with
    ``centred`` it is 1 or -1: v = sum of (2 a_k - 1) v_k. Then the states "on" and "off" of a task are equally far
    from the features, and each utterance trains the vectors of all tasks, not only of its active ones. Both codes
    can represent the same vectors, as ``asr`` is always active (see `recoded`).

    Args:
        num_tasks: K + 1; the first is ``asr``, which is always active.
        dim: d of the embeddings.
        strategy: ``sum`` (K + 1 rows) or ``combination`` (2^K rows).
        code: ``binary`` or, with ``sum``, ``centred``.
        scale: factor on the vectors, in training and decoding; it is not part of ``table``.
    """

    trained: Tensor
    refuses = True  # in eval mode, raise for combinations that were never active in training

    def __init__(self, num_tasks: int, dim: int, strategy: str = "sum", code: str = "binary", scale: float = 1.0):
        super().__init__()
        if strategy not in ("sum", "combination"):
            raise UserError(f"vectors.strategy={strategy!r}: expected sum or combination")
        if strategy == "combination" and num_tasks - 1 > MAX_COMBINATION_TASKS:
            raise UserError(f"vectors.strategy=combination takes at most {MAX_COMBINATION_TASKS} tasks beside asr")
        if code not in ("binary", "centred") or (code == "centred" and strategy != "sum"):
            raise UserError(f"vectors.code={code!r}: expected binary, or with strategy sum also centred")
        self.strategy, self.code, self.scale = strategy, code, scale
        rows = num_tasks if strategy == "sum" else 2 ** (num_tasks - 1)
        self.table = nn.Parameter(torch.zeros(rows, dim))
        # Combinations seen in training; decoding refuses others. Bytes: before torch 2, gloo cannot send bools.
        self.register_buffer("trained", torch.zeros(rows, dtype=torch.uint8))

    def forward(self, active: Tensor) -> Tensor:
        """active (N, K + 1) of 0 and 1 -> v (N, d).

        With strategy ``sum``, values may lie between 0 and 1 or beyond (``--vector-scale``): v is linear in them.

        Raises:
            UserError: with strategy ``combination`` in eval mode, if a combination was never trained (see ``refuses``).
        """
        if self.strategy == "sum":
            weights = active.to(self.table.dtype)
            weights = 2 * weights - 1 if self.code == "centred" else weights
        else:
            bits = 2 ** torch.arange(active.shape[1] - 1, device=active.device)
            rows = (active[:, 1:].long() * bits).sum(dim=1)
            if self.training:
                self.trained[rows] = 1
            elif self.refuses and not bool(self.trained[rows].all()) and bool(self.trained.any()):
                raise UserError(
                    "vectors.strategy=combination: this combination of tasks was never active in training; choose one "
                    "that was, or train with tasks.activation=subset"
                )
            weights = F.one_hot(rows, self.table.shape[0]).to(self.table.dtype)
        v = weights @ self.table
        return v if self.scale == 1 else v * self.scale


def check_registers(config: ModelConfig) -> None:
    """Check that ``vectors.registers`` fits the encoder (raises UserError)."""
    count, place = config.vectors.registers, config.vectors.placement
    if not count:
        return
    option = f"--model.vectors.registers={count}"
    if place not in ("features", "both") or config.encoder.kind == "finetune":
        needed = "--model.vectors.placement features or both, and --model.encoder.kind split or frozen"
        raise UserError(f"{option}: needs {needed}")
    if count % config.encoder.stack:
        raise UserError(f"{option}: expected a multiple of --model.encoder.stack={config.encoder.stack}")


def recoded(table: Tensor, old: VectorsConfig, new: VectorsConfig) -> Tensor:
    """Convert a table (rows, d) from the form ``old`` to the form ``new``, which gives the same vectors.

    From binary to centred each task's vector is halved and the other halves are added to the vector of ``asr``, which
    is always active: v_0 + sum a_k v_k = (v_0 + sum v_k / 2) + sum (2 a_k - 1) v_k / 2. Centred to binary inverts this.
    """
    table = table.clone()
    if (old.code, new.code) == ("binary", "centred"):
        table[1:] /= 2
        table[0] += table[1:].sum(0)
    elif (old.code, new.code) == ("centred", "binary"):
        table[0] -= table[1:].sum(0)
        table[1:] *= 2
    return table if old.scale == new.scale else table * (old.scale / new.scale)


class SpecAugment(nn.Module):
    """Masks the features of each utterance in training (Park et al., 2019); the identity in eval mode.

    Whole frames are masked, in spans of at most ``time_span``, and whole channels. Masked values become the mean of
    their channel over the valid frames of the utterance, or zero (``fill``). Anything added to the features before,
    such as the task vector, is masked with them. Each utterance keeps at least one valid frame and one channel, and so
    a part of the vector: time masks that would cover all of its valid frames are left out, as are channel masks that
    would cover all channels. (A span may be longer than a short utterance; otherwise the masked share is
    ``time_share`` on average.)

    Zeros are not a neutral value before a layer norm: a frame of zeros then contains only what attention adds to it,
    scaled to full size. A trained Whisper encoder learned to read the task vectors of the other frames in such frames,
    so that in decoding, without masks, the vectors had hardly any effect. The mean has the magnitude of the features,
    as in ESPnet's and lhotse's SpecAugment.
    """

    def __init__(self, config: SpecAugmentConfig):
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """features (N, T, F), lens (N,) valid frames -> (N, T, F); the input is not changed."""
        if not self.training:
            return features
        c = self.config
        if c.time_share == c.channel_share == 0:
            return features
        value = self._fill(features, lens)
        if c.time_share > 0:
            spans = _spans(lens, features.shape[1], c.time_share, c.time_span, features.device)
            features = torch.where(spans[:, :, None], value, features)
        if c.channel_share > 0:
            size = features.shape[2]
            widths = torch.full_like(lens, size)
            spans = _spans(widths, size, c.channel_share, c.channel_span, features.device)
            features = torch.where(spans[:, None, :], value, features)
        return features

    def _fill(self, features: Tensor, lens: Tensor) -> Tensor:
        """features (N, T, F), lens (N,) -> the value of masked places, (N, 1, F) or a scalar, without padding."""
        if self.config.fill == "zero":
            return features.new_zeros(())
        valid = length_mask(lens, features.shape[1], features.device)[:, :, None]
        return (features * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)


def _spans(lens: Tensor, size: int, share: float, span: int, device: torch.device) -> Tensor:
    """Random spans of 0 to ``span`` places within lens (N,), covering about ``share`` -> mask (N, size) on a device.

    A row whose spans would cover all of its places gets no spans.
    """
    # A span has span / 2 places on average; the number of spans is rounded at random, to keep the mean.
    mean = lens.to(torch.float32) * share / (span / 2)
    longest = float(mean.max()) if len(lens) else 0.0
    lens = lens.to(device, non_blocking=True)
    count = (mean.to(device, non_blocking=True) + torch.rand(lens.shape, device=device)).floor().long()
    # On a GPU, draw the largest possible number of spans: reading the actual number would wait for the GPU.
    most = int(count.max()) if device.type == "cpu" and len(lens) else int(longest + 1)
    if most == 0:
        return torch.zeros(len(lens), size, dtype=torch.bool, device=device)
    width = torch.randint(0, span + 1, (len(lens), most), device=device)
    room = (lens[:, None] - width).clamp(min=0)
    start = (torch.rand(len(lens), most, device=device) * (room + 1)).long()
    width = torch.where(torch.arange(most, device=device) < count[:, None], width, torch.zeros_like(width))
    places = torch.arange(size, device=device)
    inside = ((places >= start[:, :, None]) & (places < (start + width)[:, :, None])).any(dim=1)
    whole = (inside | (places >= lens[:, None])).all(dim=1)
    return inside & ~whole[:, None]


class Joiner(nn.Module):
    """Joins encoder frames (C) and predictor states (D): logits = Linear(tanh(W_e enc + W_d dec)), as in icefall.

    The pruned loss and the search apply the two projections themselves: they project once and join often. With
    ``activation`` ``relu`` in place of ``tanh`` it is the joiner of Parakeet and Nemotron.
    """

    def __init__(
        self, encoder_dim: int, predictor_dim: int, joiner_dim: int, vocab_size: int, activation: str = "tanh"
    ):
        super().__init__()
        self.activation = activation
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.predictor_proj = nn.Linear(predictor_dim, joiner_dim)
        self.output = nn.Linear(joiner_dim, vocab_size)

    def forward(self, am: Tensor, lm: Tensor) -> Tensor:
        """am and lm (..., J), already projected and broadcastable -> logits (..., V)."""
        return self.output(getattr(torch, self.activation)(am + lm))


class Losses(NamedTuple):
    """Negative log-likelihoods of each utterance, in nats; ``frames`` are the encoder's output frames."""

    simple: Tensor  # (N,)
    pruned: Tensor  # (N,)
    ctc: Tensor  # (N,); zeros without the auxiliary CTC loss
    frames: Tensor  # (N,)


class Transducer(nn.Module):
    """XLSR-Transducer and TokenVerse (without task vectors), or TokenVerse++.

    Args:
        config: of the model.
        encoder: see `tokenverse_pp.models.encoders`.
        num_tasks: K + 1, ``asr`` first.
        vocab_size: V, blank (0) included.
    """

    def __init__(self, config: ModelConfig, encoder: Encoder, num_tasks: int, vocab_size: int):
        super().__init__()
        self.config = config
        self.encoder = encoder
        c, place = encoder.output_dim, config.vectors.placement
        form = (config.vectors.strategy, config.vectors.code, config.vectors.scale)
        self.feature_vectors = (
            TaskVectors(num_tasks, encoder.feature_dim, *form) if place in ("features", "both") else None
        )
        self.encoder_vectors = TaskVectors(num_tasks, c, *form) if place in ("encoder", "both") else None
        check_registers(config)
        self.spec_augment = SpecAugment(config.spec_augment)
        self.predictor = make_predictor(config, vocab_size)
        self.joiner = Joiner(c, config.predictor_dim, config.joiner_dim, vocab_size, config.joiner_activation)
        # The "trivial joiner" that finds the pruning bounds: log-probabilities as a sum of two terms.
        self.simple_am = nn.Linear(c, vocab_size)
        self.simple_lm = nn.Linear(config.predictor_dim, vocab_size)
        # A transducer can lower its loss by predicting tokens from tokens; CTC sees the encoder alone.
        self.ctc = nn.Linear(c, vocab_size) if config.loss.ctc_scale > 0 else None

    @property
    def task_vectors(self) -> List[TaskVectors]:
        """The modules of task vectors: none, one, or those of both places."""
        return [vectors for vectors in (self.feature_vectors, self.encoder_vectors) if vectors is not None]

    def encode(
        self, inputs: Tensor, lens: Tensor, active: Tensor, stored: bool = False, chunks: Optional[ChunkOptions] = None
    ) -> Tuple[Tensor, Tensor]:
        """Audio or stored features -> encoder output, without the frames of ``vectors.registers``.

        Args:
            inputs: audio (N, S), or stored features at the seam (N, T, F) when ``stored``.
            lens: valid samples or frames, (N,); best on the CPU, where reading them does not wait for a GPU.
            active: (N, K + 1) of 0 and 1: the active tasks.
            stored: ``inputs`` are stored results of `Encoder.extract`, with the same ``chunks``.
            chunks: each frame sees only its chunk and the left context, as in streaming; None: full context.

        Returns:
            (N, T', C) and the valid frames (N,), on the device of ``lens``.
        """
        if chunks is not None and chunks.full:
            chunks = None
        features, lens = (inputs, lens) if stored else self.encoder.extract(inputs, lens, chunks)
        features = features.to(self.joiner.output.weight.dtype)
        # Masks must cover the vector too: in a frame of zeros plus the vector, the layer norm after the seam would
        # scale the vector and its gradient to full size.
        masks_vector = self.config.vectors.masked is not False
        if not masks_vector:
            features = self.spec_augment(features, lens)
        if self.feature_vectors is not None:
            features = features + self.feature_vectors(active)[:, None, :]
        if masks_vector:
            features = self.spec_augment(features, lens)
        registers = self.config.vectors.registers
        if registers:
            features, lens = F.pad(features, (0, 0, registers, 0)), lens + registers
        out, lens = self.encoder.contextualise(features, lens, chunks, registers)
        if registers:
            frames = registers // self.config.encoder.stack
            out, lens = out[:, frames:], lens - frames
        if self.encoder_vectors is not None:
            out = out + self.encoder_vectors(active)[:, None, :]
        return out, lens

    def forward(
        self,
        inputs: Tensor,
        lens: Tensor,
        active: Tensor,
        tokens: Tensor,
        token_lens: Tensor,
        stored: bool = False,
        chunks: Optional[ChunkOptions] = None,
    ) -> Losses:
        """Simple, pruned and (if enabled) CTC loss of each utterance.

        Args:
            inputs: see `encode`; so are lens, active, stored and chunks.
            tokens: target ids (N, U), padded with any id.
            token_lens: valid targets, (N,).
        """
        out, lens = self.encode(inputs, lens, active, stored, chunks)
        return self.losses(out, lens, tokens, token_lens)

    def losses(self, out: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor) -> Losses:
        """The losses of `forward`, given the output of `encode`: out (N, T', C), lens (N,)."""
        tensors, options = self._loss_arguments(out, lens, tokens, token_lens)
        c = self.config.loss
        options.update(lm_scale=c.lm_scale, am_scale=c.am_scale, delay_penalty=c.delay_penalty, backend=c.backend)
        simple, pruned = pruned_transducer_loss(*tensors, **options, reduction="none")
        return Losses(simple, pruned, self._ctc_loss(out, lens, tensors[5], token_lens), lens)

    def token_log_probs(self, out: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor) -> Tensor:
        """Expected log-probability (N, U) of each target token (`tokenverse_pp.losses.entry`), see `losses`."""
        tensors, options = self._loss_arguments(out, lens, tokens, token_lens)
        return token_log_probs(*tensors, **options)

    def _loss_arguments(
        self, out: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor
    ) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The first seven arguments of a loss, the last ones tokens padded with blanks and boundary; its options."""
        padding = ~length_mask(token_lens, tokens.shape[1], tokens.device)
        tokens = tokens.masked_fill(padding, self.predictor.blank_id)
        nothing = torch.zeros_like(lens)
        boundary = torch.stack([nothing, nothing, token_lens.to(lens.device), lens], 1).long()
        boundary = boundary.to(out.device, non_blocking=True)
        state = self.predictor(tokens)
        am, lm = self.joiner.encoder_proj(out), self.joiner.predictor_proj(state)
        tensors = (self.simple_am(out), self.simple_lm(state), am, lm, self.joiner.output, tokens, boundary)
        c, blank = self.config.loss, self.predictor.blank_id
        options = {"prune_range": c.prune_range, "rnnt_type": c.rnnt_type, "activation": self.joiner.activation}
        return tensors, {"blank": blank, **options}

    def _ctc_loss(self, out: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor) -> Tensor:
        """Encoder output (N, T', C), lens (N,), targets (N, U), token_lens (N,) -> CTC loss (N,) in float32."""
        if self.ctc is None:
            return out.new_zeros(len(lens), dtype=torch.float32)
        log_probs = self.ctc(out).float().log_softmax(-1).transpose(0, 1)
        blank = self.predictor.blank_id
        # Pass lengths on the CPU: for lengths on a GPU, the loss would first copy them to the CPU.
        lengths = (lens.cpu(), token_lens.cpu())
        return F.ctc_loss(log_probs, tokens, *lengths, blank, reduction="none", zero_infinity=True)

    def checkpoint_state(self) -> Dict[str, Tensor]:
        """The state dict without the weights of a frozen encoder, which are reloaded from their source."""
        frozen = tuple(f"encoder.{prefix}" for prefix in self.encoder.frozen_prefixes())
        return {k: v for k, v in self.state_dict().items() if not (frozen and k.startswith(frozen))}

    def unread(self, state: Iterable[str]) -> List[str]:
        """The names of unused weights in a checkpoint of an older version."""
        unread = tuple(f"encoder.{prefix}" for prefix in self.encoder.unread_prefixes())
        return [name for name in state if unread and name.startswith(unread)]

    def load_checkpoint_state(self, state: Dict[str, Tensor]) -> Optional[str]:
        """Load the result of `checkpoint_state`; return a line on what does not fit, or None."""
        expected = self.checkpoint_state()
        unread = set(self.unread(state))
        state = {name: value for name, value in state.items() if name not in unread}
        missing = sorted(set(expected) - set(state))
        foreign = sorted(set(state) - set(expected))
        shapes = sorted(k for k in set(expected) & set(state) if expected[k].shape != state[k].shape)
        for what, keys in (("lacks", missing), ("has the unknown", foreign)):
            if keys:
                return f"it {what} tensor {keys[0]} ({len(keys)} such)"
        if shapes:
            key = shapes[0]
            return f"tensor {key} has shape {tuple(state[key].shape)}, the model wants {tuple(expected[key].shape)}"
        self.load_state_dict({k: sharded_like(v, expected[k]) for k, v in state.items()}, strict=False)
        return None
