"""HTML elements with escaped content, and the score tables of the report."""

from __future__ import annotations

from html import escape
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from tokenverse_pp.evaluation.scoring import find_prf, has_confusion
from tokenverse_pp.tasks.registry import BUILT_IN, REGISTRY


def tag(name: str, *content: str, **attributes: Any) -> str:
    """An element around content that is HTML already.

    Attributes are escaped; ``class_`` and ``data_t`` become ``class`` and ``data-t``; one that is None or False is
    left out, True gives one without a value.

    >>> tag("p", text("a < b"), class_="x", hidden=True, title=None)
    '<p class="x" hidden>a &lt; b</p>'
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{text(value)}"')
    return f"<{' '.join(parts)}>{''.join(content)}</{name}>"


def text(value: Any) -> str:
    """Anything as escaped text; halves of surrogate pairs, which JSON can hold and no file can, become ``?``."""
    return escape(str(value).encode("utf-8", "replace").decode())


def percent(fraction: float) -> str:
    """0.1234 -> 12.3."""
    return f"{100 * fraction:.1f}"


def cell(value: Any, shown: Optional[str] = None, **attributes: Any) -> str:
    """A table cell with a number: ``data-value`` holds it in full, the text as ``shown``."""
    return tag("td", text(value if shown is None else shown), data_value=value, **attributes)


def table(head: Sequence[str], rows: Iterable[str], **attributes: Any) -> str:
    """A table in a box that scrolls by itself; rows are HTML."""
    columns = "".join(tag("th", text(name), scope="col") for name in head)
    inner = tag("thead", tag("tr", columns)) + tag("tbody", *rows)
    return tag("div", tag("table", inner, **attributes), class_="scroll")


def row(name: str, *cells: str, **attributes: Any) -> str:
    """A row with a name; cells are HTML."""
    return tag("tr", tag("th", text(name), scope="row"), *cells, **attributes)


def section(title: str, *content: str, **attributes: Any) -> str:
    """A section with a heading; nothing at all if there is no content."""
    inside = "".join(content)
    return tag("section", tag("h2", text(title)), inside, **attributes) if inside else ""


Scores = Mapping[str, Any]
EVENTS = {"scd": "speaker change", "endp": "endpoint"}


def tiles(scores: Scores, refused: int) -> str:
    """The few numbers that matter most, large."""
    speed = scores.get("speed", {})
    found = [
        ("word error rate", _percent_of(scores, "wer", "all", "wer")),
        ("language right", _percent_of(scores, "lid", "accuracy")),
        *((f"{name} F1", _percent_of(scores, task, "text", "f1")) for task, name in EVENTS.items()),
        ("entity F1", _percent_of(scores, "ner", "exact", "f1")),
        *_outside(scores),
        ("cuts", str(scores.get("utterances", 0))),
        ("refused", str(refused) if refused else ""),
        ("real-time factor", f"{speed['rtf']:.4f}" if speed.get("rtf") else ""),
    ]
    shown = [tag("div", tag("b", text(value)), tag("span", text(name))) for name, value in found if value]
    return tag("div", *shown, class_="tiles")


def _outside(scores: Scores) -> List[Tuple[str, str]]:
    """The first F1, or else the accuracy, of tasks from outside the package."""
    found = []
    for task, result in scores.items():
        if task in REGISTRY and task not in BUILT_IN and isinstance(result, Mapping):
            if has_confusion(result):
                found.append((f"{task} right", _percent_of(result, "accuracy")))
            found += [(f"{name} F1", _percent_of(prf, "f1")) for name, prf in list(find_prf(task, result))[:1]]
    return found


def _percent_of(scores: Scores, *keys: str) -> str:
    value: Any = scores
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return ""
        value = value[key]
    return f"{percent(value)} %"


def words(scores: Scores) -> str:
    """Word error rates by language, by corpus, and by both."""
    groups = [
        ("Words by language", "wer-language", scores.get("wer", {})),
        ("Words by corpus", "wer-corpus", scores.get("wer_by_corpus", {})),
    ]
    by_both = {
        f"{corpus} {language}": rates
        for corpus, languages in scores.get("wer_by_corpus_and_language", {}).items()
        for language, rates in languages.items()
    }
    parts = [section(title, _rates(group, key), id=key) for title, key, group in groups if group]
    if len(by_both) > 1:
        inner = tag("summary", text("Words by corpus and language")) + _rates(by_both, "wer-both")
        parts.append(tag("section", tag("details", inner)))
    return "".join(parts)


def _rates(groups: Mapping[str, Mapping[str, Any]], key: str) -> str:
    worst = max((rates["wer"] for rates in groups.values()), default=0) or 1
    rows = []
    for name, rates in groups.items():
        shares = [(kind, rates[kind]) for kind in ("sub", "del", "ins")]
        bar = "".join(
            tag("i", class_=kind, style=f"width:{100 * share / worst:.2f}%", title=f"{kind} {percent(share)} %")
            for kind, share in shares
        )
        cells = [cell(rates[kind], percent(rates[kind]), data_key=kind) for kind in ("wer", "ins", "del", "sub", "cer")]
        counts = [cell(rates[kind], data_key=kind) for kind in ("words", "errors", "utterances")]
        rows.append(row(name, *cells, tag("td", tag("div", bar, class_="bar")), *counts, data_group=name))
    head = ["", "WER %", "ins", "del", "sub", "CER %", "", "words", "errors", "cuts"]
    return table(head, rows, class_="numbers", data_table=key)


def tokens(scores: Scores) -> str:
    """Precision, recall and F1 of task tokens."""
    rows = []
    for task, result in scores.items():
        for name, prf in find_prf(task, result) if isinstance(result, Mapping) else ():
            rates = [cell(prf[key], percent(prf[key]), data_key=key) for key in ("precision", "recall", "f1")]
            counts = [cell(prf[key], data_key=key) for key in ("tp", "fp", "fn")]
            rows.append(row(name, *rates, *counts, data_group=name))
    notes = [
        tag("p", text(f"{task}: {count} cuts are labelled for it but were decoded without it."), class_="note")
        for task, count in scores.get("not_decoded", {}).items()
    ]
    if not rows and not notes:
        return ""
    head = ["", "precision %", "recall %", "F1 %", "right", "too many", "missed"]
    return section("Task tokens", table(head, rows, class_="numbers", data_table="tokens") if rows else "", *notes)


def classes(scores: Scores) -> str:
    """The confusion matrices of languages, and of other tasks that give each utterance a class."""
    return "".join(_matrix(task, result) for task, result in scores.items() if has_confusion(result))


def _matrix(task: str, result: Mapping[str, Any]) -> str:
    """A row a true class (a spoken language), a column a decoded one."""
    confusion: Dict[str, Dict[str, int]] = result["confusion"]
    columns = sorted(set(confusion) | {hyp for counts in confusion.values() for hyp in counts})
    rows = []
    for ref, counts in confusion.items():
        total = sum(counts.values()) or 1
        cells: List[str] = []
        for hyp in columns:
            count = counts.get(hyp, 0)
            kind = "right" if hyp == ref else "wrong"
            # Rare confusions should still be seen: a fifth of the colour, and the rest by share.
            depth = f"--depth:{20 + 60 * count / total:.0f}%" if count else None
            cells.append(cell(count, str(count) if count else "", class_=kind if count else None, style=depth))
        rows.append(row(ref, *cells, data_group=ref))
    accuracy = result["accuracy"]
    head = f"{percent(accuracy)} % of {result['utterances']} cuts are right. Rows: spoken; columns: decoded."
    title, key = ("Languages", "languages") if task == "lid" else (task, f"classes-{task}")
    matrix = table(["", *columns], rows, class_="numbers matrix", data_table=key)
    return section(title, tag("p", text(head), data_accuracy=accuracy), matrix, id=key)


def refused(failures: Sequence[Mapping[str, Any]]) -> str:
    """Cuts that could not be decoded."""
    items = [tag("li", tag("b", text(failure["id"])), " ", text(failure["reason"])) for failure in failures]
    return section("Cuts that could not be decoded", tag("ul", *items, class_="refused") if items else "")


def settings(scores: Scores) -> str:
    """How it was decoded: options, and the speed of each process."""
    rows = [
        row(name, tag("td", text(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)))
        for name, value in scores.get("options", {}).items()
        if value not in (None, "", [])
    ]
    speed = scores.get("speed", {})
    for rank, part in enumerate(speed.get("ranks", ())):
        took = f"{part['audio_seconds']:.0f} s of audio in {part['wall_seconds']:.1f} s, factor {part['rtf']:.4f}"
        rows.append(row(f"speed of process {rank}", tag("td", text(took))))
    if speed.get("cuts_decoded_before"):
        rows.append(row("decoded by an earlier run", tag("td", text(f"{speed['cuts_decoded_before']} cuts"))))
    inner = tag("summary", text("Options and speed")) + table(["", ""], rows, class_="settings")
    return tag("section", tag("details", inner)) if rows else ""
