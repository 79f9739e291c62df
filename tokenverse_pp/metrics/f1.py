"""Precision, recall and F1 from counts."""

from __future__ import annotations

from typing import Dict, Union

Prf = Dict[str, Union[int, float]]


def f1_score(tp: int, fp: int, fn: int) -> Prf:
    """Precision, recall and F1 (fractions 0..1) beside the counts they come from.

    A ratio 0/0 is 0, except where there was nothing to find and nothing was found: then all three are 1.

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
