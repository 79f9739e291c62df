"""What a search adds up at a frame: the joiner's log-probabilities, constraints, and bonuses of shallow fusion.

The weights of constraints are added *after* the softmax, and scores are not normalised again. So the log-probability of
a hypothesis is that of the model whatever is suppressed (without constraints exactly icefall's), and hypotheses are
ranked by the model's distribution conditioned on being allowed. Normalising at each frame would reward prefixes after
which most of the probability is suppressed (label bias). The blank is always allowed, so constraints never empty a
beam.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Iterator, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.decoding.constraints import languages_written
from tokenverse_pp.decoding.context_graph import (
    ContextGraph,
    FusedScorers,
    FusionScorer,
    RowCache,
    hotword_phrases,
)
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.language_models import language_model_for
from tokenverse_pp.models.transducer import Joiner, StatelessPredictor
from tokenverse_pp.tasks.base import TaskSet

LARGEST_EXPONENT = 80.0  # of twice a joiner input: float32 holds exp(-80) to exp(80), and tanh is +-1 long before 40
FEWEST_ROWS = 4096


def bonus_for(options: SearchOptions, tokenizer: Tokenizer, tasks: Optional[TaskSet] = None) -> Optional[FusionScorer]:
    """The scorer for the hotwords, length bonus and language model of the options, or None.

    Args:
        options: of the search.
        tokenizer: the model's.
        tasks: those that are decoded; they determine the languages that can be written.

    Raises:
        UserError: for hotwords or a language model that this model cannot use.
    """
    bonus: Optional[FusionScorer] = None
    if not options.earns:
        return None
    if options.hotwords or options.length_bonus:
        pieces = tokenizer.pieces(range(tokenizer.vocab_size))
        phrases = hotword_phrases(options, tokenizer, languages_written(options, tasks))
        bonus = ContextGraph(phrases, pieces, options.length_bonus)
    if options.lm is None:
        return bonus
    model = language_model_for(options, tokenizer, tasks)
    return model if bonus is None else FusedScorers(bonus, model)


def check_bonus(options: SearchOptions, bonus: Optional[FusionScorer]) -> None:
    """See that a bonus is there where the options ask for one, and not otherwise (raises ValueError)."""
    if options.earns != (bonus is not None):
        raise ValueError("hotwords, length_bonus and lm go together with their `bonus_for(options, tokenizer)`")


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Inference mode without autocast: the weights are cast once, to ``joiner_dtype``, and not again at each frame."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def project(joiner: Joiner, encoder_out: Tensor, options: SearchOptions) -> Tensor:
    """`Joiner.encoder_proj` in the number type of the search: (..., C) -> (..., J) float32."""
    layer, dtype = joiner.encoder_proj, joiner_dtype(joiner, options)
    return F.linear(encoder_out.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)).float()


def joiner_dtype(joiner: Joiner, options: SearchOptions) -> torch.dtype:
    """The number type of the joiner's products: with encoder frames, predictor states and the vocabulary."""
    return getattr(torch, options.joiner_dtype) if options.joiner_dtype else joiner.output.weight.dtype


