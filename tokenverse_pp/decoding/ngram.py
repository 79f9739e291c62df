r"""Back-off n-gram models over token ids: the model, reading it from ARPA files, building it from word lists.

``log P(token | context)`` is that of the n-gram if the model has it, else the context's back-off weight plus
``log P(token | context without its first token)`` (Katz 1987; the rule of every ARPA file).

**ARPA files**, as written by SRILM, KenLM, IRSTLM and others, hold n-grams over the pieces of the tokenizer, separated
by spaces (``▁the ▁c at``): the text is encoded before the model is trained. Log-probabilities are to the base 10.
N-grams with pieces that the tokenizer does not have are skipped; pieces that the file does not have are as probable as
the rarest one. A file must be complete: a section for each length, in order, with as many n-grams as stated after
``\data\``, and ``\end\`` (even in a file without counts). Comments may precede ``\data\`` and follow ``\end\``.

**Word lists** with frequencies need neither running text nor the tokenizer of a model, and exist for a hundred
languages. A recogniser trained on few hours of speech knows too few words. Each word is a sentence of its own,
``<s> pieces </s>``, so the model gives the probability of a piece after the word's pieces so far, and of the end of the
word. Smoothing is that of Witten and Bell (1991, interpolated): with c the count of an n-gram, C that of its context,
and T the number of different tokens after the context,
``P(token | context) = (c + T P(token | shorter context)) / (C + T)``. It needs counts: shares of 1 or of 100 would be
too small in comparison with T, so `read_words` converts them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Iterator, List, NoReturn, Optional, Sequence, Set, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing
from tokenverse_pp.data.lines import BLANKS, fields, number_of, stray_control, text_lines

Gram = Tuple[int, ...]
Grams = Dict[Gram, Tuple[float, float]]  # n-grams of one length with log-probability and back-off weight, in nats
NEVER = -99.0  # what files write for log10(0)
LN_10 = math.log(10)
ARRAYS = ("suffix", "back_off", "token", "log_prob", "first")  # of `Ngrams`
ORDER = 6  # eight scored no better than six on human_speech
MOST_SHARES = 150.0  # the sum of shares of 1, or of per cent, with room for rounding
WORDS_OF_SHARES = 1e6  # words of running text that shares stand for: more change little
_COUNT = re.compile(r"ngram[ \t]+([0-9]{1,3})[ \t]*=[ \t]*([0-9]{1,18})")
_WEIGHT = re.compile(r"-?[0-9]*\.[0-9]+")
_SECTION = re.compile(r"\\([0-9]{1,3})-grams:")


@dataclass(frozen=True)
class Level:
    """All n-grams of one length m, sorted by their context and then by their last token, (K,) each.

    context: the row of the first m - 1 tokens among the n-grams one shorter (0 for single tokens). token: the last one.
    log_prob: its log-probability in nats; -inf for ``<s>``, which is never predicted. back_off: weight of the n-gram as
    a context, in nats. suffix: the row of its longest proper suffix in the model, as a *state* (see `Ngrams`).
    """

    context: np.ndarray
    token: np.ndarray
    log_prob: np.ndarray
    back_off: np.ndarray
    suffix: np.ndarray


class Ngrams:
    """A back-off model. A state is a context: 0 is the empty one, followed by one for each n-gram, level by level.

    Args:
        levels: single tokens first. The first m - 1 tokens of every n-gram must be an n-gram too.
        size: number of tokens, of which ``<s>`` and ``</s>`` are the last two.
    """

    def __init__(self, levels: Sequence[Level], size: int):
        starts = np.cumsum([1] + [len(level.token) for level in levels])
        # The n-grams that continue a state are rows first[state] to first[state + 1] of these, each a state itself.
        parent = np.concatenate(
            [np.zeros(len(levels[0].token), dtype=np.int64)]
            + [before + level.context for before, level in zip(starts, levels[1:])]
        )
        self._set(
            size,
            suffix=np.concatenate([[0], *(level.suffix for level in levels)]),
            back_off=np.concatenate([[0.0], *(level.back_off for level in levels)]),
            token=np.concatenate([level.token for level in levels]),
            log_prob=np.concatenate([level.log_prob for level in levels]),
            first=np.searchsorted(parent, np.arange(starts[-1] + 1)),
        )

    def _set(self, size: int, **arrays: np.ndarray) -> None:
        self.size, self.begin, self.end = size, size - 2, size - 1
        self.suffix, self.back_off, self.token, self.log_prob, self.first = (arrays[name] for name in ARRAYS)
        self.states = len(self.suffix)
        single = self.log_prob[: self.first[1]]
        self.lowest = float(single[np.isfinite(single)].min())
        # Each state or, where nothing follows it and backing off is free, its longest suffix with the same predictions.
        idle = (self.first[:-1] == self.first[1:]) & (self.back_off == 0)
        idle[0] = False
        self.useful = np.arange(self.states)
        while idle[self.useful].any():
            self.useful = np.where(idle[self.useful], self.suffix[self.useful], self.useful)
        self.start = self.advance(0, self.begin)

    def save(self, path: Path) -> None:
        """Write the model as an ``.npz`` file, which `load` reads in a fraction of the time it took to build."""
        with replacing(path) as temporary:
            arrays = {name: getattr(self, name) for name in ARRAYS}
            np.savez(
                temporary,
                size=self.size,
                **{k: x.astype(np.int32) if x.dtype.kind == "i" else x for k, x in arrays.items()},
            )

    @classmethod
    def load(cls, path: Path) -> Ngrams:
        """Read what `save` wrote (raises OSError, ValueError, KeyError, zipfile.BadZipFile if it is incomplete)."""
        model = cls.__new__(cls)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
            model._set(
                int(file["size"]), **{k: x.astype(np.int64) if x.dtype.kind == "i" else x for k, x in arrays.items()}
            )
        return model

    def advance(self, state: int, token: int) -> int:
        """Return the longest context that is a suffix of the state's tokens plus ``token``."""
        while True:
            low, high = self.first[state], self.first[state + 1]
            at = low + int(np.searchsorted(self.token[low:high], token))
            if at < high and self.token[at] == token:
                return int(self.useful[at + 1])
            if state == 0:
                return 0
            state = int(self.suffix[state])

    def row(self, state: int) -> np.ndarray:
        """log P(token | state) of every token, (size,) float64; unknown tokens are as rare as the rarest."""
        chain: List[int] = []
        while state:
            chain.append(state)
            state = int(self.suffix[state])
        row = np.full(self.size, self.lowest)
        for context in (0, *reversed(chain)):
            if context:
                row += self.back_off[context]
            inside = slice(self.first[context], self.first[context + 1])
            row[self.token[inside]] = self.log_prob[inside]
        row[self.begin] = -np.inf
        return row


