"""How many tokens that stand between words are in the same place in a reference and a hypothesis."""

from __future__ import annotations

from typing import List, Sequence

import numpy as np

TOKEN = -1  # stands for the token in a sequence of word numbers (which are >= 0)


def count_aligned(
    ref_words: Sequence[str],
    ref_positions: Sequence[int],
    hyp_words: Sequence[str],
    hyp_positions: Sequence[int],
) -> int:
    """The number of tokens that reference and hypothesis have in common once their words are aligned.

    A position p is the gap before word p. The tokens are written between the words of both sides and the two
    sequences are aligned so that a token can meet only a token. Words come first: of all alignments with the
    fewest word errors (Levenshtein), the one in which most tokens meet. So a token is right if the words
    around it are wrong, as long as it stands between the same words; it is wrong if it stands one (right)
    word off; and the result does not hang on how an aligner breaks ties.

    A word error weighs more than all tokens together, an unmatched token weighs 1: the least cost then is
    ``weight * word_errors + unmatched``, from which the number of matches follows without tracing back.

    Time O(len(ref) * len(hyp)), one numpy operation a row.

    >>> count_aligned("a b c d".split(), [2], "a x b y".split(), [3])  # a (x) b | c->y (d)
    1
    >>> count_aligned("a b c d".split(), [2], "a b c d".split(), [3])
    0
    """
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*ref_words, *hyp_words]))}
    ref = _with_tokens([vocabulary[word] for word in ref_words], ref_positions)
    hyp = _with_tokens([vocabulary[word] for word in hyp_words], hyp_positions)
    tokens = len(ref_positions) + len(hyp_positions)
    weight = tokens + 1
    unmatched = _edit_cost(ref, hyp, weight) % weight
    return (tokens - unmatched) // 2


def _with_tokens(words: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """Word numbers with TOKEN put in at the positions, (U + number of positions,)."""
    sequence: List[int] = []
    done = 0
    for position in sorted(positions):
        sequence.extend(words[done:position])
        sequence.append(TOKEN)
        done = position
    sequence.extend(words[done:])
    return np.asarray(sequence, dtype=np.int64)


def _edit_cost(ref: np.ndarray, hyp: np.ndarray, weight: int) -> int:
    """Least cost of turning ``ref`` into ``hyp``: ``weight`` a word error, 1 a token inserted or deleted.

    A token never takes the place of a word. Rows are prefixes of ``ref``, columns prefixes of ``hyp``.
    """
    insertions = np.where(hyp == TOKEN, 1, weight)
    # Cost of inserting the first j symbols. Within a row, what enters at column k goes on by insertions:
    # row[j] = min over k <= j of entry[k] - inserted[k] + inserted[j].
    inserted = np.concatenate([[0], np.cumsum(insertions)])
    never = weight * (len(ref) + len(hyp) + 1)
    row = inserted
    for symbol in ref:
        deletion = 1 if symbol == TOKEN else weight
        replaced = np.where((hyp == TOKEN) == (symbol == TOKEN), weight, never)
        entry = row + deletion
        entry[1:] = np.minimum(entry[1:], row[:-1] + np.where(hyp == symbol, 0, replaced))
        row = inserted + np.minimum.accumulate(entry - inserted)
    return int(row[-1])
