"""Thresholds of the cascade, by grid on the dev set: the F1 in the aligned words that the package's scoring gives."""

from __future__ import annotations

from itertools import product
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple, TypeVar

from cascade import MARKS, ChangeRule, EndRule, Rules, Token, change_tokens, end_tokens
from lhotse.cut import Cut
from turns_pass import WINDOWS
from whisper_words import SpokenWord

from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.metrics.f1 import count_aligned, f1_score
from tokenverse_pp.tasks import build_tasks, transcript_of

DISTANCES = tuple(round(0.02 * i, 2) for i in range(1, 31))
PAUSES = (0.0, 0.032, 0.064, 0.096, 0.128, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)

Rule = TypeVar("Rule", ChangeRule, EndRule)
Heard = Mapping[str, Tuple[Sequence[SpokenWord], Mapping[str, Any]]]
"""By cut id: Whisper's words and the record of `turns_pass`."""


def change_grid(marks: Sequence[str]) -> List[ChangeRule]:
    """Every rule that is tried for speaker changes."""
    return [ChangeRule(d, w, p, m) for m, w, p, d in product(marks, range(len(WINDOWS)), PAUSES, DISTANCES)]


def end_grid(marks: Sequence[str]) -> List[EndRule]:
    """Every rule that is tried for endpoints."""
    return [EndRule(p, m) for m, p in product(marks, PAUSES)]


def tune(cuts: Sequence[Cut], heard: Heard, punctuation: bool) -> Tuple[Rules, Dict[str, Any]]:
    """The best rules, and their F1 on these cuts; of equals the one that comes first.

    Args:
        cuts: with their labels; those without a record count as nothing heard.
        heard: see `Heard`.
        punctuation: whether Whisper's punctuation may be used; without it, pauses and voices alone.
    """
    marks = tuple(MARKS) if punctuation else ("",)
    change = _best(cuts, heard, "scd", change_grid(marks), lambda _, turn, rule: change_tokens(turn["places"], rule))
    end = _best(cuts, heard, "endp", end_grid(marks), lambda words, turn, rule: end_tokens(turn, words, rule))
    return Rules(change[0], end[0]), {"scd": change[1], "endp": end[1]}


def _best(
    cuts: Sequence[Cut],
    heard: Heard,
    task: str,
    grid: Sequence[Rule],
    apply: Callable[[Sequence[SpokenWord], Mapping[str, Any], Rule], List[Token]],
) -> Tuple[Rule, float]:
    tasks = build_tasks([task])
    labelled = [cut for cut in cuts if task in labelled_tasks(cut) and cut.id in heard]
    references = [(cut.id, transcript_of(cut, tasks)) for cut in labelled]
    wanted = sum(len(reference.answers[task]) for _, reference in references)
    # Most rules give most cuts the same positions: each set of positions is aligned once.
    right: Dict[Tuple[str, Tuple[int, ...]], int] = {}

    def f1(rule: Rule) -> float:
        tp = found = 0
        for cut_id, reference in references:
            words, turn = heard[cut_id]
            positions = tuple(sorted({token[0] for token in apply(words, turn, rule)}))
            key = (cut_id, positions)
            if key not in right:
                texts = [word.text for word in words]
                right[key] = count_aligned(reference.words, reference.answers[task], texts, positions)
            tp, found = tp + right[key], found + len(positions)
        return float(f1_score(tp, found - tp, wanted - tp)["f1"])

    scored = [(f1(rule), rule) for rule in grid]
    best = max(scored, key=lambda item: item[0])
    return best[1], best[0]
