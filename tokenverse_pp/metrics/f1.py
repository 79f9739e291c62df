"""Precision, recall and F1: of events between words (by position or time) and of named entities (as phrases)."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

TOKEN = -1  # the token in a sequence of word numbers (which are >= 0)
ROUNDING = 1e-6  # seconds: 1.1 + 0.25 is not 1.35 in binary


def count_aligned(
    ref_words: Sequence[str], ref_positions: Sequence[int], hyp_words: Sequence[str], hyp_positions: Sequence[int]
) -> int:
    """The number of tokens that match between reference and hypothesis once their words are aligned.

    A position p is the gap before word p. The tokens are inserted between the words of both sides, and the two
    sequences are aligned such that tokens match only tokens. Words have priority: of all alignments with the fewest
    word errors (Levenshtein), the one with the most matching tokens counts. A token between the same (possibly
    misrecognised) words is therefore correct, a token that is off by one correct word is not, and the result does
    not depend on how an aligner breaks ties.

    A word error costs more than all tokens together, an unmatched token costs 1. The least cost is then
    ``weight * word_errors + unmatched``, which gives the number of matches without a traceback.

    Time O(len(ref) * len(hyp)), one numpy operation per row.

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
    """Word numbers with TOKEN inserted at the positions, (U + number of positions,)."""
    sequence: List[int] = []
    done = 0
    for position in sorted(positions):
        sequence.extend(words[done:position])
        sequence.append(TOKEN)
        done = position
    sequence.extend(words[done:])
    return np.asarray(sequence, dtype=np.int64)


def _edit_cost(ref: np.ndarray, hyp: np.ndarray, weight: int) -> int:
    """Least cost of turning ``ref`` into ``hyp``: ``weight`` per word error, 1 per token inserted or deleted.

    A token never replaces a word. Rows are prefixes of ``ref``, columns prefixes of ``hyp``.
    """
    insertions = np.where(hyp == TOKEN, 1, weight)
    # Cost of inserting the first j symbols. Within a row, a path that enters at column k continues by insertions:
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


Prf = Dict[str, Union[int, float]]


def f1_score(tp: int, fp: int, fn: int) -> Prf:
    """Precision, recall and F1 (fractions 0..1), with the counts they come from.

    A ratio 0/0 is 0, unless there was nothing to find and nothing was found: then all three are 1.

    >>> f1_score(tp=3, fp=1, fn=0)
    {'precision': 0.75, 'recall': 1.0, 'f1': 0.8571428571428571, 'tp': 3, 'fp': 1, 'fn': 0}
    """
    if tp == fp == fn == 0:
        precision = recall = f1 = 1.0
    else:
        precision = tp / max(tp + fp, 1)
        recall = tp / max(tp + fn, 1)
        f1 = 2 * tp / (2 * tp + fp + fn)
    return {"precision": precision, "recall": recall, "f1": f1, "tp": tp, "fp": fp, "fn": fn}


Interval = Tuple[float, float]
# Words and positions of the reference, then of the hypothesis; position p is the gap before word p.
Positions = Tuple[Sequence[str], Sequence[int], Sequence[str], Sequence[int]]


def score_positions(examples: Sequence[Positions]) -> Prf:
    """Precision, recall and F1 of tokens by their position in the aligned words (`count_aligned`), micro-averaged.

    >>> score_positions([("ja nee".split(), [1, 2], "ja nou nee".split(), [2])])["recall"]
    0.5
    """
    tp = sum(count_aligned(*example) for example in examples)
    references = sum(len(example[1]) for example in examples)
    hypotheses = sum(len(example[3]) for example in examples)
    return f1_score(tp, hypotheses - tp, references - tp)


def score_times(examples: Sequence[Tuple[Sequence[Interval], Sequence[float]]], collar: float) -> Prf:
    """Precision, recall and F1 of events by their time, micro-averaged.

    Args:
        examples: (reference intervals, hypothesised times) of each utterance, in seconds. A time is correct
            within ``[start - collar, end + collar]`` of an interval; times and intervals are paired one to one,
            with as many pairs as possible.
        collar: seconds of tolerance at both ends.

    >>> score_times([([(1.0, 1.5), (3.0, 3.0)], [1.7, 2.0])], collar=0.25)["f1"]
    0.5
    """
    tp = sum(_most_pairs(intervals, times, collar) for intervals, times in examples)
    references = sum(len(intervals) for intervals, _ in examples)
    hypotheses = sum(len(times) for _, times in examples)
    return f1_score(tp, hypotheses - tp, references - tp)


