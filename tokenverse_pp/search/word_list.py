"""From a list of words with their frequencies to an n-gram model of how words are written in tokens.

A frequency list needs neither running text nor the tokenizer of a model, can be had for a hundred languages, and is
what a recogniser of few hours lacks most: it has heard too few words to know which strings of letters are words. Each
word is a sentence of its own, ``<s> pieces </s>``, so the model says how likely a piece is after the word's pieces so
far, and how likely the word is over.

Smoothing is Witten and Bell's (1991, interpolated): with c the count of an n-gram, C that of its context, and T the
number of different tokens seen after it, ``P(token | context) = (c + T P(token | shorter context)) / (C + T)``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Dict, Sequence, Tuple

import numpy as np

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.lines import BLANKS, fields, number_of, stray_control, text_lines
from tokenverse_pp.search.ngram import Level, Ngrams

ORDER = 6
Words = Dict[str, float]


def read_words(path: Path) -> Words:
    """Read ``word TAB frequency`` lines (any number above 0, as counts or per million words); ``.gz`` too.

    Raises:
        UserError: naming the line that is none.
    """
    words: Words = {}
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
    return words


def ngrams_of_words(words: Sequence[Tuple[Sequence[int], float]], vocab_size: int, order: int = ORDER) -> Ngrams:
    """The model of words that are given as tokens with a frequency; at least one is needed.

    Args:
        words: ids of each word's tokens, and how often it occurs.
        vocab_size: V; the model's tokens are these, then ``<s>`` and ``</s>``.
        order: n-grams have at most so many tokens. Eight scored no better than six on human_speech.
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
    here = token  # at each place: the row of the n-gram of the last length that ends there
    first = 1  # the state of the last level's first row
    for length in range(2, order + 1):
        at = np.flatnonzero(place >= length - 1)
        if not len(at):
            break
        key, which, inverse = np.unique(here[at - 1] * size + token[at], return_index=True, return_inverse=True)
        suffix = here[at][which]  # ends where the n-gram does and is one token shorter
        counted, shorter = np.bincount(inverse.ravel(), weight[at]), levels[-1]
        level = _level(*np.divmod(key, size), counted, np.exp(shorter.log_prob[suffix]), first + suffix)
        levels[-1] = _backing_off(shorter, level.context, counted)
        levels.append(level)
        first += len(shorter.token)
        here = np.full(len(token), -1, dtype=np.int64)
        here[at] = inverse.ravel()
    return Ngrams(levels, size)


def _totals(context: np.ndarray, count: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """T and C of each context."""
    return np.bincount(context, count > 0), np.bincount(context, count)


def _level(context: np.ndarray, token: np.ndarray, count: np.ndarray, lower: np.ndarray, suffix: np.ndarray) -> Level:
    """One length's n-grams, from what occurs how often; ``lower``: P(token | shorter context)."""
    kinds, total = _totals(context, count)
    log_prob = np.log((count + kinds[context] * lower) / (total + kinds)[context])
    return Level(context, token, log_prob, np.zeros(len(token)), suffix)


def _backing_off(level: Level, context: np.ndarray, count: np.ndarray) -> Level:
    """A level with its weights as contexts, T / (C + T); what nothing follows keeps 1."""
    kinds, total = _totals(context, count)
    followed = np.flatnonzero(kinds)
    back_off = level.back_off.copy()
    back_off[followed] = np.log(kinds[followed] / (total + kinds)[followed])
    return replace(level, back_off=back_off)
