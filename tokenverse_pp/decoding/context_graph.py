"""Shallow fusion: bonuses added to the model's log-probability, here for hotwords and for length.

Phrases are found by an Aho-Corasick automaton (1975) over SentencePiece tokens, like icefall's ``ContextGraph``: a trie
in which each node links to its longest proper suffix that is also a prefix of a phrase. While a phrase is being
written, each of its tokens earns the phrase's bonus at once, so that the hypothesis survives pruning. The bonus is kept
if the phrase is written *as whole words* (the next piece starts a word, or the hypothesis ends: "art" earns nothing in
"artist"), and is taken back if the phrase breaks off. So the bonus of a finished hypothesis depends only on its text:

    for each piece at which phrases start: the largest of their bonuses (tokens x bonus per token).

Blanks and task tokens earn nothing and do not break a phrase off: ``dr [NE] smith`` contains the phrase "dr smith".

A dense table (states, vocabulary) would have 25 million numbers for 10,000 phrases. Instead, the row of a state is
computed when a search needs it, and a bounded number of rows is kept.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import language_problem
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.data.lines import BLANKS, number_of, stray_control, text_lines
from tokenverse_pp.data.normalise import normalise
from tokenverse_pp.data.tokenizer import BLANK_ID, Tokenizer
from tokenverse_pp.decoding.constraints import SPACE, UNKNOWN
from tokenverse_pp.decoding.scorer import FusionScorer
from tokenverse_pp.tasks.transcript import is_task_token

TABLE_NUMBERS = 2**26  # numbers in a dense table on a GPU: 256 MiB each for gains and states
LARGEST_BONUS = 1e6  # nats per token: sums in float32 are exact to less than a nat
Phrase = Tuple[Sequence[int], float]


class FusedScorers(FusionScorer):
    """Two scorers combined: their gains are added."""

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

    def anew(self, state: int) -> int:
        """See `FusionScorer`."""
        one, other = divmod(state, self.other.states)
        return self.one.anew(one) * self.other.states + self.other.anew(other)

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
        phrases: token ids of each phrase, and the bonus per token. While a prefix shared by several phrases is written,
            it earns the largest of their bonuses.
        pieces: of the whole vocabulary.
        length_bonus: bonus for each token, task tokens included.
    """

    def __init__(self, phrases: Sequence[Phrase], pieces: Sequence[str], length_bonus: float = 0.0):
        self.length_bonus, self.blank_id = length_bonus, BLANK_ID
        self.starts_word = [piece.startswith(SPACE) for piece in pieces]
        self.idle = [is_task_token(piece) for piece in pieces]  # tokens that do not change the state
        self.children: List[Dict[int, int]] = [{}]
        token_bonus, whole = self._plant(phrases)
        super().__init__(len(self.children), len(pieces))
        self.suffix = [0] * self.states
        # Without the length bonus: what is kept if the hypothesis ends in a state, and what was given on the way to it.
        self.kept, self.given = [0.0] * self.states, [0.0] * self.states
        self._link(token_bonus, whole)
        self._starts_word, self._idle = torch.tensor(self.starts_word), torch.tensor(self.idle)
        self._given_from_start = torch.zeros(len(pieces))
        self._tables: Dict[torch.device, Tuple[Tensor, Tensor]] = {}
        for token, child in self.children[0].items():
            self._given_from_start[token] = self.given[child]

    def _plant(self, phrases: Sequence[Phrase]) -> Tuple[List[float], Dict[int, float]]:
        """Build the trie. Return the bonus of each node's token, and of each phrase by its last node."""
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
        """Compute suffix, ``kept`` and ``given`` of all nodes, breadth first, since they depend on shorter suffixes."""
        # On the path to a node: what its tokens earned; the part that is settled, because a phrase on it ended with a
        # word; and the largest part that is not, on this path or for a phrase that began later.
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
        """See `FusionScorer`; a task token does not change the state either."""
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

        None if they would exceed `TABLE_NUMBERS`. Computed once per device.
        """
        if self.states * self.vocab_size > TABLE_NUMBERS:
            return None
        if device in self._tables:
            return self._tables[device]
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
        self._tables[device] = torch.from_numpy(gains).float().to(device), torch.from_numpy(after).to(device)
        return self._tables[device]


def hotword_phrases(options: SearchOptions, tokenizer: Tokenizer, languages: Sequence[str] = ()) -> List[Phrase]:
    """Return the phrases of the options as token ids, each with its bonus per token.

    A phrase is encoded like text, at the start of a word. If the vocabulary does not cover all its characters, it is
    first normalised like the training texts (`tokenverse_pp.data.normalise`: lower case, no punctuation), by the rules
    of each language that may be written; where these differ, each form is a phrase.

    Args:
        languages: codes of the languages that may be written; empty if unknown.

    Raises:
        UserError: for a phrase with a task token, or with characters that the vocabulary does not cover in either form,
            and for a bonus above `LARGEST_BONUS`.
    """
    phrases: List[Phrase] = []
    for item in options.hotwords or ():
        phrase, bonus = (item, options.hotword_score) if isinstance(item, str) else item
        if bonus > LARGEST_BONUS:
            raise UserError(f"hotword {phrase!r}: expected a bonus of at most {LARGEST_BONUS:g}, got {bonus:g}")
        phrases.extend((ids, bonus) for ids in _encode(phrase, tokenizer, languages))
    return phrases


def _encode(phrase: str, tokenizer: Tokenizer, languages: Sequence[str]) -> List[List[int]]:
    if any("\ud800" <= character <= "\udfff" for character in phrase):  # JSON can hold it, a tokenizer cannot
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

    Raises UserError, naming a line whose bonus is not a number above 0.
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