def read_arpa(path: Path, pieces: Sequence[str]) -> Ngrams:
    """Read an ARPA file over ``pieces``, the whole vocabulary in the order of its ids.

    Raises:
        UserError: for an incomplete or malformed file, naming file, line and reason.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    begin, end = len(pieces), len(pieces) + 1
    ids.update({"<s>": begin, "</s>": end})
    found = _Arpa(Path(path), ids).read()
    if not found or not any(gram[0] < len(pieces) for gram in found[0]):
        raise UserError(f"{path}: holds no n-gram of this model's pieces; was the text encoded with its tokenizer?")
    found[0][(begin,)] = (-math.inf, found[0].get((begin,), (0.0, 0.0))[1])  # given, never predicted
    if not any(math.isfinite(value) for gram, (value, _) in found[0].items() if gram[0] < len(pieces)):
        raise UserError(f"{path}: all pieces have the log-probability {NEVER:g} (probability 0): not a language model")
    if found[0].get((end,), (0.0, 0.0))[0] == -math.inf:
        raise UserError(f"{path}: </s> has the log-probability {NEVER:g}: no hypothesis could end")
    return _ngrams(found, len(pieces) + 2)


class _Arpa:
    """Reader of one file; ``number`` is the line read last."""

    def __init__(self, path: Path, ids: Dict[str, int]):
        self.path, self.ids, self.number = path, ids, 0
        self.weighted: Dict[int, Tuple[int, str]] = {}  # by length: the first line with a back-off weight

    def read(self) -> List[Grams]:
        """The n-grams of each length with log-probability and back-off weight, in nats."""
        lines = self._lines()
        counts, first = self._counts(lines)
        line: Optional[str] = first
        levels: List[Grams] = []
        while line is not None and (_SECTION.fullmatch(line) or len(levels) < len(counts)):
            length = len(levels) + 1
            if line == f"\\{length}-grams:":
                level, line = self._section(lines, length, counts[length - 1] if length <= len(counts) else None)
                levels.append(level)
            elif length <= len(counts) and counts[length - 1] == 0:
                levels.append({})  # some tools omit empty sections
            else:
                self._expected(f"\\{length}-grams:", line)
        if line != "\\end\\":
            self._expected(f"\\{len(levels) + 1}-grams:" if len(levels) < len(counts) else "\\end\\", line)
        if counts and len(levels) > len(counts):
            self._bad(f"the file states no {len(levels)}-grams, but has them")
        if len(levels) in self.weighted:
            self.number, weighted = self.weighted[len(levels)]
            self._bad(f"a back-off weight of an n-gram of the highest order: {weighted!r}")
        for line in lines:  # to the end: a compressed file may be cut off
            if line in ("\\data\\", "\\end\\") or _SECTION.fullmatch(line) or _COUNT.fullmatch(line):
                self._bad(f"expected nothing of a model after \\end\\, found {line!r}")
        return levels

    def _lines(self) -> Iterator[str]:
        """Yield non-blank lines without surrounding blanks, but with a trailing tab, which shows a missing weight."""
        for number, line in text_lines(self.path, "a language model"):
            self.number = number
            if line.strip(BLANKS):
                yield line.lstrip(BLANKS).rstrip(" ")

    def _counts(self, lines: Iterator[str]) -> Tuple[List[int], str]:
        """Return the number of n-grams of each length, if the file states it, and the first section's line."""
        counts: List[int] = []
        begun = False
        for line in lines:
            match = _COUNT.fullmatch(line)
            if line == "\\data\\" and not counts:
                begun = True
            elif match is not None:
                if int(match[1]) != len(counts) + 1:
                    self._bad(f"expected `ngram {len(counts) + 1}=COUNT`, found {line!r}")
                counts.append(int(match[2]))
            elif _SECTION.fullmatch(line):
                return counts, line
            elif begun or counts:
                self._expected(f"`ngram {len(counts) + 1}=COUNT` or \\1-grams:", line)
        if begun or counts:
            self._expected("\\1-grams:", None)
        raise UserError(f"{self.path}: not an ARPA file: no line \\data\\ in its {self.number} lines")

    def _section(self, lines: Iterator[str], length: int, count: Optional[int]) -> Tuple[Grams, Optional[str]]:
        """The n-grams of a section, and the line after it; None at the file's end."""
        level: Grams = {}
        others: Set[str] = set()  # n-grams with unknown pieces
        read, after = 0, None
        for line in lines:
            if line == "\\end\\" or _SECTION.fullmatch(line):
                after = line
                break
            words, value, weight = self._ngram(line, length)
            read += 1
            if count is not None and read > count:
                self._bad(f"the file states {count} {length}-grams, this is one more: {line!r}")
            if weight != 0:
                self.weighted.setdefault(length, (self.number, line))
            known = all(word in self.ids for word in words)
            gram, name = tuple(self.ids[word] for word in words) if known else (), " ".join(words)
            if gram in level or name in others:
                self._bad(f"{length}-gram {name!r} is there twice")
            if not known:
                others.add(name)
            else:
                level[gram] = (-math.inf if value <= NEVER else value * LN_10, weight * LN_10)
        if count is not None and read < count:
            cut = "; the file ends here, as if it was cut off" if after is None else ""
            self._bad(f"the file states {count} {length}-grams, {read} are there{cut}")
        return level, after

    def _ngram(self, line: str, length: int) -> Tuple[List[str], float, float]:
        """Words, log-probability and back-off weight of a line, to the base 10."""
        cells = [cell.strip(" ") for cell in line.split("\t")]
        words = fields(cells[1]) if 2 <= len(cells) <= 3 else []
        value, weight = number_of(cells[0]), number_of(cells[2]) if len(cells) == 3 else 0.0
        if len(words) != length or value is None or weight is None:
            # Not separated as by SRILM and KenLM: treat spaces and tabs alike.
            other_length = bool(words) and value is not None and weight is not None
            parts = fields(line)
            words = parts[1 : length + 1]
            value = number_of(parts[0])
            weight = number_of(parts[length + 1]) if len(parts) == length + 2 else 0.0
            # A word too few, if the last one is a back-off weight.
            short = len(parts) == length + 1 and words[-1] not in self.ids and _WEIGHT.fullmatch(words[-1])
            wrong = other_length or short or not length + 1 <= len(parts) <= length + 2 or not cells[-1]
            if wrong or value is None or weight is None:
                if any(part.lower().lstrip("+-") in ("nan", "inf", "infinity") for part in (parts[0], parts[-1])):
                    self._bad(f"expected finite numbers, found {line!r}")
                self._bad(f"no {length}-gram of the ARPA format (log-probability, {length} words, weight): {line!r}")
        if not math.isfinite(value * LN_10) or not math.isfinite(weight * LN_10):
            self._bad(f"expected finite numbers, found {line!r}")
        if value > 0:
            self._bad(f"a log-probability above 0: {line!r}")
        return words, value, weight

    def _expected(self, what: str, found: Optional[str]) -> NoReturn:
        if found is None:
            self._bad(f"the file ends here, as if it was cut off; expected {what}")
        self._bad(f"expected {what}, found {found!r}")

    def _bad(self, reason: str) -> NoReturn:
        raise UserError(f"{self.path}, line {max(self.number, 1)}: {reason}")


