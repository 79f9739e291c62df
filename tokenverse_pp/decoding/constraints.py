"""Constraints on what a search may write next, compiled into two NumPy arrays.

A `Constraint` has a start state, and defines which symbols a state allows and which state follows a symbol.
`compile_constraints` visits the states that all constraints reach together and stores for each a row of log-weights (0
or -inf) over the vocabulary and a row of next states. In the search a hypothesis carries one integer, and all
constraints of a batch cost one look-up per frame.

The weights are added *after* the softmax, and scores are not normalised again. So the log-probability of a hypothesis
is that of the model, whatever is suppressed, and allowed hypotheses are ranked by the model's distribution conditioned
on being allowed. Normalising at each frame would reward prefixes after which most of the probability is suppressed
(label bias). The blank is always allowed, so constraints never empty a beam.

Constraints use only `Task.symbols` and `Task.ranks` of a task, so a new task needs no change here. This module does not
import torch, because `tokenverse_pp.runtime` decodes under the same constraints.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Collection, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import matching_languages
from tokenverse_pp.tasks.base import RANK_CLOSE, RANK_FRONT, RANK_OPEN, TaskSet
from tokenverse_pp.tasks.lid import language_token

if TYPE_CHECKING:
    from tokenverse_pp.base.options import SearchOptions
    from tokenverse_pp.data.tokenizer import Tokenizer

NEG_INF = -float("inf")
SPACE = "▁"  # SentencePiece's space sign; a piece of this sign alone is not a word
UNKNOWN = "<unk>"
Place = Tuple[int, int]  # rank, index of the task
NOWHERE: Place = (-1, -1)
AFTER_FRONT: Place = (RANK_FRONT, sys.maxsize)


@dataclass(frozen=True, eq=False)
class Constraints:
    """Compiled constraints: ``weights`` (S, V) float32, 0 or -inf; ``following`` (S, V) int64. State 0 is the start.

    ``begun`` is the state after a token that must come first (a language); 0 if none must.
    """

    weights: np.ndarray
    following: np.ndarray
    begun: int = 0

    def after(self, tokens: Sequence[int], state: int = 0) -> Optional[int]:
        """Return the state after vocabulary ids, or None if one of them is not allowed."""
        for token in tokens:
            if self.weights[state, token] == NEG_INF:
                return None
            state = int(self.following[state, token])
        return state

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether a sequence of vocabulary ids is allowed."""
        return self.after(tokens) is not None


class Constraint(ABC):
    """One constraint. A symbol is a special token's surface such as ``[SCD]``, or None for any ordinary piece."""

    start: Hashable = None

    @abstractmethod
    def allows(self, state: Any, symbol: Optional[str]) -> bool:
        """Whether ``symbol`` may come next."""

    def advance(self, state: Any, symbol: Optional[str]) -> Any:
        """The state after ``symbol``, which this constraint allows."""
        return state


def compile_constraints(
    each: Sequence[Constraint], symbol_ids: Mapping[str, int], vocab_size: int, blank_id: int = 0
) -> Constraints:
    """Compile constraints into one.

    A symbol must be allowed by all of ``each``. ``symbol_ids`` are those of the special tokens; every other id below
    ``vocab_size`` but the blank's is an ordinary piece. The blank is always allowed, and never changes a state.
    """
    special = set(symbol_ids.values())
    ids: Dict[Optional[str], List[int]] = {symbol: [i] for symbol, i in symbol_ids.items()}
    ids[None] = [i for i in range(vocab_size) if i != blank_id and i not in special]
    start = tuple(one.start for one in each)
    number: Dict[Tuple[Hashable, ...], int] = {start: 0}
    pending = [start]
    weights: List[np.ndarray] = []
    following: List[np.ndarray] = []
    for state in pending:
        weights.append(np.zeros(vocab_size, dtype=np.float32))
        following.append(np.full(vocab_size, number[state], dtype=np.int64))
        for symbol in (None, *symbol_ids):
            if not all(one.allows(s, symbol) for one, s in zip(each, state)):
                weights[-1][ids[symbol]] = NEG_INF
                continue
            after = tuple(one.advance(s, symbol) for one, s in zip(each, state))
            if after not in number:
                number[after] = len(number)
                pending.append(after)
            following[-1][ids[symbol]] = number[after]
    return Constraints(np.stack(weights), np.stack(following))


class Suppress(Constraint):
    """These symbols are never written."""

    def __init__(self, symbols: Collection[str]):
        self.symbols = frozenset(symbols)

    def allows(self, state: None, symbol: Optional[str]) -> bool:
        """Whether ``symbol`` is not suppressed."""
        return symbol not in self.symbols


class StartsWith(Constraint):
    """The first symbol written is one of these."""

    start = False

    def __init__(self, symbols: Collection[str]):
        self.symbols = frozenset(symbols)

    def allows(self, state: bool, symbol: Optional[str]) -> bool:
        """True after the first symbol, which must be one of ``symbols``."""
        return state or symbol in self.symbols

    def advance(self, state: bool, symbol: Optional[str]) -> bool:
        """Always True: a symbol was written."""
        return True


