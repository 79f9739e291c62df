"""Tables of results between the markers of a document; nothing in them is typed by hand.

A document says what it wants, and gets it between its marker and ``<!-- end -->``:

    <!-- table: runs tokenverse_pp share_* | wer, wer@fillets, scd text -->   a row a run
    <!-- table: sweep task_sets | wer, ner exact -->                          a row a decoding
    <!-- table: stages tokenverse_pp half | wer, scd text -->                 rows a run: each older file, and this
    <!-- table: cost tokenverse_pp share_* -->                                seeds, steps, minutes, commits
    <!-- table: claims -->
    <!-- table: worst tokenverse_pp -->, <!-- table: causes tokenverse_pp -->      what went wrong, by `worst`

A metric is one of `comparison.Counted` or of switching.py, of all test cuts or (``@fillets``) of a corpus. What is
carried over from an older file (`results.carried`) has the mark of that file.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from statistics import stdev
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from grid.results import stage_of
from tokenverse_pp.base.errors import UserError

MARK = re.compile(r"<!-- table: (?P<what>\w+) *(?P<args>[^>]*?) *-->\n(?:(?:(?!<!--).*\n)*<!-- end -->\n)?")
ALL = "all"
MISSING = "-"
TITLES = {"wer": "WER", "scd text": "SCD F1", "endp text": "ENDP F1", "ner exact": "NER F1", "lid accuracy": "LID",
          "switched wer all": "WER, all tasks", "switched wer alone": "WER, asr alone"}  # fmt: skip
NOW = "now"


def fill(document: str, results: Mapping[str, Any], older: Sequence[Mapping[str, Any]] = ()) -> str:
    """The document with all its tables as the results have them.

    Args:
        older: results of older files, the oldest first, for the tables ``stages``.

    Raises:
        UserError: for a marker that asks for what there is not.
    """

    def table(match: re.Match[str]) -> str:
        what = match["what"]
        if what not in TABLES:
            raise UserError(f"table {what!r}: expected one of {', '.join(TABLES)}")
        names, _, metrics = match["args"].partition("|")
        wanted = [metric.strip() for metric in metrics.split(",") if metric.strip()]
        given = {**results, "older": older}
        rows = TABLES[what](given, names.split(), wanted)
        mark = match[0].split("\n", 1)[0]
        return f"{mark}\n\n{markdown(rows)}\n\n<!-- end -->\n"

    return MARK.sub(table, document)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first one is its head."""
    if len(rows) < 2:
        return "Nothing has been run yet."
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    escaped.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def runs_table(results: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> List[List[str]]:
    """A row a run."""
    rows = [["run", "", "seeds", *map(_title, metrics)]]
    for name, run in chosen(results, names):
        if "scores" in run:
            cells = [score_cell(run["scores"], metric) for metric in metrics]
            rows.append([named(name, run), run["about"], str(len(run["seeds"]) or MISSING), *cells])
    return rows


def stages_table(results: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> List[List[str]]:
    """Of each run in the order of the stages: a row for each older file that has it, and one for these results.

    A run that only one stage has is left out: there is nothing to compare.
    """
    rows = [["run", "", "seeds", *map(_title, metrics)]]
    now = {name: run for name, run in results["runs"].items() if "before" not in run}
    stages = [*((stage_of(old)["name"], old["runs"]) for old in results["older"]), (NOW, now)]
    every = {name: {} for _, runs in stages for name in runs}
    for name, _ in chosen({"runs": every}, names):
        found = [(stage, runs[name]) for stage, runs in stages if "scores" in runs.get(name, {})]
        for stage, run in found if len(found) > 1 else ():
            cells = [score_cell(run["scores"], metric) for metric in metrics]
            rows.append([f"`{name}`", stage, str(len(run["seeds"])), *cells])
    return rows


def sweep_table(results: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> List[List[str]]:
    """A row a decoding of the runs."""
    rows = [["decoded with", *map(_title, metrics)]]
    for _, run in chosen(results, names):
        for decoding in run.get("sweep", ()):
            cells = [score_cell(decoding["scores"], metric) for metric in metrics]
            rows.append([named(decoding["name"], run), *cells])
    return rows


def cost_table(results: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> List[List[str]]:
    """What the training of each run took."""
    rows = [["run", "seed", "steps", "training, min", "commit"]]
    for name, run in chosen(results, names):
        for seed in run["seeds"] if "scores" in run else ():
            commit = str(seed.get("commit") or MISSING)
            short = commit[:8] + ("+" if commit.endswith("+") else "")
            minutes = f"{seed['seconds'] / 60:.1f}" if "seconds" in seed else MISSING
            rows.append([named(name, run), str(seed["seed"]), str(seed.get("steps", MISSING)), minutes, short])
    return rows


def claims_table(results: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> List[List[str]]:
    """The verdict on each claim, with its number."""
    rows = [["claim", "scores", "difference, or score, and 95% interval", "verdict"]]
    for claim in results.get("claims", ()):
        where = "" if claim["corpus"] == ALL else f", {claim['corpus']}"
        scores, found = MISSING, MISSING
        if "interval" in claim:
            low, high = claim["interval"]
            middle = claim.get("difference", claim["a"])
            found = f"{_percent(middle, 'difference' in claim)} ({_percent(low)} .. {_percent(high)})"
            other = _with_spread(claim, "b") if "b" in claim else f"aim {_percent(claim['value'])}"
            scores = f"{_with_spread(claim, 'a')}, {other}"
        versus = f"`{claim['run']}`" + (f" / `{claim['than']}`" if claim["than"] else "")
        says = f"{claim['says']} ({_title(claim['metric'])}{where}; {versus})"
        rows.append([says, scores, found, claim["verdict"] + _mark(claim)])
    return rows


def worst_table(results: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> List[List[str]]:
    """The worst utterances of the (one) run."""
    return _failures(results, names, "worst")


def causes_table(results: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> List[List[str]]:
    """The causes of all errors of the (one) run."""
    return _failures(results, names, "causes")


def _failures(results: Mapping[str, Any], names: Sequence[str], which: str) -> List[List[str]]:
    tables = [failures[which] for name, failures in results.get("failures", {}).items() if name in names]
    return tables[0] if tables else []


TABLES = {
    "runs": runs_table,
    "stages": stages_table,
    "sweep": sweep_table,
    "cost": cost_table,
    "claims": claims_table,
    "worst": worst_table,
    "causes": causes_table,
}


def chosen(results: Mapping[str, Any], names: Sequence[str]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """The runs named, in the order asked for; what has not been run is left out."""
    for pattern in names:
        for name, run in results["runs"].items():
            if fnmatchcase(name, pattern):
                yield name, run


def named(name: str, run: Mapping[str, Any]) -> str:
    """The name of a run, or of a decoding of it, for a row."""
    return f"`{name}`" + _mark(run)


def score_cell(scores: Mapping[str, Any], metric: str) -> str:
    """Mean, 95% interval and, of several seeds, their standard deviation, in percent."""
    name, _, corpus = metric.partition("@")
    found = scores.get(corpus or ALL, {}).get(name)
    if found is None:
        return MISSING
    low, high = found["interval"]
    spread = f" ±{_percent(found['deviation'])}" if "deviation" in found else ""
    return f"{_percent(found['mean'])} ({_percent(low)} .. {_percent(high)}){spread}"


def _with_spread(claim: Mapping[str, Any], side: str) -> str:
    """A score of a claim and, of several seeds, their standard deviation, which the claim's interval does not hold."""
    seeds = claim.get(f"{side}_seeds", ())
    return _percent(claim[side]) + (f" ±{_percent(stdev(seeds))}" if len(seeds) > 1 else "")


def _mark(found: Mapping[str, Any]) -> str:
    """Behind the name of what is from an older file, that file's mark."""
    return f" {found['before']}" if "before" in found else ""


def _title(metric: str) -> str:
    name, _, corpus = metric.partition("@")
    return TITLES.get(name, name) + (f", {corpus}" if corpus else "")


def _percent(value: float, signed: bool = False) -> str:
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
