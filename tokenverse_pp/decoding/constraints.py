"""Rules on what may be written next, as finite automata compiled into two NumPy tables.

A `Filter` is one rule: a start state, which symbols a state allows, and the state after a symbol. Filters compose:
`compile_tables` walks the states that all of them reach together and writes down, for each, a row of log-weights (0 or
-inf) over the vocabulary and a row of next states. In the search a hypothesis then carries one integer, and applying
every rule to a whole batch costs one table look-up a frame.

Nothing here needs torch: the search of `tokenverse_pp.runtime` works by the same tables.

Rules that follow from tasks: what is barred, and what keeps the task tokens well-formed.

They know tasks only through `Task.symbols` and `Task.ranks`, so a new task needs nothing here. Importing this needs no
torch: `tokenverse_pp.runtime` decodes by the same rules.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Collection, Dict, Hashable, List, Mapping, Optional, Protocol, Sequence, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import matching_languages
from tokenverse_pp.tasks.base import RANK_CLOSE, RANK_FRONT, RANK_OPEN, TaskSet
from tokenverse_pp.tasks.lid import language_token

if TYPE_CHECKING:
    from tokenverse_pp.base.search_options import SearchOptions
    from tokenverse_pp.decoding.scorer import Constraints

NEG_INF = -float("inf")


class Filter(ABC):
    """One rule. A symbol is a special token's surface such as ``[SCD]``, or None for any ordinary piece."""

    start: Hashable = None

    @abstractmethod
    def allows(self, state: Any, symbol: Optional[str]) -> bool:
        """Whether ``symbol`` may come next."""

    def advance(self, state: Any, symbol: Optional[str]) -> Any:
        """The state after ``symbol``, which may be barred by another rule only."""
        return state


@dataclass(frozen=True)
class RuleTables:
    """Compiled rules: ``weights`` (S, V) float32, 0 or -inf; ``following`` (S, V) int64. State 0 is the start."""

    weights: np.ndarray
    following: np.ndarray


def compile_tables(
    filters: Sequence[Filter], symbol_ids: Mapping[str, int], vocab_size: int, blank_id: int = 0
) -> RuleTables:
    """Compose filters.

    Args:
        filters: all must allow a symbol.
        symbol_ids: the special tokens and their ids; every other id but the blank is an ordinary piece.
        vocab_size: V, blank included.
        blank_id: always allowed, never changes a state.
    """
    rows = _walk(filters, symbol_ids)
    weights = np.zeros((len(rows), vocab_size), dtype=np.float32)
    following = np.repeat(np.arange(len(rows), dtype=np.int64)[:, None], vocab_size, axis=1)
    special = set(symbol_ids.values())
    ordinary = [i for i in range(vocab_size) if i != blank_id and i not in special]
    for i, row in enumerate(rows):
        for symbol, state_after in row.items():
            ids = ordinary if symbol is None else [symbol_ids[symbol]]
            if state_after is None:
                weights[i, ids] = NEG_INF
            else:
                following[i, ids] = state_after
    return RuleTables(weights, following)


def _walk(filters: Sequence[Filter], symbols: Mapping[str, int]) -> List[Dict[Optional[str], Optional[int]]]:
    """For each state that can be reached, the number of the state after each symbol, None where it is barred."""
    start = tuple(f.start for f in filters)
    number: Dict[Tuple[Hashable, ...], int] = {start: 0}
    pending = [start]
    rows: List[Dict[Optional[str], Optional[int]]] = []
    while pending:
        state = pending.pop(0)
        row: Dict[Optional[str], Optional[int]] = {}
        for symbol in (None, *symbols):
            row[symbol] = None
            if all(f.allows(s, symbol) for f, s in zip(filters, state)):
                after = tuple(f.advance(s, symbol) for f, s in zip(filters, state))
                if after not in number:
                    number[after] = len(number)
                    pending.append(after)
                row[symbol] = number[after]
        rows.append(row)
    return rows


SPACE = "▁"  # SentencePiece's space sign; as a piece of its own it is no word
UNKNOWN = "<unk>"
Place = Tuple[int, int]  # rank, index of the task
NOWHERE: Place = (-1, -1)
AFTER_FRONT: Place = (RANK_FRONT, sys.maxsize)