def _most_pairs(intervals: Sequence[Interval], times: Sequence[float], collar: float) -> int:
    """The size of a maximum one-to-one matching of times to intervals.

    Times are processed in order; each takes the free interval that contains it and ends first (by the usual
    exchange argument, no other choice pairs more).
    """
    collar += ROUNDING
    ahead = sorted((start - collar, end + collar) for start, end in intervals)
    open_ends: List[float] = []
    pairs = seen = 0
    for time in sorted(times):
        while seen < len(ahead) and ahead[seen][0] <= time:
            heapq.heappush(open_ends, ahead[seen][1])
            seen += 1
        while open_ends and open_ends[0] < time:
            heapq.heappop(open_ends)
        if open_ends:
            heapq.heappop(open_ends)
            pairs += 1
    return pairs


Phrase = Tuple[str, Optional[str]]  # the words of an entity, its type (None where untyped)
SOFT_SIMILARITY = 0.5


def score_entities(examples: Sequence[Tuple[Sequence[Phrase], Sequence[Phrase]]]) -> Dict[str, Prf]:
    """Precision, recall and F1 of (phrase, type) pairs, micro-averaged; positions are ignored.

    - ``exact``: F1 of SLUE (Shon et al., "SLUE: New Benchmark Tasks for Spoken Language Understanding",
      2022): phrase and type are the same; compared as multisets, utterance by utterance. For 0/0 see
      `f1_score` (SLUE: 0).
    - ``soft``: tolerates misrecognised words. Types are the same and phrases are similar (`similarity` >= 0.5),
      paired one to one, with as many pairs as possible. SLUE has no such score, and "soft" has other meanings
      elsewhere: compare it only with figures computed here.
    - ``label``: label-F1 of SLUE: types alone, as multisets. Without types, only the number of entities counts.

    A reference without a type (None) says nothing of it: a hypothesis of any type has the same type. ``examples``:
    (reference phrases, hypothesised phrases) of each utterance.

    >>> ref, hyp = [("amélie", "PER"), ("deux", "NUM")], [("amélia", "PER"), ("deux", "NUM")]
    >>> scores = score_entities([(ref, hyp)])
    >>> scores["exact"]["f1"], scores["soft"]["f1"], scores["label"]["f1"]
    (0.5, 1.0, 1.0)
    """
    exact = soft = label = 0
    for ref, hyp in examples:
        exact += _in_common(ref, hyp)
        label += _in_common([("", kind) for _, kind in ref], [("", kind) for _, kind in hyp])
        alike = [
            [j for j, h in enumerate(hyp) if r[1] in (None, h[1]) and similarity(r[0], h[0]) >= SOFT_SIMILARITY]
            for r in ref
        ]
        soft += maximum_matching(alike)
    references = sum(len(ref) for ref, _ in examples)
    hypotheses = sum(len(hyp) for _, hyp in examples)
    return {
        name: f1_score(tp, hypotheses - tp, references - tp)
        for name, tp in (("exact", exact), ("soft", soft), ("label", label))
    }


def similarity(a: str, b: str) -> float:
    """1 - (edit distance in characters / longer length): 1 for equal phrases, 0 at worst.

    >>> similarity("amélie", "amélia")
    0.8333333333333334
    """
    import kaldialign  # here, because tasks are imported where kaldialign is not installed (tokenverse_pp.runtime)

    longest = max(len(a), len(b))
    return 1.0 - kaldialign.edit_distance(list(a), list(b))["total"] / longest if longest else 1.0


def maximum_matching(admissible: Sequence[Sequence[int]]) -> int:
    """The size of a maximum matching in a bipartite graph (augmenting paths, breadth first).

    ``admissible``: for each node of the left side the nodes of the right side that it may be paired with.
    """
    right_of: Dict[int, int] = {}  # left -> right
    left_of: Dict[int, int] = {}  # right -> left
    for root in range(len(admissible)):
        reached_from: Dict[int, int] = {}  # right -> the left node from which it was reached
        queue = [root]
        for left in queue:
            new = [right for right in admissible[left] if right not in reached_from]
            reached_from.update(dict.fromkeys(new, left))
            free = next((right for right in new if right not in left_of), None)
            if free is not None:
                # Walk back to the root, giving each left node the right node that was reached from it.
                end: Optional[int] = free
                while end is not None:
                    left = reached_from[end]
                    left_of[end], right_of[left], end = left, end, right_of.get(left)
                break
            queue.extend(left_of[right] for right in new)
    return len(left_of)


def _in_common(ref: Sequence[Phrase], hyp: Sequence[Phrase]) -> int:
    """The most pairs with the same phrase and type; references without a type take what those with one leave."""
    same = Counter(phrase for phrase in ref if phrase[1] is not None) & Counter(hyp)
    left = Counter(phrase for phrase, _ in (Counter(hyp) - same).elements())
    any_type = Counter(phrase for phrase, kind in ref if kind is None)
    return sum(same.values()) + sum((any_type & left).values())
