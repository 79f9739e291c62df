"""Tokens grouped into what must not be torn apart: words, and task tokens."""

from __future__ import annotations

from typing import List, NamedTuple, Sequence, Tuple

from tokenverse_pp.search.hypothesis import Hypothesis
from tokenverse_pp.tasks.transcript import is_task_token

SPACE = "▁"


class Unit(NamedTuple):
    """A word or a task token: its tokens, the frame of each on the recording's clock, and their log-probabilities."""

    tokens: Tuple[int, ...]
    frames: Tuple[int, ...]
    log_probs: Tuple[float, ...]
    is_word: bool

    @property
    def start(self) -> int:
        """The frame of its first token."""
        return self.frames[0]


def units_of(hypothesis: Hypothesis, pieces: Sequence[str], first_frame: int) -> List[Unit]:
    """The units of a window's hypothesis.

    Args:
        hypothesis: frames count from the window's start.
        pieces: of the whole vocabulary.
        first_frame: where the window starts in the recording.
    """
    groups: List[List[int]] = []
    word_is_open = False
    for i, token in enumerate(hypothesis.tokens):
        mark = is_task_token(pieces[token])
        if mark or not word_is_open or pieces[token].startswith(SPACE):
            groups.append([i])
        else:
            groups[-1].append(i)
        word_is_open = not mark
    return [
        Unit(
            tuple(hypothesis.tokens[i] for i in group),
            tuple(hypothesis.frames[i] + first_frame for i in group),
            tuple(hypothesis.log_probs[i] for i in group),
            not is_task_token(pieces[hypothesis.tokens[group[0]]]),
        )
        for group in groups
    ]


def matches(left: Sequence[Unit], right: Sequence[Unit], tolerance: int) -> List[Tuple[int, int]]:
    """The best common subsequence of words that start within ``tolerance`` frames of each other.

    A pair at the same time weighs most, one ``tolerance`` frames apart least: of "yes yes yes" heard twice, words meet
    themselves even where that makes fewer pairs.

    Returns:
        Pairs of positions in ``left`` and ``right``, in order.
    """
    weight = {
        (i, j): tolerance + 1 - abs(a.start - b.start)
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if a.is_word and a.tokens == b.tokens and abs(a.start - b.start) <= tolerance
    }
    # The weight of the best subsequence of left[i:] and right[j:].
    best = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            paired = best[i + 1][j + 1] + weight.get((i, j), 0)
            best[i][j] = max(best[i + 1][j], best[i][j + 1], paired)
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            found.append((i, j))
            i, j = i + 1, j + 1
    return found