class PieceVocabulary(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """V, blank included."""

    def id_of(self, symbol: str) -> int:
        """The id of a task token."""

    def pieces(self, ids: Sequence[int]) -> List[str]:
        """The piece of each id."""


class Bar(Filter):
    """These symbols are never written."""

    def __init__(self, symbols: Collection[str]):
        self.symbols = frozenset(symbols)

    def allows(self, state: None, symbol: Optional[str]) -> bool:
        """All but the barred ones."""
        return symbol not in self.symbols


class StartsWith(Filter):
    """The first symbol written is one of these."""

    start = False

    def __init__(self, symbols: Collection[str]):
        self.symbols = frozenset(symbols)

    def allows(self, state: bool, symbol: Optional[str]) -> bool:
        """Anything, once one of them was written."""
        return state or symbol in self.symbols

    def advance(self, state: bool, symbol: Optional[str]) -> bool:
        """Whether something was written."""
        return True


class InOrder(Filter):
    """Task tokens between two words stand in the order in which `TaskSet.render` writes them, each kind once.

    Hence none comes twice in a row; a front token comes first of all and once; and closing tokens, endpoints and
    speaker changes, which follow a word, do not come before the first one. The state is whether there was a word, and
    the place of the last task token since.

    Args:
        places: for each symbol its (rank, index of its task).
    """

    start: Tuple[bool, Place] = (False, NOWHERE)

    def __init__(self, places: Mapping[str, Place]):
        self.places = places

    def allows(self, state: Tuple[bool, Place], symbol: Optional[str]) -> bool:
        """Pieces always; a task token after one of a lower place."""
        any_word, last = state
        if symbol is None or symbol not in self.places:
            return True
        place = self.places[symbol]
        if place[0] == RANK_FRONT:
            return not any_word and place > last
        return place > last and (any_word or place[0] == RANK_OPEN)

    def advance(self, state: Tuple[bool, Place], symbol: Optional[str]) -> Tuple[bool, Place]:
        """A piece starts anew, but for a lone space sign: that only ends the front."""
        if symbol is None:
            return True, NOWHERE
        if symbol == SPACE:
            return state[0], max(state[1], AFTER_FRONT)
        return state[0], self.places.get(symbol, state[1])


class Spans(Filter):
    """A closing symbol only after an opening one; no span within a span of the same task."""

    start = False

    def __init__(self, opening: Collection[str], closing: Collection[str]):
        self.opening, self.closing = frozenset(opening), frozenset(closing)

    def allows(self, state: bool, symbol: Optional[str]) -> bool:
        """Open what is closed, close what is open."""
        return symbol not in (self.opening if state else self.closing)

    def advance(self, state: bool, symbol: Optional[str]) -> bool:
        """Whether a span is open."""
        return symbol in self.opening or (state and symbol not in self.closing)


def constraints_for(
    tasks: TaskSet,
    active: Sequence[str],
    tokenizer: PieceVocabulary,
    languages: Optional[Sequence[str]] = None,
    force_language: Optional[bool] = None,
    blank_id: int = 0,
) -> Constraints:
    """`tables_for` of the same arguments, as the tensors that `search_frames` takes."""
    from tokenverse_pp.decoding.scorer import Constraints  # needs torch

    return Constraints.of(tables_for(tasks, active, tokenizer, languages, force_language, blank_id))


def tables_for(
    tasks: TaskSet,
    active: Sequence[str],
    tokenizer: PieceVocabulary,
    languages: Optional[Sequence[str]] = None,
    force_language: Optional[bool] = None,
    blank_id: int = 0,
) -> RuleTables:
    """What a model may write.

    The symbols of inactive tasks and ``<unk>`` are barred; those of active tasks stand where `parse` keeps them,
    as far as this can be said before the utterance ends: an ``[NE]`` still open at the end, and a ``[SCD]`` after
    the last word, can be written, and are dropped by `parse`.

    Args:
        tasks: all tasks that the model knows.
        active: names of the tasks to decode.
        tokenizer: gives the ids of their symbols.
        languages: codes of the languages that may be written, in any spelling: ``FRA`` and ``fr-CA`` allow the ``fr``
            of the model, ``pt`` its ``pt-BR`` and ``pt-PT``; None for all.
        force_language: whether a language token must come first (if ``lid`` is active); None for the default, which is
            yes, see `SearchOptions`.
        blank_id: the blank.

    Raises:
        UserError: for a task or language that the model does not know, or languages without the task ``lid``.
    """
    for name in active:
        if name not in tasks:
            raise UserError(f"task {name!r}: this model knows {', '.join(tasks.names)}")
    active_tasks = tasks.subset(active)
    barred = [s for task in tasks.tasks if task.name not in active_tasks for s in task.symbols]
    filters: List[Filter] = [Bar([UNKNOWN, *barred]), InOrder(_places(tasks))]
    for task in active_tasks.tasks:
        opening = [s for s, rank in task.ranks.items() if rank == RANK_OPEN]
        closing = [s for s, rank in task.ranks.items() if rank == RANK_CLOSE]
        if opening and closing:
            filters.append(Spans(opening, closing))
    filters.extend(_language_filters(active_tasks, languages, force_language))
    ids = {symbol: tokenizer.id_of(symbol) for symbol in tasks.symbols}
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    ids.update((piece, i) for i, piece in enumerate(pieces) if piece in (SPACE, UNKNOWN))
    return compile_tables(filters, ids, tokenizer.vocab_size, blank_id)


def _places(tasks: TaskSet) -> Dict[str, Place]:
    return {symbol: (rank, i) for i, task in enumerate(tasks.tasks) for symbol, rank in task.ranks.items()}


def languages_written(options: SearchOptions, tasks: Optional[TaskSet]) -> List[str]:
    """The languages of the model that may be written, as it spells them; none without the task ``lid``."""
    if tasks is None or "lid" not in tasks:
        return []
    own = list(tasks["lid"].options().get("languages", ()))
    if options.languages is None:
        return own
    meant = [language for code in options.languages for language in matching_languages(code, own)]
    return list(dict.fromkeys(meant))


def _language_filters(
    active: TaskSet, languages: Optional[Sequence[str]], force_language: Optional[bool]
) -> List[Filter]:
    if "lid" not in active:
        if languages is not None:
            raise UserError("search option 'languages': the task 'lid' is not active, so no language is written")
        return []
    known = active["lid"].symbols
    own = active["lid"].options().get("languages", ())
    meant = {code: matching_languages(code, own) for code in (own if languages is None else languages)}
    unknown = [language_token(code) for code, found in meant.items() if not found]
    if unknown:
        raise UserError(
            f"search option 'languages': this model does not write {', '.join(unknown)} but {', '.join(known)}"
        )
    allowed = tuple(dict.fromkeys(language_token(code) for found in meant.values() for code in found))
    filters: List[Filter] = [Bar([symbol for symbol in known if symbol not in allowed])]
    if force_language is None or force_language:
        filters.append(StartsWith(allowed))
    return filters
