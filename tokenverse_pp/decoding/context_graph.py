"""Shallow fusion: what hypotheses earn beside the model's log-probability. Here, for hotwords and for their length.

Phrases are found by an Aho-Corasick automaton (1975) over SentencePiece tokens, as by icefall's ``ContextGraph``: a
trie in which each node knows its longest proper suffix that is a prefix of a phrase too. While a phrase is being
written each of its tokens earns the phrase's bonus at once, so that it survives pruning. The bonus is kept when the
phrase stands there *as whole words* (the next piece starts a word, or the hypothesis ends: "art" earns nothing in
"artist"), and is taken back when the phrase breaks off. So the bonus of a finished hypothesis depends on its text
alone:

    for each piece at which phrases start: the largest of their bonuses (tokens x bonus a token).

Blanks and task tokens neither earn nor break anything: ``dr [NE] smith`` holds the phrase "dr smith".

A dense table (states, vocabulary) would hold 25 million numbers for 10,000 phrases. Instead, the row of a state is made
when a search asks for it, and a bounded number of rows is kept.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import language_problem
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.data.lines import BLANKS, number_of, stray_control, text_lines
from tokenverse_pp.data.normalise import normalise
from tokenverse_pp.data.tokenizer import BLANK_ID, Tokenizer
from tokenverse_pp.decoding.constraints import SPACE, UNKNOWN
from tokenverse_pp.tasks.transcript import is_task_token

ROWS_KEPT = 4096
TABLE_NUMBERS = 2**26  # of a dense table on a GPU: 256 MiB each for gains and states
LARGEST_BONUS = 1e6  # nats for a token: sums of them are exact in float32 to less than a nat
Phrase = Tuple[Sequence[int], float]


class RowCache:
    """A bounded table of rows that are made when they are first asked for, on the device that asked last.

    Args:
        make: numbers of M rows -> (M, width) float32.
        width: of a row.
        capacity: rows that are kept at most (when more are asked for at once, these).
    """

    def __init__(self, make: Callable[[Sequence[int]], Tensor], width: int, capacity: int):
        self.make, self.width, self.capacity = make, width, capacity
        self._row_of: Dict[int, int] = {}
        self._rows = torch.empty(0, width)

    def look_up(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """M rows by their numbers, (M, width)."""
        if len(self._row_of) + len(numbers) > self.capacity or self._rows.device != device:
            self._row_of.clear()  # what is still needed is made again
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
    """States over tokens that add scores, in nats. States are integers below ``states``, 0 the start.

    Args:
        states: how many states there are.
        vocab_size: V.
    """

    def __init__(self, states: int, vocab_size: int):
        self.states, self.vocab_size = states, vocab_size
        self._rows = RowCache(lambda each: torch.stack([self.row(state) for state in each]), vocab_size, ROWS_KEPT)

    @abstractmethod
    def advance(self, state: int, token: int) -> int:
        """The state after a token; a blank leaves it as it is."""

    @abstractmethod
    def gain(self, state: int, token: int) -> float:
        """What a token earns in a state, 0 for a blank; negative when more is taken back."""

    @abstractmethod
    def at_end(self, state: int) -> float:
        """What a hypothesis that ends in a state earns by ending."""

    @abstractmethod
    def row(self, state: int) -> Tensor:
        """`gain` of every token in a state, (V,) float32."""

    def look_up(self, states: Sequence[int], device: torch.device) -> Tensor:
        """`row` of M states: (M, V), on a device."""
        return self._rows.look_up(states, device)

    def walk(self, tokens: Sequence[int]) -> Tuple[List[float], float]:
        """What each token of a hypothesis earned when it was written, and what the finished hypothesis keeps."""
        gains, state = [], 0
        for token in tokens:
            gains.append(self.gain(state, token))
            state = self.advance(state, token)
        return gains, sum(gains) + self.at_end(state)


class FusedScorers(FusionScorer):
    """Two scorers at once: gains are added up."""

    def __init__(self, one: FusionScorer, other: FusionScorer):
        super().__init__(one.states * other.states, one.vocab_size)
        self.one, self.other = one, other

    def advance(self, state: int, token: int) -> int:
        """See `FusionScorer`."""
        one, other = divmod(state, self.other.states)
        return self.one.advance(one, token) * self.other.states + self.other.advance(other, token)

    def gain(self, state: int, token: int) -> float:
        """See `FusionScorer`."""
        one, other = divmod(state, self.other.states)
        return self.one.gain(one, token) + self.other.gain(other, token)

    def at_end(self, state: int) -> float:
        """See `FusionScorer`."""
        one, other = divmod(state, self.other.states)
        return self.one.at_end(one) + self.other.at_end(other)

    def row(self, state: int) -> Tensor:
        """See `FusionScorer`."""
        one, other = divmod(state, self.other.states)
        return self.one.row(one) + self.other.row(other)

    def look_up(self, states: Sequence[int], device: torch.device) -> Tensor:
        """See `FusionScorer`; each part caches its own rows, of which there are fewer."""
        one, other = zip(*(divmod(state, self.other.states) for state in states))
        return self.one.look_up(one, device) + self.other.look_up(other, device)

    def walk(self, tokens: Sequence[int]) -> Tuple[List[float], float]:
        """See `FusionScorer`."""
        (gains, kept), (more, kept_too) = self.one.walk(tokens), self.other.walk(tokens)
        return [a + b for a, b in zip(gains, more)], kept + kept_too


class ContextGraph(FusionScorer):
    """The automaton of phrases, and the length bonus.

    Args:
        phrases: token ids of each, and the bonus of each of its tokens. While a prefix is written that phrases share,
            it earns the largest of their bonuses.
        pieces: of the whole vocabulary.
        length_bonus: for each token that is written, task tokens included.
    """

    def __init__(self, phrases: Sequence[Phrase], pieces: Sequence[str], length_bonus: float = 0.0):
        self.length_bonus, self.blank_id = length_bonus, BLANK_ID
        self.starts_word = [piece.startswith(SPACE) for piece in pieces]
        self.idle = [is_task_token(piece) for piece in pieces]  # tokens that leave the state as it is
        self.children: List[Dict[int, int]] = [{}]
        token_bonus, whole = self._plant(phrases)
        super().__init__(len(self.children), len(pieces))
        self.suffix = [0] * self.states
        # Without the length bonus: what was given on the way to a state, and what is kept if the hypothesis ends there.
        self.kept, self.given = [0.0] * self.states, [0.0] * self.states
        self._link(token_bonus, whole)
        self._starts_word, self._idle = torch.tensor(self.starts_word), torch.tensor(self.idle)
        self._given_from_start = torch.zeros(len(pieces))
        self._tables: Dict[torch.device, Tuple[Tensor, Tensor]] = {}
        for token, child in self.children[0].items():
            self._given_from_start[token] = self.given[child]

    def _plant(self, phrases: Sequence[Phrase]) -> Tuple[List[float], Dict[int, float]]:
        """Build the trie -> the bonus of each node's token, and of each phrase by the node at which it ends."""
        token_bonus = [0.0]
        whole: Dict[int, float] = {}
        for tokens, bonus in phrases:
            node = 0
            for token in tokens:
                if token not in self.children[node]:
                    self.children[node][token] = len(self.children)
                    self.children.append({})
                    token_bonus.append(bonus)
                node = self.children[node][token]
                token_bonus[node] = max(token_bonus[node], bonus)
            whole[node] = max(whole.get(node, 0.0), bonus * len(tokens))
        return token_bonus, whole

    def _link(self, token_bonus: Sequence[float], whole: Dict[int, float]) -> None:
        """Find suffixes, ``kept`` and ``given`` of all nodes, breadth first: a suffix is shorter, hence done."""
        # On the way to a node: what its tokens earned; how much of that is settled, since a phrase ended on it with a
        # word; and the most that is not, here or for a phrase that began later.
        earned, settled, under_way = ([0.0] * self.states for _ in range(3))
        queue = [0]
        for node in queue:
            for token, child in self.children[node].items():
                queue.append(child)
                link = self.suffix[child] = self._after(self.suffix[node], token) if node else 0
                earned[child] = earned[node] + token_bonus[child]
                ended = whole.get(node, 0.0) if self.starts_word[token] else 0.0
                settled[child] = max(settled[node], ended)
                self.kept[child] = self.kept[link] + max(0.0, whole.get(child, 0.0) - settled[child])
                under_way[child] = max(under_way[link], 0.0 if child in whole else earned[child] - settled[child])
                self.given[child] = self.kept[child] + under_way[child]

    def _after(self, state: int, token: int) -> int:
        """The state after a piece: the longest suffix of what was written that is a prefix of a phrase."""
        while state and token not in self.children[state]:
            state = self.suffix[state]
        return self.children[state].get(token, 0)

    def advance(self, state: int, token: int) -> int:
        """See `FusionScorer`; a task token leaves the state as it is too."""
        return state if token == self.blank_id or self.idle[token] else self._after(state, token)

    def gain(self, state: int, token: int) -> float:
        """See `FusionScorer`."""
        if token == self.blank_id:
            return 0.0
        if self.idle[token]:
            return self.length_bonus
        kept = self.kept[state] if self.starts_word[token] else 0.0
        return self.length_bonus + kept - self.given[state] + self.given[self._after(state, token)]

    def at_end(self, state: int) -> float:
        """See `FusionScorer`."""
        return self.kept[state] - self.given[state]

    def row(self, state: int) -> Tensor:
        """See `FusionScorer`."""
        suffixes = []
        node = state
        while node:
            suffixes.append(node)
            node = self.suffix[node]
        given = self._given_from_start.clone()  # in the state after each token
        for node in reversed(suffixes):
            for token, child in self.children[node].items():
                given[token] = self.given[child]
        row = given + self._starts_word.float() * self.kept[state] - self.given[state] + self.length_bonus
        row[self._idle] = self.length_bonus
        row[self.blank_id] = 0.0
        return row

    def tables(self, device: torch.device) -> Optional[Tuple[Tensor, Tensor]]:
        """`gain` and `advance` of every state and token, (S, V) float32 and int32, for a search on a GPU.

        None where that is more than `TABLE_NUMBERS`. Made once a device.
        """
        if self.states * self.vocab_size > TABLE_NUMBERS:
            return None
        if device not in self._tables:
            gains, after = self._dense()
            self._tables[device] = torch.from_numpy(gains).to(device), torch.from_numpy(after).to(device)
        return self._tables[device]

    def _dense(self) -> Tuple[np.ndarray, np.ndarray]:
        after = np.zeros((self.states, self.vocab_size), dtype=np.int32)
        queue = [0]
        for state in queue:  # breadth first: the row of a suffix is complete
            if state:
                after[state] = after[self.suffix[state]]
            for token, child in self.children[state].items():
                after[state, token] = child
                queue.append(child)
        given, kept = np.asarray(self.given), np.asarray(self.kept)
        gains = given[after] - given[:, None] + kept[:, None] * np.asarray(self.starts_word) + self.length_bonus
        idle = np.flatnonzero(self.idle)
        gains[:, idle], gains[:, self.blank_id] = self.length_bonus, 0.0
        after[:, [*idle, self.blank_id]] = np.arange(self.states)[:, None]
        return gains.astype(np.float32), after


