"""What came out of the runs of a grid: scores with intervals, seeds, seconds and commits, in one JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from lhotse.cut import Cut

from grid.grid import Decoding, Run, digest
from grid.runs import Place, RunFolder, read_json
from grid.worst import Utterance, utterances_of
from tokenverse_pp import metrics
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_text
from tokenverse_pp.data.hypotheses import read_hypotheses
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.evaluation.comparison import WER, Counted, common_ids, count_utterances, counts_of
from tokenverse_pp.metrics.bootstrap import RESAMPLES, bootstrap

ALL = "all"
# What is kept of the scores: with all the variants the file would have megabytes.
KEPT = (
    "wer",
    "scd text",
    "scd time 0.5",
    "endp text",
    "endp time 0.5",
    "ner exact",
    "ner soft",
    "lid accuracy",
    "switched",
)
KEPT_BY_CORPUS = ("wer", "lid accuracy")
OPEN = "not run"  # the verdict on a claim about runs that are not finished
COUNTS = "counts.json"  # beside hyps.jsonl: what each utterance adds to each score (``metrics``), and `scored_by`


@dataclass
class TestSet:
    """The cuts that all runs decode.

    Args:
        cuts: with their labels.
        sha256: of their manifest.
    """

    cuts: List[Cut]
    sha256: str = ""

    def __post_init__(self) -> None:
        self.corpora: Dict[str, List[str]] = {ALL: [cut.id for cut in self.cuts]}
        for cut in self.cuts:
            corpus = (cut.custom or {}).get("corpus")
            if corpus is not None:
                self.corpora.setdefault(str(corpus), []).append(cut.id)

    @classmethod
    def of(cls, place: Place) -> TestSet:
        """That of a grid."""
        return cls(list(read_cuts(place.corpus("test"))), place.sha256("test"))

    def scored_by(self) -> str:
        """A digest of what decides the score of a hypothesis: these cuts, and the code."""
        return digest([self.sha256, *scoring_code()])


@lru_cache(maxsize=1)
def scoring_code() -> List[str]:
    """The source of the rooms that score."""
    package = Path(metrics.__file__).parents[1]
    files = [path for room in ("metrics", "tasks", "evaluation") for path in sorted((package / room).glob("*.py"))]
    return [path.read_text(encoding="utf-8") for path in files]


def finished_seeds(place: Place, run: Run) -> List[RunFolder]:
    """The seeds of a run that are finished; none of a run whose hypotheses come from elsewhere."""
    if run.hyps:
        return []
    return [folder for folder in (place.folder(run, seed) for seed in run.seeds) if folder.finished]


def decoded_by(place: Place, run: Run, tests: TestSet, decoding: Optional[Decoding] = None) -> List[Counted]:
    """What each utterance adds to each score, for every finished seed of a run.

    A metric comes from the first of the run's decodings that has it.

    Args:
        decoding: only this one.
    """
    if run.hyps:
        path = Path(run.hyps)
        return [_counted(path, place.exp_dir / "outside" / f"{run.name}.{COUNTS}", tests)] if path.is_file() else []
    found = []
    for folder in finished_seeds(place, run):
        merged = Counted()
        for each in (decoding,) if decoding else run.decodings:
            output = folder.output(each)
            for metric, ratios in _counted(output / "hyps.jsonl", output / COUNTS, tests).metrics.items():
                merged.metrics.setdefault(metric, ratios)
        if run.switching and not decoding:
            merged.metrics.update(
                (read_json(folder.output(run.switching) / "switching.json") or {"counts": {}})["counts"]
            )
        found.append(merged)
    return found


def _counted(hyps: Path, path: Path, tests: TestSet) -> Counted:
    """Those of a file of hypotheses, counted once and kept at ``path`` until hypotheses, cuts or scoring change."""
    scored_by, kept = tests.scored_by(), read_json(path) or {}
    if kept.get("scored_by") == scored_by and path.stat().st_mtime_ns >= hyps.stat().st_mtime_ns:
        return Counted(kept["metrics"])
    found = read_hypotheses(hyps)
    known = {hyp["id"] for hyp in found}
    counted = count_utterances([cut for cut in tests.cuts if cut.id in known], found)
    write_text(path, json.dumps({"scored_by": scored_by, "metrics": counted.metrics}))
    return counted


def gather(place: Place, resamples: int = RESAMPLES, tell: Callable[[str], None] = lambda line: None) -> Dict[str, Any]:
    """The results of all finished runs.

    Returns:
        ``runs``: name -> ``about``, ``seeds`` (for each: seed, steps, seconds, commit), ``scores`` (see `scores_of`);
        for a run with a sweep ``sweep``: for each decoding its ``options`` and ``scores``.
    """
    tests = TestSet.of(place)
    runs: Dict[str, Any] = {}
    for run in place.grid.runs.values():
        folders = finished_seeds(place, run)
        counted = decoded_by(place, run, tests)
        if not counted:
            continue
        tell(f"{run.name}: {f'seeds {_listed(folders)}' if folders else run.hyps}")
        record: Dict[str, Any] = {"about": run.about, "seeds": [_seed(folder) for folder in folders]}
        if run.of:
            record["of"] = run.of
            record["sweep"] = [
                {
                    "name": each.name,
                    "options": dict(each.options),
                    "scores": scores_of(decoded_by(place, run, tests, each), tests, resamples),
                }
                for each in run.decodings
            ]
        else:
            record["scores"] = scores_of(counted, tests, resamples)
        runs[run.name] = record
    if not runs:
        raise UserError(f"{place.exp_dir}: no run of the grid is finished there")
    return {
        "resamples": resamples,
        "test_cuts": {corpus: len(ids) for corpus, ids in tests.corpora.items()},
        "data": {part: place.sha256(part) for part in ("train", "test")},
        "runs": runs,
    }


def carried(found: Dict[str, Any], older: Dict[str, Any], names: Collection[str]) -> Dict[str, Any]:
    """Results, with those of an older file for what they lack; what is taken from it gets its mark as ``before``.

    A claim is taken from the older file while its runs are not finished, if it says the same of the same.

    Args:
        older: results that also have ``stage``: ``name``, what was different then, and ``mark``, a sign for tables.
        names: the runs of the grid; others are left out.
    """
    mark = stage_of(older)["mark"]
    runs = {
        name: {**run, "before": mark}
        for name, run in older["runs"].items()
        if name in names and name not in found["runs"]
    }
    of_old = {name: rows for name, rows in older.get("failures", {}).items() if name in runs}
    defining = ("says", "run", "relation", "than", "value", "metric", "corpus")
    same = lambda a, b: all(a[key] == b[key] for key in defining)
    judged = {claim["id"]: claim for claim in older.get("claims", ()) if claim["verdict"] != OPEN}
    claims = [
        {**judged[claim["id"]], "before": mark}
        if claim["verdict"] == OPEN and claim["id"] in judged and same(claim, judged[claim["id"]])
        else claim
        for claim in found["claims"]
    ]
    return {**found, "runs": {**found["runs"], **runs}, "claims": claims, "failures": {**of_old, **found["failures"]}}


def stage_of(older: Mapping[str, Any]) -> Mapping[str, str]:
    """What was different when the results of an older file were made: ``name``, and ``mark``, a sign for tables."""
    return older.get("stage", {"name": "before", "mark": "†"})


def is_error(metric: str) -> bool:
    """Whether a metric is better when it is lower: WER, and tokens of tasks that are switched off."""
    return metric == WER or metric.startswith(("switched wer", "switched off"))


def _listed(folders: Sequence[RunFolder]) -> str:
    return ", ".join(str(folder.seed) for folder in folders)


def _seed(folder: RunFolder) -> Dict[str, Any]:
    trained = folder.trained or {}
    decoded = [read_json(folder.output(each) / "decoded.json") or {} for each in folder.run.decodings]
    return {
        "seed": folder.seed,
        **{key: trained[key] for key in ("steps", "seconds", "commit") if key in trained},
        "decoding_seconds": round(sum(record.get("seconds", 0.0) for record in decoded), 1),
    }


def scores_of(counted: Sequence[Counted], tests: TestSet, resamples: int) -> Dict[str, Any]:
    """corpus (and ``all``) -> metric -> ``mean`` over seeds, its 95% ``interval``, ``seeds`` (each), ``cuts``.

    ``deviation``: the standard deviation over seeds (n - 1), where there are several.
    """
    scores: Dict[str, Any] = {}
    for corpus, ids in tests.corpora.items():
        for metric, among in _metrics(counted, ids, KEPT if corpus == ALL else KEPT_BY_CORPUS):
            counts = counts_of(counted, metric, among)
            each = counts.by_seed()
            scores.setdefault(corpus, {})[metric] = {
                "mean": counts.score(),
                "interval": list(bootstrap(counts, resamples)),
                "seeds": each,
                **({"deviation": float(np.std(each, ddof=1))} if len(each) > 1 else {}),
                "cuts": len(among),
            }
    return scores


def _metrics(counted: Sequence[Counted], ids: Sequence[str], kept: Tuple[str, ...]) -> Iterator[Tuple[str, List[str]]]:
    for metric in counted[0].metrics:
        among = common_ids(counted, metric, ids) if metric.startswith(kept) else []
        if among:
            yield metric, among


def rounded(data: Any, digits: int = 5) -> Any:
    """Nested results with fractions of so many digits: enough for tables, and a file that can be read."""
    if isinstance(data, dict):
        return {key: rounded(value, digits) for key, value in data.items()}
    if isinstance(data, list):
        return [rounded(value, digits) for value in data]
    return round(data, digits) if isinstance(data, float) else data


def read_results(path: Path) -> Dict[str, Any]:
    """The file that ``gather`` wrote (raises UserError where there is none)."""
    found = read_json(path)
    if found is None:
        raise UserError(f"{path}: no such file; `experiments.py gather` writes it")
    return found


def utterances_of_run(place: Place, name: str, seed: Optional[int] = None) -> List[Utterance]:
    """The decoded test cuts of a run's seed (by default the first that is finished), for `worst`.

    Raises:
        UserError: where there is no such run, or it is not finished.
    """
    if name not in place.grid.runs or place.grid.runs[name].hyps:
        raise UserError(f"no run {name!r} in the grid, which has {', '.join(place.grid.runs)}")
    run = place.grid.runs[name]
    for folder in finished_seeds(place, run):
        if seed in (None, folder.seed):
            hyps = read_hypotheses(folder.output(run.decodings[0]) / "hyps.jsonl")
            trained = place.grid.runs[run.of] if run.of else run
            training = read_cuts(place.manifest(trained.train, folder.seed))
            return utterances_of(read_cuts(place.corpus("test")), hyps, training)
    raise UserError(f"run {name}{f', seed {seed}' if seed is not None else ''}: not finished")
