"""Scores of language identification."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, Optional, Sequence, Tuple

from tokenverse_pp.languages import language_group, languages_told_apart

NO_LANGUAGE = "none"


def score_languages(
    pairs: Sequence[Tuple[str, Optional[str]]], languages: Optional[Sequence[str]] = None
) -> Dict[str, Any]:
    """Accuracy and confusion counts over (reference language, hypothesised language or None).

    None, a hypothesis without a language token, is wrong and is counted under ``"none"``. Without any pair
    the accuracy is 0.

    Args:
        languages: those that the model writes; codes that mean the same one are equal, however they are spelt. Without
            them, see `languages_told_apart`.

    >>> score_languages([("fr-FR", "fr"), ("FR", None)])
    {'accuracy': 0.5, 'confusion': {'fr': {'fr': 1, 'none': 1}}, 'utterances': 2}
    """
    if languages is None:
        languages = languages_told_apart([hyp for _, hyp in pairs if hyp], [ref for ref, _ in pairs])
    counts: Dict[str, Counter] = {}
    for ref, hyp in pairs:
        found = language_group(hyp, languages) or NO_LANGUAGE
        counts.setdefault(language_group(ref, languages) or ref, Counter())[found] += 1
    right = sum(row[ref] for ref, row in counts.items())
    return {
        "accuracy": right / max(len(pairs), 1),
        "confusion": {ref: dict(sorted(row.items())) for ref, row in sorted(counts.items())},
        "utterances": len(pairs),
    }
