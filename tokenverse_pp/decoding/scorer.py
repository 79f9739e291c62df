"""What a search adds up at a frame: the joiner's log-probabilities, constraints, and bonuses of shallow fusion.

The weights of constraints are added *after* the softmax, and scores are not normalised again. So the log-probability of
a hypothesis is that of the model whatever is barred (without constraints exactly icefall's), and hypotheses are ranked
by the model's distribution conditioned on being allowed. Normalising at each frame would reward prefixes after which
most of the probability is barred (label bias). The blank is always allowed, so constraints never empty a beam.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Dict, List, Optional, Protocol, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.constraints import NEG_INF, RuleTables, languages_written
from tokenverse_pp.decoding.context_graph import ContextGraph, SpellingVocabulary, hotword_phrases
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.language_models import language_model_for
from tokenverse_pp.models.transducer import Joiner, StatelessPredictor
from tokenverse_pp.tasks.base import TaskSet


@dataclass(frozen=True)
class Constraints:
    """Compiled rules: ``weights`` (S, V) float32, 0 or -inf; ``following`` (S, V) int64. State 0 is the start."""

    weights: Tensor
    following: Tensor

    @classmethod
    def of(cls, tables: RuleTables) -> Constraints:
        """The same numbers as tensors."""
        return cls(torch.from_numpy(tables.weights), torch.from_numpy(tables.following))

    @staticmethod
    def join(each: Sequence[Constraints]) -> Tuple[Constraints, List[int]]:
        """The constraints of several utterances as one, and the start state of each utterance."""
        first_state: Dict[int, int] = {}
        distinct: List[Constraints] = []
        total = 0
        for item in each:
            if id(item) not in first_state:
                first_state[id(item)] = total
                distinct.append(item)
                total += len(item.weights)
        weights = torch.cat([item.weights for item in distinct])
        following = torch.cat([item.following + first_state[id(item)] for item in distinct])
        return Constraints(weights, following), [first_state[id(item)] for item in each]

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether a sequence of vocabulary ids is allowed."""
        state = 0
        for token in tokens:
            if self.weights[state, token] == NEG_INF:
                return False
            state = int(self.following[state, token])
        return True


@dataclass
class Rules:
    """The constraints of a batch: log-weights (S, V), next states (S * V,), first state of each utterance (N, 1)."""

    weights: Tensor
    following: Tensor
    start: Tensor

    @classmethod
    def arrange(
        cls, constraints: Union[Constraints, Sequence[Constraints]], order: Sequence[int], device: torch.device
    ) -> Rules:
        """Put the same constraints for all utterances, or those of each, on a device and in an order."""
        every = [constraints] * len(order) if isinstance(constraints, Constraints) else constraints
        joined, starts = Constraints.join([every[i] for i in order])
        start = torch.tensor(starts, device=device)[:, None]
        return cls(joined.weights.to(device), joined.following.flatten().to(device), start)


class FusionScorer(Protocol):
    """An automaton over tokens whose transitions have bonuses in nats. States are integers, 0 the start."""

    @property
    def states(self) -> int:
        """States that there are."""

    def advance(self, state: int, token: int) -> int:
        """The state after a token; a blank leaves it as it is."""

    def gain(self, state: int, token: int) -> float:
        """What a token earns in a state, 0 for a blank."""

    def look_up(self, states: Sequence[int], device: torch.device) -> Tensor:
        """`gain` of every token in M states: (M, V) float32."""

    def at_end(self, state: int) -> float:
        """What a hypothesis that ends in a state earns by ending."""

    def walk(self, tokens: Sequence[int]) -> Tuple[List[float], float]:
        """What each token of a hypothesis earned when it was written, and what the finished hypothesis keeps."""