class InOrder(Constraint):
    """Task tokens between two words are in the order of `TaskSet.render`, each kind once.

    So no token comes twice in a row; a front token comes once, before everything else; and closing tokens, endpoints
    and speaker changes, which follow a word, do not come before the first word. The state is whether there was a word,
    and the place of the last task token after it. ``places``: for each symbol its (rank, index of its task).
    """

    start: Tuple[bool, Place] = (False, NOWHERE)

    def __init__(self, places: Mapping[str, Place]):
        self.places = places

    def allows(self, state: Tuple[bool, Place], symbol: Optional[str]) -> bool:
        """Pieces are always allowed; a task token only after one of a lower place."""
        any_word, last = state
        if symbol is None or symbol not in self.places:
            return True
        place = self.places[symbol]
        if place[0] == RANK_FRONT:
            return not any_word and place > last
        return place > last and (any_word or place[0] == RANK_OPEN)

    def advance(self, state: Tuple[bool, Place], symbol: Optional[str]) -> Tuple[bool, Place]:
        """A piece resets the order; a lone space sign only ends the front."""
        if symbol is None:
            return True, NOWHERE
        if symbol == SPACE:
            return state[0], max(state[1], AFTER_FRONT)
        return state[0], self.places.get(symbol, state[1])


class Spans(Constraint):
    """A closing symbol comes only after an opening one; spans of one task are not nested."""

    start = False

    def __init__(self, opening: Collection[str], closing: Collection[str]):
        self.opening, self.closing = frozenset(opening), frozenset(closing)

    def allows(self, state: bool, symbol: Optional[str]) -> bool:
        """False for an opening symbol inside a span, and for a closing symbol outside."""
        return symbol not in (self.opening if state else self.closing)

    def advance(self, state: bool, symbol: Optional[str]) -> bool:
        """Whether a span is open."""
        return symbol in self.opening or (state and symbol not in self.closing)


def constraints_for(
    tasks: TaskSet,
    active: Sequence[str],
    tokenizer: Tokenizer,
    languages: Optional[Sequence[str]] = None,
    force_language: Optional[bool] = None,
) -> Constraints:
    """Compile the constraints on what a model may write.

    The symbols of inactive tasks and ``<unk>`` are suppressed. Those of active tasks are allowed where `parse` keeps
    them, as far as this is known before the utterance ends: an ``[NE]`` that is never closed, and a ``[SCD]`` after the
    last word, can be written and are dropped by `parse`.

    Args:
        languages: codes of the languages that may be written, in any spelling: ``FRA`` and ``fr-CA`` allow the ``fr``
            of the model, ``pt`` its ``pt-BR`` and ``pt-PT``; None for all.
        force_language: whether a language token must come first (if ``lid`` is active); None for the default, which is
            yes, see `SearchOptions`.

    Raises:
        UserError: for a task or language that the model does not know, or languages without the task ``lid``.
    """
    active_tasks = tasks.chosen(active)
    suppressed = [s for task in tasks.tasks if task.name not in active_tasks for s in task.symbols]
    places = {symbol: (rank, i) for i, task in enumerate(tasks.tasks) for symbol, rank in task.ranks.items()}
    each: List[Constraint] = [Suppress([UNKNOWN, *suppressed]), InOrder(places)]
    for task in active_tasks.tasks:
        opening = [s for s, rank in task.ranks.items() if rank == RANK_OPEN]
        closing = [s for s, rank in task.ranks.items() if rank == RANK_CLOSE]
        if opening and closing:
            each.append(Spans(opening, closing))
    each.extend(_language_constraints(active_tasks, languages, force_language))
    ids = {symbol: tokenizer.id_of(symbol) for symbol in tasks.symbols}
    pieces = tokenizer.pieces()
    ids.update((piece, i) for i, piece in enumerate(pieces) if piece in (SPACE, UNKNOWN))
    compiled = compile_constraints(each, ids, tokenizer.vocab_size)
    first = [symbol for one in each if isinstance(one, StartsWith) for symbol in sorted(one.symbols)]
    return replace(compiled, begun=int(compiled.following[0, ids[first[0]]])) if first else compiled


def languages_written(options: SearchOptions, tasks: Optional[TaskSet]) -> List[str]:
    """Return the languages that may be written, in the model's spelling; none without the task ``lid``."""
    if tasks is None:
        return []
    if options.languages is None:
        return list(tasks.languages)
    meant = [language for code in options.languages for language in matching_languages(code, tasks.languages)]
    return list(dict.fromkeys(meant))


def check_language_task(active: TaskSet, languages: Optional[Sequence[str]]) -> None:
    """Raise UserError if languages are restricted but the task ``lid`` is not active."""
    if languages is not None and "lid" not in active:
        raise UserError("search option 'languages': the task 'lid' is not active, so no language is written")


def _language_constraints(
    active: TaskSet, languages: Optional[Sequence[str]], force_language: Optional[bool]
) -> List[Constraint]:
    check_language_task(active, languages)
    if "lid" not in active:
        return []
    known = active["lid"].symbols
    own = active.languages
    meant = {code: matching_languages(code, own) for code in (own if languages is None else languages)}
    unknown = [language_token(code) for code, found in meant.items() if not found]
    if unknown:
        raise UserError(
            f"search option 'languages': this model does not write {', '.join(unknown)} but {', '.join(known)}"
        )
    allowed = tuple(dict.fromkeys(language_token(code) for found in meant.values() for code in found))
    each: List[Constraint] = [Suppress([symbol for symbol in known if symbol not in allowed])]
    if force_language is None or force_language:
        each.append(StartsWith(allowed))
    return each