def _ngrams(found: Sequence[Grams], size: int) -> Ngrams:
    state: Dict[Gram, int] = {(): 0}
    levels: List[Level] = []
    before, last = 0, 1  # the states of the first n-grams of the last level and of this one
    for grams in found:
        kept = sorted((state[gram[:-1]], gram[-1], gram) for gram in grams if gram[:-1] in state)
        if not kept:
            break
        suffixes = [next((state[gram[i:]] for i in range(1, len(gram)) if gram[i:] in state), 0) for _, _, gram in kept]
        values = np.array([grams[gram] for _, _, gram in kept])
        context = np.array([parent for parent, _, _ in kept]) - before
        token = np.array([token for _, token, _ in kept])
        levels.append(Level(context, token, values[:, 0], values[:, 1], np.array(suffixes)))
        state.update({gram: last + i for i, (_, _, gram) in enumerate(kept)})
        before, last = last, last + len(kept)
    return Ngrams(levels, size)


def read_words(path: Path) -> Dict[str, float]:
    """Read ``word TAB frequency`` lines (any number above 0: a count, or a rate per million words), also from ``.gz``.

    Shares of running text (of 1, or per cent) are converted to rates per million words, which they become if they sum
    to a million. A list holds shares if its numbers are not all whole, and sum to at most `MOST_SHARES`.

    Raises:
        UserError: naming a line that is not of this form.
    """
    words: Dict[str, float] = {}
    for number, line in text_lines(path, "words"):
        word, _, count = (part.strip(BLANKS) for part in line.partition("\t"))
        if not word and not count:
            continue
        frequency = number_of(count)
        if not word or len(fields(word)) > 1 or stray_control(line) or not 0 < (frequency or 0) < math.inf:
            raise UserError(f"{path}, line {number}: expected 'word TAB number above 0', found {line.strip(BLANKS)!r}")
        words[word] = words.get(word, 0.0) + float(count)
    if not words:
        raise UserError(f"{path}: holds no word")
    total = sum(words.values())
    if total <= MOST_SHARES and not all(frequency.is_integer() for frequency in words.values()):
        words = {word: frequency / total * WORDS_OF_SHARES for word, frequency in words.items()}
    return words