def hotword_phrases(options: SearchOptions, tokenizer: Tokenizer, languages: Sequence[str] = ()) -> List[Phrase]:
    """The phrases of the options as tokens, each with the bonus of one of its tokens.

    A phrase is encoded like text, at the start of a word. If the vocabulary lacks a character of it, it is first
    normalised like the training texts (`tokenverse_pp.data.normalise`: lower case, no punctuation), by the rules of
    each language that may be written; where these differ, each form is a phrase.

    Args:
        options: of the search.
        tokenizer: the model's.
        languages: codes of the languages that may be written; none where they are not known.

    Raises:
        UserError: for a phrase that holds a task token, or characters that the vocabulary lacks in either form, and for
            a bonus above `LARGEST_BONUS`.
    """
    phrases: List[Phrase] = []
    for item in options.hotwords or ():
        phrase, bonus = (item, options.hotword_score) if isinstance(item, str) else item
        if bonus > LARGEST_BONUS:
            raise UserError(f"hotword {phrase!r}: expected a bonus of at most {LARGEST_BONUS:g}, got {bonus:g}")
        phrases.extend((ids, bonus) for ids in _encode(phrase, tokenizer, languages))
    return phrases


def _encode(phrase: str, tokenizer: Tokenizer, languages: Sequence[str]) -> List[List[int]]:
    if any("\ud800" <= character <= "\udfff" for character in phrase):  # which JSON can hold, and no tokenizer takes
        raise UserError(f"hotword {phrase!r}: expected a text, found half of a surrogate pair")
    if any(is_task_token(word) for word in phrase.split()):
        raise UserError(f"hotword {phrase!r}: expected plain words, found a task token")
    rules = [code for code in languages if not language_problem(code)]
    for texts in ([phrase], [normalise(phrase, code) for code in rules], [normalise(phrase)]):
        forms = [tokenizer.encode(text) for text in dict.fromkeys(texts)]
        whole = [ids for ids in forms if ids and UNKNOWN not in tokenizer.pieces(ids)]
        if whole:
            return whole
    raise UserError(f"hotword {phrase!r}: the model's vocabulary lacks some of its characters")


def read_hotwords(path: Union[str, Path]) -> Tuple[Union[str, Tuple[str, float]], ...]:
    """Read phrases for `SearchOptions.hotwords`: a line is ``phrase`` or ``phrase TAB bonus``; empty lines are skipped.

    Raises:
        UserError: naming the line whose bonus is no number above 0.
    """
    found: List[Union[str, Tuple[str, float]]] = []
    for number, line in text_lines(path, "hotwords"):
        phrase, _, given = (part.strip(BLANKS) for part in line.partition("\t"))
        if not phrase.strip() and not given:
            continue
        bonus = number_of(given) if given else 1.0
        if not phrase.strip() or stray_control(line) or bonus is None or not 0 < bonus < math.inf:
            raise UserError(f"{path}, line {number}: expected 'phrase' or 'phrase TAB number above 0', found {line!r}")
        found.append((phrase, bonus) if given else phrase)
    return tuple(found)
