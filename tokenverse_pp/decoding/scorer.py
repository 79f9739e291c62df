"""The scores that a search adds up at a frame: the joiner's log-probabilities, constraints, shallow-fusion bonuses.

`tokenverse_pp.decoding.constraints` says how the weights of constraints are added.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, TypeVar, Union
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.decoding.constraints import NEG_INF, Constraints
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.models.predictor import LstmPredictor, Predictor, StatelessPredictor
from tokenverse_pp.models.transducer import Joiner

Array = TypeVar("Array", Tensor, np.ndarray)
# Of twice a joiner input: float32 holds exp(-80) to exp(80), and tanh is +-1 long before 40. So only the sum of two
# inputs that are both far beyond what a trained joiner has (one above 40, the other below -30) is wrong.
LARGEST_EXPONENT = 80.0
FEWEST_ROWS = 4096
ROWS_KEPT = 4096  # of a `FusionScorer`


class BatchConstraints(NamedTuple):
    """The constraints of a batch: log-weights (S, V), next states (S * V,), first state of each utterance (N, 1)."""

    weights: Tensor
    following: Tensor
    start: Tensor


class ConstraintTable:
    """Several `Constraints` in one table, so that utterances with different constraints are searched as one batch.

    A state of the search is a row of the table. Rows are only appended, so states of streams stay valid.
    """

    def __init__(self, vocab_size: int, device: torch.device):
        self.weights = torch.zeros(0, vocab_size, device=device)
        self.following = torch.zeros(0, vocab_size, dtype=torch.int64, device=device)
        self.known: List[Constraints] = []  # kept alive, so that their ids stay unique
        self.first: Dict[int, int] = {}
        self.translations: Dict[Tuple[int, int], List[int]] = {}

    def batch(self, each: Sequence[Constraints]) -> BatchConstraints:
        """Return the table and the first state of each utterance's constraints; new constraints are appended."""
        added = [item for item in {id(item): item for item in each}.values() if id(item) not in self.first]
        if added:
            rows = np.cumsum([len(self.weights)] + [len(item.weights) for item in added]).tolist()
            following = [item.following + row for item, row in zip(added, rows)]
            self.known.extend(added)
            self.first.update((id(item), row) for item, row in zip(added, rows))
            device = self.weights.device
            weights = torch.from_numpy(np.concatenate([item.weights for item in added]))
            self.weights = torch.cat([self.weights, weights.to(device)])
            self.following = torch.cat([self.following, torch.from_numpy(np.concatenate(following)).to(device)])
        start = torch.tensor([self.first[id(item)] for item in each], device=self.weights.device)[:, None]
        return BatchConstraints(self.weights, self.following.flatten(), start)

    def add(self, constraints: Constraints) -> int:
        """Return the first state of these constraints; they are appended if they are new."""
        if id(constraints) not in self.first:
            self.batch([constraints])
        return self.first[id(constraints)]

    def translate(self, state: int, old: Constraints, new: Constraints) -> int:
        """Return the state of ``new`` that corresponds to ``state`` of ``old``.

        It is the state after the shortest text that leads to ``state``, without the symbols that ``new`` suppresses. So
        an open span is given up if ``new`` suppresses its task, and stays open otherwise. A text that has begun
        without the language token that ``new`` expects first goes on without one: it is too late for a language, and
        to wait for one would forbid all words.
        """
        key = (id(old), id(new))
        first, other = self.add(old), self.add(new)
        if key not in self.translations:
            self.translations[key] = [_state_after_allowed(new, text) for text in _shortest_texts(old)]
        return other + self.translations[key][state - first]


def _shortest_texts(constraints: Constraints) -> List[List[int]]:
    """Find for each state a shortest sequence of symbols that leads to it, breadth first."""
    texts: Dict[int, List[int]] = {0: []}
    queue = [0]
    for state in queue:
        for symbol in np.flatnonzero(constraints.weights[state] > NEG_INF).tolist():
            after = int(constraints.following[state, symbol])
            if after not in texts:
                texts[after] = [*texts[state], symbol]
                queue.append(after)
    return [texts[state] for state in range(len(constraints.weights))]


