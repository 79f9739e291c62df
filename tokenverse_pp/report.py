"""Scores as plain text, readable in 100 columns."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Tuple

from tokenverse_pp.tables import aligned

RATES = ("wer", "ins", "del", "sub", "cer")
PRF = ("precision", "recall", "f1")
WIDTH = 100  # columns


def score_table(scores: Mapping[str, Any]) -> str:
    """The scores of `scoring.score_hypotheses` as one table: percentages and counts."""
    parts = [
        _rates_table("words by language", scores.get("wer", {})),
        _rates_table("words by corpus", scores.get("wer_by_corpus", {})),
        _prf_table(scores),
        *(_classes_table(task, result) for task, result in scores.items() if has_confusion(result)),
        *(
            f"{task}: {count} of {scores['utterances']} cuts are labelled for it but were decoded without it"
            for task, count in scores.get("not_decoded", {}).items()
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _rates_table(title: str, groups: Mapping[str, Any]) -> str:
    if not groups:
        return ""
    rows = [[title, *(f"{rate} %" for rate in RATES), "words", "cuts"]]
    for name, rates in groups.items():
        counts = [str(rates["words"]), str(rates["utterances"])]
        rows.append([name, *(_percent(rates[rate]) for rate in RATES), *counts])
    return aligned(rows)


def _prf_table(scores: Mapping[str, Any]) -> str:
    rows = [["tokens", "precision %", "recall %", "F1 %", "right", "too many", "missed"]]
    for task, result in scores.items():
        if isinstance(result, Mapping):
            for name, prf in find_prf(task, result):
                rows.append([name, *(_percent(prf[key]) for key in PRF), *(str(prf[k]) for k in ("tp", "fp", "fn"))])
    return aligned(rows) if len(rows) > 1 else ""


def find_prf(name: str, result: Mapping[str, Any]) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """Everything with a precision in nested scores, under its keys joined by spaces (``scd time 0.25``)."""
    if set(PRF) <= set(result):
        yield name, result
        return
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from find_prf(f"{name} {key}", value)


def has_confusion(result: Any) -> bool:
    """Whether a task's scores are those of classes: accuracy, confusion counts, number of utterances."""
    return isinstance(result, Mapping) and {"accuracy", "confusion", "utterances"} <= set(result)


def title_of(task: str) -> str:
    """What a task of classes finds."""
    return "language" if task == "lid" else task


def _classes_table(task: str, result: Mapping[str, Any]) -> str:
    """Accuracy, and the confusion matrix where it fits, otherwise its off-diagonal entries."""
    confusion: Dict[str, Dict[str, int]] = result["confusion"]
    head = f"{title_of(task)}: accuracy {_percent(result['accuracy'])} % of {result['utterances']} cuts"
    columns = sorted(set(confusion) | {hyp for row in confusion.values() for hyp in row})
    rows: List[List[str]] = [["spoken / decoded", *columns]]
    for ref, row in confusion.items():
        rows.append([ref, *(str(row.get(hyp, "")) or "." for hyp in columns)])
    matrix = aligned(rows)
    if len(matrix.split("\n")[0]) <= WIDTH:
        return f"{head}\n{matrix}"
    wrong = [(n, ref, hyp) for ref, row in confusion.items() for hyp, n in row.items() if hyp != ref]
    pairs = [[f"{ref} decoded as {hyp}", str(n)] for n, ref, hyp in sorted(wrong, key=lambda x: (-x[0], x[1:]))]
    return f"{head}\n{aligned(pairs)}" if pairs else head


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
