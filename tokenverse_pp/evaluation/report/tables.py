"""The values of the tables in tables.html.j2, and the environment in which all templates are rendered."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from tokenverse_pp.evaluation.scoring import find_prf, has_confusion, percent
from tokenverse_pp.tasks.registry import BUILT_IN, REGISTRY

Scores = Mapping[str, Any]
EVENTS = {"scd": "speaker change", "endp": "endpoint"}


def tiles(scores: Scores, refused: int) -> List[Tuple[str, str]]:
    """The most important numbers, shown large."""
    speed = scores.get("speed", {})
    # Of stored features, most of the encoder ran before.
    stored = ", stored features" if scores.get("options", {}).get("stored_features") else ""
    found = [
        ("word error rate", _percent_of(scores, "wer", "all", "wer")),
        ("language right", _percent_of(scores, "lid", "accuracy")),
        *((f"{name} F1", _percent_of(scores, task, "text", "f1")) for task, name in EVENTS.items()),
        ("entity F1", _percent_of(scores, "ner", "exact", "f1")),
        ("punctuation F1", _percent_of(scores, "punct", "all", "f1")),
        *_outside(scores),
        ("cuts", str(scores.get("utterances", 0))),
        ("refused", str(refused) if refused else ""),
        (f"real-time factor{stored}", f"{speed['rtf']:.4f}" if speed.get("rtf") else ""),
    ]
    return [(name, value) for name, value in found if value]


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


def words(scores: Scores) -> Dict[str, Any]:
    """Word error rates by language and by corpus (title, key and groups of each table), and by both."""
    groups = [
        ("Words by language", "wer-language", scores.get("wer", {})),
        ("Words by corpus", "wer-corpus", scores.get("wer_by_corpus", {})),
    ]
    by_both = {
        f"{corpus} {language}": rates
        for corpus, languages in scores.get("wer_by_corpus_and_language", {}).items()
        for language, rates in languages.items()
    }
    return {"by_one": [group for group in groups if group[2]], "by_both": by_both}


def tokens(scores: Scores) -> List[Tuple[str, Mapping[str, Any]]]:
    """Precision, recall and F1 of task tokens, with their names."""
    results = [(task, result) for task, result in scores.items() if isinstance(result, Mapping)]
    return [found for task, result in results for found in find_prf(task, result)]


def matrices(scores: Scores) -> List[Tuple[str, str, List[str], Mapping[str, Any]]]:
    """Title, key, decoded classes and scores of languages, and of other tasks that classify utterances."""
    found = []
    for task, result in scores.items():
        if has_confusion(result):
            confusion: Dict[str, Dict[str, int]] = result["confusion"]
            columns = sorted(set(confusion) | {hyp for counts in confusion.values() for hyp in counts})
            title, key = ("Languages", "languages") if task == "lid" else (task, f"classes-{task}")
            found.append((title, key, columns, result))
    return found


def settings(scores: Scores) -> List[Tuple[str, str]]:
    """Options, and the speed of each process."""
    rows = [
        (name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
        for name, value in scores.get("options", {}).items()
        if value not in (None, "", [])
    ]
    speed = scores.get("speed", {})
    for rank, part in enumerate(speed.get("ranks", ())):
        took = f"{part['audio_seconds']:.0f} s of audio in {part['wall_seconds']:.1f} s, factor {part['rtf']:.4f}"
        rows.append((f"speed of process {rank}", took))
    if speed.get("cuts_decoded_before"):
        rows.append(("decoded by an earlier run", f"{speed['cuts_decoded_before']} cuts"))
    return rows


PACKAGE = Path(__file__).parents[2]


def render(template: str, **values: Any) -> str:
    """Fill in a template of the package.

    Halves of surrogate pairs, possible in JSON but not in a file, become ``?``.

    Args:
        template: its path within the package, with slashes.
        values: its variables; a missing one is an error.
    """
    return environment().get_template(template).render(values).encode("utf-8", "replace").decode()


@cache
def environment() -> Environment:
    """The templates of the package, with the filter ``percent`` and the function ``asset``; pages are escaped."""
    found = Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = percent
    found.globals["asset"] = asset
    return found


def asset(name: str) -> Markup:
    """A style or script of the package, which is not escaped."""
    return Markup((PACKAGE / name).read_text(encoding="utf-8").strip())
