"""How much there is in cuts: hours, turns, words and task tokens, by task and language, labelled or not."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Set

from lhotse.cut import Cut

from tokenverse_pp.manifests.labels import labelled_tasks
from tokenverse_pp.tables import aligned
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks
from tokenverse_pp.tasks.turns import turns_of

SECONDS_PER_HOUR = 3600.0
UNKNOWN = "unknown"  # the language of a cut none of whose turns names one


def count_cuts(cuts: Iterable[Cut]) -> Dict[str, Any]:
    """Count valid cuts (see `validate_cuts`), over all and by language.

    Returns:
        ``{"all": .., "<language>": ..}``; each holds ``cuts``, ``hours``, ``turns``, ``words``, ``speakers``,
        and under ``tasks`` for each task ``labelled`` and ``not_labelled`` (each with ``cuts`` and ``hours``)
        and ``tokens``, the number of task tokens that the labels write (for asr: the number of words).
    """
    tasks = build_tasks(list(REGISTRY))
    groups: Dict[str, Dict[str, Any]] = {"all": _empty()}
    speakers: Dict[str, Set[str]] = {}
    for cut in cuts:
        labelled = labelled_tasks(cut)
        turns = turns_of(cut)
        words = sum(len(turn.words) for turn in turns)
        languages = sorted({turn.language or UNKNOWN for turn in turns})
        for name in ("all", "+".join(languages)):
            group = groups.setdefault(name, _empty())
            group["cuts"] += 1
            group["hours"] += cut.duration / SECONDS_PER_HOUR
            group["turns"] += len(turns)
            group["words"] += words
            speakers.setdefault(name, set()).update(turn.speaker for turn in turns if turn.speaker)
            for task in tasks.tasks:
                counts = group["tasks"][task.name]
                part = counts["labelled" if task.name in labelled else "not_labelled"]
                part["cuts"] += 1
                part["hours"] += cut.duration / SECONDS_PER_HOUR
                if task.name == "asr":
                    counts["tokens"] += words
                elif task.name in labelled:
                    counts["tokens"] += len(task.to_marks(task.from_cut(cut), words))
    for name, names in speakers.items():
        groups[name]["speakers"] = len(names)
    return {name: groups[name] for name in sorted(groups, key=lambda name: (name != "all", name))}


def stats_table(stats: Dict[str, Any]) -> str:
    """Two plain-text tables: what there is by language, and for each task what of it is labelled."""
    totals = [["language", "cuts", "hours", "turns", "words", "speakers"]]
    labels = [["task", "language", "labelled h", "cuts", "not labelled h", "cuts", "tokens"]]
    for language, group in stats.items():
        numbers = [f"{group['cuts']}", f"{group['hours']:.2f}"]
        totals.append([language, *numbers, *(str(group[key]) for key in ("turns", "words", "speakers"))])
    for task in REGISTRY:
        for language, group in stats.items():
            counts = group["tasks"][task]
            row = [task, language]
            for part in ("labelled", "not_labelled"):
                row += [f"{counts[part]['hours']:.2f}", str(counts[part]["cuts"])]
            labels.append([*row, str(counts["tokens"])])
    return "\n\n".join((aligned(totals), aligned(labels, left=2)))


def _empty() -> Dict[str, Any]:
    tasks = {name: {part: {"cuts": 0, "hours": 0.0} for part in ("labelled", "not_labelled")} for name in REGISTRY}
    return {
        "cuts": 0,
        "hours": 0.0,
        "turns": 0,
        "words": 0,
        "speakers": 0,
        "tasks": {name: {**parts, "tokens": 0} for name, parts in tasks.items()},
    }
