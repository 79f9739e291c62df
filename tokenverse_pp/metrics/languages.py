"""Scores of language identification."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, Optional, Sequence, Tuple

NO_LANGUAGE = "none"


def score_languages(pairs: Sequence[Tuple[str, Optional[str]]]) -> Dict[str, Any]:
    """Accuracy and confusion counts over (reference language, hypothesised language or None).

    None, a hypothesis without a language token, is wrong and is counted under ``"none"``. Without any pair
    the accuracy is 0.

    >>> score_languages([("fr", "fr"), ("fr", None)])
    {'accuracy': 0.5, 'confusion': {'fr': {'fr': 1, 'none': 1}}, 'utterances': 2}
    """
    counts: Dict[str, Counter] = {}
    for ref, hyp in pairs:
        counts.setdefault(ref, Counter())[hyp or NO_LANGUAGE] += 1
    right = sum(row[ref] for ref, row in counts.items())
    return {
        "accuracy": right / max(len(pairs), 1),
        "confusion": {ref: dict(sorted(row.items())) for ref, row in sorted(counts.items())},
        "utterances": len(pairs),
    }