class SumScorer:
    """The sum of two fusion scorers."""

    def __init__(self, one: FusionScorer, other: FusionScorer):
        self.one, self.other = one, other
        self.states = one.states * other.states

    def _parts(self, state: int) -> Tuple[int, int]:
        return divmod(state, self.other.states)

    def advance(self, state: int, token: int) -> int:
        """See `FusionScorer`."""
        one, other = self._parts(state)
        return self.one.advance(one, token) * self.other.states + self.other.advance(other, token)

    def gain(self, state: int, token: int) -> float:
        """See `FusionScorer`."""
        one, other = self._parts(state)
        return self.one.gain(one, token) + self.other.gain(other, token)

    def look_up(self, states: Sequence[int], device: torch.device) -> Tensor:
        """See `FusionScorer`."""
        one, other = zip(*map(self._parts, states))
        return self.one.look_up(one, device) + self.other.look_up(other, device)

    def at_end(self, state: int) -> float:
        """See `FusionScorer`."""
        one, other = self._parts(state)
        return self.one.at_end(one) + self.other.at_end(other)

    def walk(self, tokens: Sequence[int]) -> Tuple[List[float], float]:
        """See `FusionScorer`."""
        (gains, kept), (more, kept_too) = self.one.walk(tokens), self.other.walk(tokens)
        return [a + b for a, b in zip(gains, more)], kept + kept_too


def bonus_for(
    options: SearchOptions, tokenizer: SpellingVocabulary, tasks: Optional[TaskSet] = None
) -> Optional[FusionScorer]:
    """The fusion scorer for hotwords, length bonus and language model of the options, or None.

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
    return model if bonus is None else SumScorer(bonus, model)


# Of twice a joiner input: float32 holds exp(-80) to exp(80), and tanh is +-1 long before 40.
LARGEST_EXPONENT = 80.0
FEWEST_ROWS = 4096


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
        self.capacity = 0
        self.make_room(rows_at_once)
        self.weight, self.bias = ((2 * x.detach()).to(dtype) for x in joiner.predictor_proj.parameters())
        # The convolution of a context is a sum over its tokens: one table (V, D) for each place in the context, instead
        # of a grouped Conv1d on a few rows a frame, which is slow.
        embedding = predictor.embedding.weight.t().unsqueeze(0)
        taps = predictor.conv.weight.unbind(-1)
        groups = predictor.conv.groups
        self.taps = [F.conv1d(embedding, tap.unsqueeze(-1), groups=groups)[0].t().contiguous() for tap in taps]
        self.table = torch.empty(0, joiner.output.in_features, device=self.weight.device)
        self.row_of: Dict[int, int] = {}

    def make_room(self, rows_at_once: int) -> None:
        """Expect up to so many contexts at once."""
        self.capacity = max(self.capacity, FEWEST_ROWS, 4 * rows_at_once)

    def look_up(self, contexts: Sequence[int]) -> Tensor:
        """M contexts -> (M, J) float32."""
        if len(self.row_of) + len(contexts) > self.capacity:
            self.row_of.clear()  # memory stays bounded; what is still needed is computed again
        missing = [context for context in dict.fromkeys(contexts) if context not in self.row_of]
        if missing:
            self._add(missing)
        rows = [self.row_of[context] for context in contexts]
        return self.table.index_select(0, torch.tensor(rows, dtype=torch.int64, device=self.table.device))

    def _add(self, contexts: List[int]) -> None:
        first, end = len(self.row_of), len(self.row_of) + len(contexts)
        if end > len(self.table):
            larger = self.table.new_empty(min(self.capacity, max(2 * end, 256)), self.table.size(1))
            larger[:first] = self.table[:first]
            self.table = larger
        tokens = [[context // self.base**i % self.base for context in contexts] for i in range(self.size)]
        state, *others = (
            tap.index_select(0, index)
            for tap, index in zip(reversed(self.taps), torch.tensor(tokens, device=self.table.device))
        )
        for other in others:
            state += other
        double = F.linear(state.relu_().to(self.weight.dtype), self.weight, self.bias)
        self.table[first:end] = bounded_exp(double)
        self.row_of.update(zip(contexts, range(first, end)))


class Scorer:
    """The joiner over one batch.

    ``logits = W tanh(a + b) + bias`` as `Joiner.forward`, rewritten so that a frame costs one product and one
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
        """A hypothesis with its score.

        With `FusionScorer`, ``log_probs`` and ``log_prob`` hold what was given for the tokens, kept or not.
        """
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
