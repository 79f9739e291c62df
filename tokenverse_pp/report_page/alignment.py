"""Reference beside hypothesis: words aligned with words, task tokens with task tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import AbstractSet, List, Optional, Sequence, Tuple

from tokenverse_pp.tasks.transcript import is_task_token

MOST_CELLS = 1_000_000  # of the alignment's table: about a second


@dataclass(frozen=True)
class Said:
    """A word or task token of a hypothesis, with start and end (seconds) and confidence as far as it has them."""

    text: str
    start: Optional[float] = None
    end: Optional[float] = None
    confidence: Optional[float] = None


@dataclass(frozen=True)
class Pair:
    """One column of an alignment.

    ``kind``: ``ok``, ``sub``, ``ins`` or ``del``; for task tokens ``ok``, ``ins`` (too many), ``del`` (missed), or
    ``free`` where nobody labelled the reference for the token's task.
    """

    kind: str
    ref: Optional[str]
    hyp: Optional[Said]

    @property
    def is_token(self) -> bool:
        """True for a task token."""
        return is_task_token(self.ref if self.ref is not None else self.hyp.text)  # type: ignore[union-attr]


def align(ref: Sequence[str], hyp: Sequence[Said], judged: AbstractSet[str]) -> Optional[List[Pair]]:
    """Align words and task tokens of a reference with those of a hypothesis.

    As `metrics.align.count_aligned` counts: the fewest word errors come first (Levenshtein), then the most task
    tokens that meet their like, then the most right words; a task token never meets a word.

    Args:
        ref: words and task tokens.
        hyp: words and task tokens.
        judged: the task tokens that the reference is labelled for.

    Returns:
        The columns in order; None where the two are too long for it.
    """
    if (len(ref) + 1) * (len(hyp) + 1) > MOST_CELLS:
        return None
    said = [item.text for item in hyp]
    costs = _costs(ref, said)
    pairs: List[Pair] = []
    i, j = len(ref), len(hyp)
    unit = _unit(ref, said)
    while i or j:
        here = costs[i][j]
        if i and j and here == costs[i - 1][j - 1] + _replace(ref[i - 1], said[j - 1], unit):
            i, j = i - 1, j - 1
            pairs.append(Pair("ok" if ref[i] == said[j] else "sub", ref[i], hyp[j]))
        elif j and here == costs[i][j - 1] + _alone(said[j - 1], unit):
            j -= 1
            kind = "free" if is_task_token(said[j]) and said[j] not in judged else "ins"
            pairs.append(Pair(kind, None, hyp[j]))
        else:
            i -= 1
            pairs.append(Pair("del", ref[i], None))
    return pairs[::-1]


def count_errors(pairs: Sequence[Pair]) -> Tuple[int, int, int]:
    """Insertions, deletions and substitutions of words."""
    kinds = [pair.kind for pair in pairs if not pair.is_token]
    return kinds.count("ins"), kinds.count("del"), kinds.count("sub")


def _unit(ref: Sequence[str], hyp: Sequence[str]) -> int:
    """What an unmatched task token costs: more than all words that are substituted (1 each, beside their error)."""
    return len(ref) + len(hyp) + 1


def _alone(symbol: str, unit: int) -> int:
    """What it costs to leave a symbol without a partner; a word error costs more than all task tokens together."""
    return unit if is_task_token(symbol) else unit * unit


def _replace(ref: str, hyp: str, unit: int) -> int:
    if ref == hyp:
        return 0
    # Dearer than to leave both alone, so never taken, where either is a task token.
    return 3 * unit * unit if is_task_token(ref) or is_task_token(hyp) else unit * unit + 1


def _costs(ref: Sequence[str], hyp: Sequence[str]) -> List[List[int]]:
    """Least cost of turning the first i of ``ref`` into the first j of ``hyp``, (len(ref) + 1, len(hyp) + 1)."""
    unit = _unit(ref, hyp)
    insert = [_alone(symbol, unit) for symbol in hyp]
    rows = [[0]]
    for cost in insert:
        rows[0].append(rows[0][-1] + cost)
    for symbol in ref:
        above, delete = rows[-1], _alone(symbol, unit)
        row = [above[0] + delete]
        for j, other in enumerate(hyp):
            row.append(min(above[j] + _replace(symbol, other, unit), row[j] + insert[j], above[j + 1] + delete))
        rows.append(row)
    return rows
