"""Word and character error rates, and accuracy and confusions of language identification."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from tokenverse_pp.base.languages import language_group, languages_told_apart

WordPair = Tuple[Sequence[str], Sequence[str]]


def error_rates(pairs: Sequence[WordPair]) -> Dict[str, Union[int, float]]:
    """WER with its three parts, and CER, over (reference words, hypothesis words) pairs.

    Errors are summed over all pairs before dividing (Levenshtein distance, kaldialign). ``wer``, ``ins``,
    ``del`` and ``sub`` are fractions of the reference words, so that the last three add up to the first; they
    exceed 1 with many insertions. ``cer`` is the fraction of the characters of the reference, single spaces
    between words included. If the reference is empty, the rate is the number of errors itself (0 if there are
    none), so that every value is finite.

    >>> rates = error_rates([(["a", "b", "c", "d"], ["a", "x", "d"])])
    >>> rates["wer"], rates["ins"], rates["del"], rates["sub"], rates["words"]
    (0.5, 0.0, 0.25, 0.25, 4)
    """
    import kaldialign  # here, because tasks are imported where kaldialign is not installed (tokenverse_pp.runtime)

    counts = {"ins": 0, "del": 0, "sub": 0}
    words = characters = character_errors = 0
    for ref, hyp in pairs:
        edits = kaldialign.edit_distance(list(ref), list(hyp))
        for kind in counts:
            counts[kind] += int(edits[kind])
        words += len(ref)
        ref_text, hyp_text = " ".join(ref), " ".join(hyp)
        characters += len(ref_text)
        character_errors += int(kaldialign.edit_distance(list(ref_text), list(hyp_text))["total"])
    errors = sum(counts.values())
    return {
        "wer": errors / max(words, 1),
        **{kind: count / max(words, 1) for kind, count in counts.items()},
        "cer": character_errors / max(characters, 1),
        "words": words,
        "errors": errors,
        "utterances": len(pairs),
    }


def words_in_common(ref: Sequence[str], hyp: Sequence[str]) -> List[Tuple[int, int]]:
    """Index pairs of equal words in an alignment with the fewest errors (kaldialign).

    >>> words_in_common("a b c".split(), "a x c".split())
    [(0, 0), (2, 2)]
    """
    import kaldialign  # as above

    none = "\0"  # no word
    found, i, j = [], 0, 0
    for a, b in kaldialign.align(list(ref), list(hyp), none):
        if a == b:
            found.append((i, j))
        i, j = i + (a != none), j + (b != none)
    return found


NO_LANGUAGE = "none"


def score_languages(
    pairs: Sequence[Tuple[str, Optional[str]]], languages: Optional[Sequence[str]] = None
) -> Dict[str, Any]:
    """Accuracy and confusion counts over (reference language, hypothesised language or None).

    None, a hypothesis without a language token, is wrong and is counted under ``"none"``. Without any pairs,
    the accuracy is 0.

    Args:
        languages: languages that the model writes; codes of the same one are equal, however they are spelt. None: see
            `languages_told_apart`.

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