def _state_after_allowed(constraints: Constraints, symbols: Sequence[int]) -> int:
    """Return the state after the symbols, skipping those not allowed. They may lack the token that must come first."""
    state = 0
    for symbol in symbols:
        after = constraints.after([symbol], state)
        if after is None and state == 0:
            after = constraints.after([symbol], constraints.begun)
        state = state if after is None else after
    return state


class RowCache:
    """A bounded cache of rows, computed when first needed, on the device of the last call.

    ``make`` computes M rows from their numbers, (M, width) float32. If a call needs more than ``capacity`` rows, all of
    its rows are kept.
    """

    def __init__(self, make: Callable[[Sequence[int]], Tensor], width: int, capacity: int):
        self.make, self.width, self.capacity = make, width, capacity
        self._row_of: Dict[int, int] = {}
        self._rows = torch.empty(0, width)

    def look_up(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return M rows by their numbers, (M, width)."""
        if len(self._row_of) + len(numbers) > self.capacity or self._rows.device != device:
            self._row_of.clear()  # rows still needed are computed again
            self._rows = torch.empty(0, self.width, device=device)
        missing = [number for number in dict.fromkeys(numbers) if number not in self._row_of]
        if missing:
            first, end = len(self._row_of), len(self._row_of) + len(missing)
            if end > len(self._rows):
                larger = self._rows.new_empty(max(end, min(max(2 * end, 64), self.capacity)), self.width)
                larger[:first] = self._rows[:first]
                self._rows = larger
            self._rows[first:end] = self.make(missing)
            self._row_of.update(zip(missing, range(first, end)))
        rows = torch.tensor([self._row_of[number] for number in numbers], dtype=torch.int64, device=device)
        return self._rows.index_select(0, rows)


class FusionScorer(ABC):
    """A state machine over tokens that adds scores, in nats. States are integers below ``states``; 0 is the start."""

    def __init__(self, states: int, vocab_size: int):
        self.states, self.vocab_size = states, vocab_size
        self._rows = RowCache(lambda each: torch.stack([self.row(state) for state in each]), vocab_size, ROWS_KEPT)

    @abstractmethod
    def advance(self, state: int, token: int) -> int:
        """The state after a token; a blank does not change it."""

    @abstractmethod
    def gain(self, state: int, token: int) -> float:
        """The score of a token in a state: 0 for a blank, negative when more is taken back."""

    @abstractmethod
    def at_end(self, state: int) -> float:
        """The score that a hypothesis earns by ending in a state."""

    @abstractmethod
    def row(self, state: int) -> Tensor:
        """`gain` of every token in a state, (V,) float32."""

    def anew(self, state: int) -> int:
        """The state in which a new utterance begins after one that ended in ``state``, with no token of its own yet."""
        return 0

    def look_up(self, states: Sequence[int], device: torch.device) -> Tensor:
        """`row` of M states: (M, V), on a device."""
        return self._rows.look_up(states, device)

    def walk(self, tokens: Sequence[int]) -> Tuple[List[float], float]:
        """Return the gain of each token of a hypothesis, and the total that the finished hypothesis keeps."""
        gains, state = [], 0
        for token in tokens:
            gains.append(self.gain(state, token))
            state = self.advance(state, token)
        return gains, sum(gains) + self.at_end(state)


def check_bonus(options: SearchOptions, bonus: Optional[FusionScorer]) -> None:
    """Check that there is a bonus if and only if the options use one (raises ValueError)."""
    if options.earns != (bonus is not None):
        raise ValueError("hotwords, length_bonus and lm go together with their `bonus_for(options, tokenizer)`")


def biased_joiner(joiner: Joiner, options: SearchOptions, tokenizer: Tokenizer) -> Joiner:
    """Return a copy of the joiner with ``token_bias`` added to its output bias; the joiner itself if there is none.

    The copy shares the other parameters. Raises UserError for a token that is not in the vocabulary.
    """
    if not options.token_bias:
        return joiner
    shared = {id(x): x for x in joiner.parameters() if x is not joiner.output.bias}
    biased = copy.deepcopy(joiner, shared)
    with torch.no_grad():
        biased.output.bias.add_(torch.from_numpy(tokenizer.bias_of(options)).to(biased.output.bias))
    return biased


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Inference mode without autocast: the weights are cast once, to ``joiner_dtype``, and not again at each frame."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def project(joiner: Joiner, encoder_out: Tensor, options: SearchOptions) -> Tensor:
    """`Joiner.encoder_proj` in the dtype of the search: (..., C) -> (..., J) float32."""
    layer, dtype = joiner.encoder_proj, joiner_dtype(joiner, options)
    return F.linear(encoder_out.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)).float()


def joiner_dtype(joiner: Joiner, options: SearchOptions) -> torch.dtype:
    """The dtype of the joiner's matrix products: of encoder frames, predictor states and the output layer."""
    return getattr(torch, options.joiner_dtype) if options.joiner_dtype else joiner.output.weight.dtype


class PredictorTable:
    """The projected outputs of a stateless predictor (`Scorer.prepared`), computed once for each context.

    A stateless predictor depends only on the last ``context_size`` tokens, and a beam meets the same contexts again in
    neighbouring frames, hypotheses and utterances. A context is one integer, whose digits to the base V are its tokens.
    """

    def __init__(self, predictor: StatelessPredictor, joiner: Joiner, rows_at_once: int, dtype: torch.dtype):
        self.blank_id, self.activation = predictor.blank_id, joiner.activation
        self.base, self.size = predictor.embedding.num_embeddings, predictor.context_size
        self.modulus = self.base**self.size  # fits 64 bits (`StatelessPredictor`)
        self.start = sum(predictor.blank_id * self.base**i for i in range(self.size))
        factor = 2 if joiner.activation == "tanh" else 1
        self.weight, self.bias = ((factor * x.detach()).to(dtype) for x in joiner.predictor_proj.parameters())
        # The convolution of a context is a sum over its tokens: one table (V, D) for each place in the context, instead
        # of a grouped Conv1d on a few rows per frame, which is slow.
        embedding = predictor.embedding.weight.t().unsqueeze(0)
        taps = predictor.conv.weight.unbind(-1)
        groups = predictor.conv.groups
        self.taps = [F.conv1d(embedding, tap.unsqueeze(-1), groups=groups)[0].t().contiguous() for tap in taps]
        self.cache = RowCache(self._rows, joiner.output.in_features, FEWEST_ROWS)
        self.make_room(rows_at_once)

    def make_room(self, rows_at_once: int) -> None:
        """Expect up to ``rows_at_once`` contexts at once."""
        self.cache.capacity = max(self.cache.capacity, 4 * rows_at_once)

    def look_up(self, contexts: Sequence[int]) -> Tensor:
        """M contexts -> (M, J) float32."""
        return self.cache.look_up(contexts, self.weight.device)

    def after(self, contexts: Array, tokens: Array) -> Array:
        """Return the contexts (..) after one token each, (..), none of which is a blank."""
        return contexts % (self.modulus // self.base) * self.base + tokens

    def longer(self, contexts: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Return the contexts (..) after one symbol each, (..); a blank changes nothing."""
        return np.where(symbols == self.blank_id, contexts, self.after(contexts, symbols))

    def _rows(self, contexts: Sequence[int]) -> Tensor:
        tokens = [[context // self.base**i % self.base for context in contexts] for i in range(self.size)]
        state, *others = (
            tap.index_select(0, index)
            for tap, index in zip(reversed(self.taps), torch.tensor(tokens, device=self.weight.device))
        )
        for other in others:
            state += other
        rows = F.linear(state.relu_().to(self.weight.dtype), self.weight, self.bias)
        return bounded_exp(rows) if self.activation == "tanh" else rows.float()


class History:
    """The token history of an LSTM predictor: a context of the search.

    before: the history without the last token, until ``row`` is known. token: the last token. row: the projected output
    (J,). state: that of the LSTM (2, layers, D).
    """

    __slots__ = ("__weakref__", "before", "number", "row", "state", "token")

    def __init__(self, before: Optional[History], token: int, number: int):
        self.before, self.token, self.number = before, token, number
        self.row: Optional[Tensor] = None
        self.state: Optional[Tensor] = None


class PredictorStates:
    """The states of an LSTM predictor for each `History` of a search, with the interface of `PredictorTable`.

    A history lives as long as a hypothesis refers to it: the states of a stream are freed with the stream's memory.
    Histories with the same tokens are one object, so hypotheses with the same tokens share a row.
    """

    size = LstmPredictor.context_size

    def __init__(self, predictor: LstmPredictor, joiner: Joiner, dtype: torch.dtype):
        self.predictor, self.blank_id, self.activation = predictor, predictor.blank_id, joiner.activation
        factor = 2 if joiner.activation == "tanh" else 1
        self.weight, self.bias = ((factor * x.detach()).to(dtype) for x in joiner.predictor_proj.parameters())
        self._known: WeakValueDictionary[Tuple[int, int], History] = WeakValueDictionary()
        self._count = 0
        self.start = History(None, self.blank_id, 0)
        tokens = torch.tensor([self.blank_id], device=self.weight.device)
        self._run([self.start], *predictor.step(tokens))

    def __len__(self) -> int:
        """Number of live histories, without the start."""
        return len(self._known)

    def make_room(self, rows_at_once: int) -> None:
        """Do nothing: the number of histories has no bound."""

    def after(self, history: History, token: int) -> History:
        """Return the history after one more token, which must not be a blank."""
        key = (history.number, token)
        found = self._known.get(key)
        if found is None:
            self._count += 1
            found = self._known[key] = History(history, token, self._count)
        return found

    def longer(self, contexts: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Return the histories (..) after one symbol each, (..); a blank changes nothing."""
        longer = contexts.copy()
        for at in zip(*np.nonzero(symbols != self.blank_id)):
            longer[at] = self.after(contexts[at], int(symbols[at]))
        return longer

    def look_up(self, contexts: Sequence[History]) -> Tensor:
        """M histories -> (M, J) float32. Each, or the one without its last token, was looked up before."""
        new = [history for history in dict.fromkeys(contexts) if history.row is None]
        if new:
            tokens = torch.tensor([history.token for history in new], device=self.weight.device)
            states: List[Any] = [history.before.state for history in new if history.before is not None]
            self._run(new, *self.predictor.step(tokens, torch.stack(states, 2)))
        rows: List[Any] = [history.row for history in contexts]
        return torch.stack(rows)

    def _run(self, histories: Sequence[History], out: Tensor, state: Tensor) -> None:
        """Store outputs (M, D) and states (2, layers, M, D) as copies: others of the batch may be freed earlier."""
        rows = F.linear(out.to(self.weight.dtype), self.weight, self.bias)
        rows = bounded_exp(rows) if self.activation == "tanh" else rows.float()
        for history, row, after in zip(histories, rows, state.unbind(2)):
            history.row, history.state, history.before = row.clone(), after.clone(), None


class NumberedStates:
    """`PredictorStates` for a search that keeps its contexts in tensors, as numbers."""

    def __init__(self, states: PredictorStates):
        self.states, self.start = states, states.start.number
        self._history = {self.start: states.start}

    def look_up(self, numbers: Sequence[int]) -> Tensor:
        """See `PredictorStates`."""
        return self.states.look_up([self._history[number] for number in numbers])

    def after(self, numbers: Tensor, tokens: Tensor) -> Tensor:
        """Return the numbers (..) of the histories after one token each, (..)."""
        pairs = zip(numbers.flatten().tolist(), tokens.flatten().tolist())
        found = [self.states.after(self._history[number], token) for number, token in pairs]
        self._history.update((history.number, history) for history in found)
        return torch.tensor([history.number for history in found], device=numbers.device).view(numbers.shape)

    def keep(self, numbers: Tensor) -> None:
        """Forget all histories but these."""
        self._history = {number: self._history[number] for number in {self.start, *numbers.flatten().tolist()}}


class Scorer:
    """The joiner over one batch.

    ``logits = W tanh(a + b) + bias`` as in `Joiner.forward`, rewritten so that a frame costs one product and one
    reciprocal in place of a tanh: with r = 1 / (1 + exp(2a) exp(2b)), tanh(a + b) = 1 - 2r, hence
    ``logits = -2 W r + (bias + W 1)``. exp(2a) is computed once for all frames and exp(2b) once per context. A joiner
    with ReLU is computed directly.
    """

    def __init__(
        self,
        predictor: Predictor,
        joiner: Joiner,
        frames: Tensor,
        options: SearchOptions,
        bonus: Optional[FusionScorer] = None,
    ):
        """frames (T, N, J): the projected encoder output, time first. It is overwritten."""
        rows = frames.size(1) * options.width
        self.activation = joiner.activation
        self.frames = self.prepared(frames)
        dtype = joiner_dtype(joiner, options)
        self.contexts: Union[PredictorTable, PredictorStates]
        if isinstance(predictor, LstmPredictor):
            self.contexts = PredictorStates(predictor, joiner, dtype)
        else:
            self.contexts = PredictorTable(predictor, joiner, rows, dtype)
        self.symbols_per_frame = predictor.symbols_per_frame
        self.blank_id, self.vocab_size = predictor.blank_id, joiner.output.out_features
        self.options, self.bonus = options, bonus
        self.one = torch.ones((), device=frames.device)
        weight, bias = joiner.output.weight.detach(), joiner.output.bias.detach()
        self.reduced: Optional[torch.dtype] = None if dtype == torch.float32 else dtype
        if self.activation == "relu":
            reduced = self.reduced or torch.float32
            self.weight, self.bias = weight.to(reduced), bias.to(reduced)
        elif self.reduced is None:
            self.weight = -2 * weight.float()
            self.bias = (bias.double() + weight.double().sum(1)).float()
        else:  # 1/2 - r is formed in float32: r itself is near 1/2 where tanh is small, and would lose digits
            self.weight, self.bias = (2 * weight).to(dtype), bias.to(dtype)
        self.half = torch.full((), 0.5, device=frames.device)

    def over(self, frames: Tensor) -> Scorer:
        """Return this scorer over other frames (T, N, J), which are overwritten; both share the table of contexts."""
        other = copy.copy(self)
        other.frames = self.prepared(frames)
        self.contexts.make_room(frames.size(1) * self.options.width)
        return other

    def prepared(self, frames: Tensor) -> Tensor:
        """Convert projected encoder output for `log_probs`; the input may be overwritten."""
        return bounded_exp(frames.float().mul_(2)) if self.activation == "tanh" else frames.float()

    @property
    def stateless(self) -> bool:
        """Whether a context is a number given by the last tokens (`PredictorTable`)."""
        return isinstance(self.contexts, PredictorTable)

    def log_probs(self, frames: Tensor, contexts: Tensor) -> Tensor:
        """Rows of ``self.frames`` and of ``self.contexts``, (..., J) -> log-probabilities (..., V), float32."""
        if self.activation == "relu":
            r = torch.add(frames, contexts).relu_().to(self.weight.dtype)
        else:
            r = torch.addcmul(self.one, frames, contexts).reciprocal_()
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
        """Return a hypothesis with its score. ``log_probs`` and ``log_prob`` include the bonus of each token."""
        kept = 0.0
        if self.bonus is not None:
            gains, kept = self.bonus.walk(tokens)
            log_probs = [value - gain for value, gain in zip(log_probs, gains)]
            log_prob -= sum(gains)
        score = self.options.normalised(log_prob + kept, len(tokens) + self.contexts.size)
        # Differences of rounded scores can be above 0 by a rounding error; a log-probability must not.
        bounded = np.minimum(log_probs, 0.0).tolist()
        return Hypothesis(tuple(tokens), tuple(frames), tuple(bounded), log_prob, score)


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x), in place where x is float32."""
    return x.float().clamp_(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp_()