class PredictorTable:
    """exp(2 x projected predictor output), computed once for each context that a search meets.

    A stateless predictor depends on the last ``context_size`` tokens alone, and a beam meets the same contexts
    again and again: in neighbouring frames, hypotheses and utterances. A context is one integer, its tokens read
    as the digits of a number to the base V.
    """

    def __init__(self, predictor: StatelessPredictor, joiner: Joiner, rows_at_once: int, dtype: torch.dtype):
        self.base, self.size = predictor.embedding.num_embeddings, predictor.context_size
        if self.base**self.size >= 2**63:
            raise ValueError(f"a context of {self.size} tokens out of {self.base} does not fit 64 bits")
        self.modulus = self.base**self.size
        self.start = sum(predictor.blank_id * self.base**i for i in range(self.size))
        self.weight, self.bias = ((2 * x.detach()).to(dtype) for x in joiner.predictor_proj.parameters())
        # The convolution of a context is a sum over its tokens: one table (V, D) for each place in the context, instead
        # of a grouped Conv1d on a few rows a frame, which is slow.
        embedding = predictor.embedding.weight.t().unsqueeze(0)
        taps = predictor.conv.weight.unbind(-1)
        groups = predictor.conv.groups
        self.taps = [F.conv1d(embedding, tap.unsqueeze(-1), groups=groups)[0].t().contiguous() for tap in taps]
        self.cache = RowCache(self._rows, joiner.output.in_features, FEWEST_ROWS)
        self.make_room(rows_at_once)

    def make_room(self, rows_at_once: int) -> None:
        """Expect up to so many contexts at once."""
        self.cache.capacity = max(self.cache.capacity, 4 * rows_at_once)

    def look_up(self, contexts: Sequence[int]) -> Tensor:
        """M contexts -> (M, J) float32."""
        return self.cache.look_up(contexts, self.weight.device)

    def _rows(self, contexts: Sequence[int]) -> Tensor:
        tokens = [[context // self.base**i % self.base for context in contexts] for i in range(self.size)]
        state, *others = (
            tap.index_select(0, index)
            for tap, index in zip(reversed(self.taps), torch.tensor(tokens, device=self.weight.device))
        )
        for other in others:
            state += other
        return bounded_exp(F.linear(state.relu_().to(self.weight.dtype), self.weight, self.bias))


class Scorer:
    """The joiner over one batch.

    ``logits = W tanh(a + b) + bias`` as in `Joiner.forward`, rewritten so that a frame costs one product and one
    reciprocal in place of a tanh: with r = 1 / (1 + exp(2a) exp(2b)), tanh(a + b) = 1 - 2r, hence
    ``logits = -2 W r + (bias + W 1)``. exp(2a) is computed once for all frames and exp(2b) once a context.
    """

    def __init__(
        self,
        predictor: StatelessPredictor,
        joiner: Joiner,
        frames: Tensor,
        options: SearchOptions,
        bonus: Optional[FusionScorer] = None,
    ):
        """frames (T, N, J): the projected encoder output, time first. It is overwritten."""
        rows = frames.size(1) * options.width
        self.frames = bounded_exp(frames.float().mul_(2))
        dtype = joiner_dtype(joiner, options)
        self.contexts = PredictorTable(predictor, joiner, rows, dtype)
        self.blank_id, self.vocab_size = predictor.blank_id, joiner.output.out_features
        self.options, self.bonus = options, bonus
        self.one = torch.ones((), device=frames.device)
        weight, bias = joiner.output.weight.detach(), joiner.output.bias.detach()
        self.reduced: Optional[torch.dtype] = None if dtype == torch.float32 else dtype
        if self.reduced is None:
            self.weight = -2 * weight.float()
            self.bias = (bias.double() + weight.double().sum(1)).float()
        else:  # 1/2 - r is formed in float32: r itself is near 1/2 where tanh is small, and would lose digits
            self.weight, self.bias = (2 * weight).to(dtype), bias.to(dtype)
        self.half = torch.full((), 0.5, device=frames.device)

    def over(self, frames: Tensor) -> Scorer:
        """The same over other frames (T, N, J), which are overwritten; contexts that either meets are known to both."""
        other = copy.copy(self)
        other.frames = bounded_exp(frames.float().mul_(2))
        self.contexts.make_room(frames.size(1) * self.options.width)
        return other

    def log_probs(self, frames: Tensor, contexts: Tensor) -> Tensor:
        """Rows of ``self.frames`` and of ``self.contexts``, (..., J) -> log-probabilities (..., V), float32."""
        product = torch.addcmul(self.one, frames, contexts)
        r = product.reciprocal_()
        if self.reduced is not None:
            r = torch.sub(self.half, r, out=r).to(self.reduced)
        logits = F.linear(r, self.weight, self.bias).float()
        if self.options.blank_penalty:
            logits[..., self.blank_id] -= self.options.blank_penalty
        if self.options.temperature != 1:
            logits /= self.options.temperature
        return logits.log_softmax(-1)

    def hypothesis(
        self, tokens: Sequence[int], frames: Sequence[int], log_probs: Sequence[float], log_prob: float
    ) -> Hypothesis:
        """A hypothesis with its score. ``log_probs`` and ``log_prob`` include what the bonus gave for tokens."""
        kept = 0.0
        if self.bonus is not None:
            gains, kept = self.bonus.walk(tokens)
            log_probs = [value - gain for value, gain in zip(log_probs, gains)]
            log_prob -= sum(gains)
        scale = len(tokens) + self.contexts.size if self.options.length_norm else 1
        # Differences of rounded scores can be above 0 by a rounding error; a log-probability is not.
        bounded = np.minimum(log_probs, 0.0).tolist()
        return Hypothesis(tuple(tokens), tuple(frames), tuple(bounded), log_prob, (log_prob + kept) / scale)


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x), in place where x is float32."""
    return x.float().clamp_(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp_()
