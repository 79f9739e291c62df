"""The report as one HTML file that includes its style and script and loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike, is_finite, json_of, write_text
from tokenverse_pp.base.options import PageOptions
from tokenverse_pp.data.hypotheses import Hypothesis
from tokenverse_pp.evaluation.report import tables
from tokenverse_pp.evaluation.report.tables import render
from tokenverse_pp.evaluation.report.utterance import Utterance, card, source_of, utterance_of
from tokenverse_pp.evaluation.scoring import corpus_of, tasks_of_hypotheses
from tokenverse_pp.tasks.base import TaskSet


def read_beside(hyps: PathLike) -> Tuple[List[Dict[str, Any]], Dict[str, Any]]:
    """Read failures, and options and speed, of the run that wrote ``hyps``, as far as there are files of them.

    Raises:
        UserError: naming a file that is not in the format of decode.py.
    """
    folder = Path(hyps).parent
    path = folder / "failures.jsonl"
    lines = path.read_text(encoding="utf-8-sig").split("\n") if path.is_file() else []
    failures = [_object(path, line, {"id", "reason"}) for line in lines if line.strip()]
    path = folder / "scores.json"
    scores = _object(path, path.read_text(encoding="utf-8-sig"), set()) if path.is_file() else {}
    if isinstance(scores.get("speed"), dict) and not _is_speed(scores["speed"]):
        raise UserError(f"{path}: field 'speed': expected numbers, as decode.py writes them")
    return failures, {key: scores[key] for key in ("options", "speed") if isinstance(scores.get(key), dict)}


def _is_speed(speed: Dict[str, Any]) -> bool:
    """Whether the values that the page shows are finite numbers."""
    ranks = speed.get("ranks", [])
    parts = [speed, *ranks] if isinstance(ranks, list) and all(isinstance(rank, dict) for rank in ranks) else []
    needed = ("audio_seconds", "wall_seconds", "rtf")
    return bool(parts) and all(
        is_finite(part.get(name, 0 if part is speed else None)) for part in parts for name in needed
    )


def _object(path: Path, content: str, keys: set) -> Dict[str, Any]:
    found = json_of(content, str(path))
    if not isinstance(found, dict) or not keys <= set(found):
        with_keys = f" with {' and '.join(sorted(keys))}" if keys else ""
        raise UserError(f"{path}: expected an object{with_keys}, as decode.py writes it")
    return found


def write_report(
    path: PathLike,
    cuts: Sequence[Cut],
    hyps: Iterable[Hypothesis],
    scores: Mapping[str, Any],
    failures: Sequence[Mapping[str, Any]] = (),
    tasks: Optional[TaskSet] = None,
    corpora: Optional[Mapping[str, str]] = None,
    options: Optional[PageOptions] = None,
) -> None:
    """Write report.html.

    Args:
        path: of the page; links to audio are relative to its folder.
        cuts: the references; only those with a hypothesis are shown.
        scores: of `scoring.score_hypotheses`, with ``speed`` and ``options`` if decode.py added them.
        tasks: the model's tasks; by default those found in the hypotheses.
        corpora: see `scoring.score_hypotheses`.
    """
    options = options or PageOptions()
    by_id = {hyp["id"]: hyp for hyp in hyps}
    decoded = [cut for cut in cuts if cut.id in by_id]
    if tasks is None:
        tasks = tasks_of_hypotheses([(cut, by_id[cut.id]) for cut in decoded])
    items = [utterance_of(cut, by_id[cut.id], corpus_of(cut, corpora or {}), tasks.languages) for cut in decoded]
    page = render(
        "evaluation/report/report.html.j2",
        title=options.title,
        tiles=tables.tiles(scores, len(failures)),
        failures=failures,
        words=tables.words(scores),
        tokens=tables.tokens(scores),
        not_decoded=scores.get("not_decoded", {}),
        matrices=tables.matrices(scores),
        lists=_lists(items, tasks, Path(path).resolve().parent, options),
        settings=tables.settings(scores),
    )
    write_text(path, page)


def _lists(items: Sequence[Utterance], tasks: TaskSet, folder: Path, options: PageOptions) -> List[Dict[str, Any]]:
    """The worst utterances (without references: the least confident), and conversations."""
    scored = [item for item in items if item.rates is not None and item.rates["errors"]]
    if scored:
        worst = sorted(scored, key=lambda item: (-item.rates["errors"], -item.rates["wer"], item.cut.id))  # type: ignore[index]
        title = "Utterances with most errors"
    else:
        unsure = [item for item in items if item.rates is None and item.confidence is not None]
        worst = sorted(unsure, key=lambda item: (item.confidence, item.cut.id))
        title = "Least confident utterances"
    worst = worst[: options.utterances]
    listed = {item.cut.id for item in worst}
    talks = [item for item in items if item.cut.id not in listed and _turns(item) > 1]
    talks = sorted(talks, key=lambda item: (-_turns(item), item.cut.id))[: options.utterances // 2]
    groups = (("worst", title, worst), ("conversations", "Other conversations", talks))
    return [
        {
            "name": name,
            "heading": heading,
            "controls": _controls(group),
            "cards": [card(item, tasks, source_of(item.cut, folder, options.embed_audio)) for item in group],
        }
        for name, heading, group in groups
        if group
    ]


def _turns(item: Utterance) -> int:
    return max(len(item.cut.supervisions), len(item.hyp.get("turns") or ()))


def _controls(group: Sequence[Utterance]) -> List[Tuple[str, str, List[Tuple[str, str]]]]:
    """Menus for order, language and corpus: key, label, and (value, shown) of each choice."""
    orders = [("errors", "most errors"), ("wer", "highest WER"), ("seconds", "longest"), ("id", "name")]
    menus = [("order", "Order", orders)]
    for key in ("language", "corpus"):
        names = sorted({getattr(item, key) for item in group} - {""})
        if len(names) > 1:
            menus.append((key, key.capitalize(), [("", "all"), *((name, name) for name in names)]))
    return menus