def ngrams_of_words(words: Sequence[Tuple[Sequence[int], float]], vocab_size: int, order: int = ORDER) -> Ngrams:
    """Build a model from words, at least one: the ids of each word's tokens, and how often it occurs.

    The model's tokens are the V of the vocabulary, then ``<s>`` and ``</s>``. ``order``: length of the longest n-grams.
    """
    size = vocab_size + 2
    lengths = np.array([len(tokens) + 2 for tokens, _ in words])
    token = np.array([t for tokens, _ in words for t in (size - 2, *tokens, size - 1)], dtype=np.int64)
    weight = np.repeat([frequency for _, frequency in words], lengths)
    place = np.arange(len(token)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # within its word
    count = np.bincount(token, weight, size)
    count[size - 2] = 0.0  # <s> is given, not predicted
    every = np.arange(size)  # single tokens: all that there are
    levels = [_level(np.zeros(size, dtype=np.int64), every, count, np.full(size, 1 / (size - 1)), every * 0)]
    levels[0].log_prob[size - 2] = -np.inf
    here = token  # at each place: the row of the n-gram of the previous length that ends there
    first = 1  # the state of the previous level's first row
    for length in range(2, order + 1):
        at = np.flatnonzero(place >= length - 1)
        if not len(at):
            break
        key, which, inverse = np.unique(here[at - 1] * size + token[at], return_index=True, return_inverse=True)
        suffix = here[at][which]  # the n-gram without its first token
        counted, shorter = np.bincount(inverse.ravel(), weight[at]), levels[-1]
        level = _level(*np.divmod(key, size), counted, np.exp(shorter.log_prob[suffix]), first + suffix)
        levels[-1] = _backing_off(shorter, level.context, counted)
        levels.append(level)
        first += len(shorter.token)
        here = np.full(len(token), -1, dtype=np.int64)
        here[at] = inverse.ravel()
    return Ngrams(levels, size)


def _level(context: np.ndarray, token: np.ndarray, count: np.ndarray, lower: np.ndarray, suffix: np.ndarray) -> Level:
    """Build the n-grams of one length from their counts; ``lower``: P(token | shorter context)."""
    kinds, total = np.bincount(context, count > 0), np.bincount(context, count)  # T and C of each context
    log_prob = np.log((count + kinds[context] * lower) / (total + kinds)[context])
    return Level(context, token, log_prob, np.zeros(len(token)), suffix)


def _backing_off(level: Level, context: np.ndarray, count: np.ndarray) -> Level:
    """Return the level with back-off weights T / (C + T); a context that nothing follows keeps 1."""
    kinds, total = np.bincount(context, count > 0), np.bincount(context, count)
    followed = np.flatnonzero(kinds)
    back_off = level.back_off.copy()
    back_off[followed] = np.log(kinds[followed] / (total + kinds)[followed])
    return replace(level, back_off=back_off)
