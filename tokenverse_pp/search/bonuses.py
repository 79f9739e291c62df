"""What a hypothesis earns beside the model's log-probability: hotwords, length, a language model; alone or together."""

from __future__ import annotations

from typing import List, Optional, Protocol, Sequence, Tuple

import torch
from torch import Tensor

from tokenverse_pp.search.filters import languages_written
from tokenverse_pp.search.hotwords import Bonus, Vocabulary, hotword_phrases
from tokenverse_pp.search.language_model import language_model_for
from tokenverse_pp.search.options import SearchOptions
from tokenverse_pp.tasks.base import TaskSet


class Earnings(Protocol):
    """An automaton over tokens that gives and takes nats. States are integers, 0 the start."""

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


class Together:
    """Two of them at once: gains are added up."""

    def __init__(self, one: Earnings, other: Earnings):
        self.one, self.other = one, other
        self.states = one.states * other.states

    def _parts(self, state: int) -> Tuple[int, int]:
        return divmod(state, self.other.states)

    def advance(self, state: int, token: int) -> int:
        """See `Earnings`."""
        one, other = self._parts(state)
        return self.one.advance(one, token) * self.other.states + self.other.advance(other, token)

    def gain(self, state: int, token: int) -> float:
        """See `Earnings`."""
        one, other = self._parts(state)
        return self.one.gain(one, token) + self.other.gain(other, token)

    def look_up(self, states: Sequence[int], device: torch.device) -> Tensor:
        """See `Earnings`."""
        one, other = zip(*map(self._parts, states))
        return self.one.look_up(one, device) + self.other.look_up(other, device)

    def at_end(self, state: int) -> float:
        """See `Earnings`."""
        one, other = self._parts(state)
        return self.one.at_end(one) + self.other.at_end(other)

    def walk(self, tokens: Sequence[int]) -> Tuple[List[float], float]:
        """See `Earnings`."""
        (gains, kept), (more, kept_too) = self.one.walk(tokens), self.other.walk(tokens)
        return [a + b for a, b in zip(gains, more)], kept + kept_too


def bonus_for(options: SearchOptions, tokenizer: Vocabulary, tasks: Optional[TaskSet] = None) -> Optional[Earnings]:
    """What the options ask for, or None.

    Args:
        options: of the search.
        tokenizer: the model's.
        tasks: those that are decoded, to see which languages can be written.

    Raises:
        UserError: for hotwords or a language model that this model cannot use.
    """
    bonus: Optional[Earnings] = None
    if options.hotwords or options.length_bonus:
        pieces = tokenizer.pieces(range(tokenizer.vocab_size))
        phrases = hotword_phrases(options, tokenizer, languages_written(options, tasks))
        bonus = Bonus(phrases, pieces, options.length_bonus)
    if options.lm is None:
        return bonus
    model = language_model_for(options, tokenizer, tasks)
    return model if bonus is None else Together(bonus, model)
