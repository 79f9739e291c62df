"""Claims about runs as data, and what the paired bootstrap says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from grid.grid import read_yaml
from grid.results import ALL, OPEN, TestSet, decoded_by, is_error
from grid.runs import Place
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.evaluation.comparison import Counted, common_ids, counts_of
from tokenverse_pp.metrics.bootstrap import RESAMPLES, RatioCounts, bootstrap, compare

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
RELATIONS = ("better", "not worse", "reaches")
MARGIN = 0.01  # how much worse "not worse" may be: a point of WER, F1 or accuracy
KEYS = {"id", "says", "run", "is", "than", "metric", "corpus", "value"}


@dataclass(frozen=True)
class Claim:
    """One claim that can be checked.

    Args:
        id: short name.
        says: in words.
        run: the run that it is about.
        relation: ``better`` or ``not worse`` (than another run), or ``reaches`` (a value).
        metric: of `comparison.Counted`, or of switching.py (`switching.count_switching`).
        corpus: of the test cuts; ``all``.
        than: the other run.
        value: a fraction.
    """

    id: str
    says: str
    run: str
    relation: str
    metric: str
    corpus: str = ALL
    than: Optional[str] = None
    value: Optional[float] = None


def read_claims(path: Path) -> List[Claim]:
    """Read claims from YAML: a list under ``claims`` (raises UserError)."""
    claims = []
    for number, item in enumerate(read_yaml(path).get("claims") or [], start=1):
        where = f"{path}: claim {item.get('id', number) if isinstance(item, dict) else number}"
        if not isinstance(item, dict) or set(item) - KEYS or not {"id", "says", "run", "is", "metric"} <= set(item):
            raise UserError(
                f"{where}: expected the keys id, says, run, is, metric and some of {', '.join(sorted(KEYS))}"
            )
        if item["is"] not in RELATIONS:
            raise UserError(f"{where}: is: {item['is']!r}: expected one of {', '.join(RELATIONS)}")
        if ("value" if item["is"] == "reaches" else "than") not in item:
            raise UserError(f"{where}: 'reaches' needs a value, the others a run to compare with (than)")
        fields = {("relation" if key == "is" else key): value for key, value in item.items()}
        claims.append(Claim(**fields))
    return claims


def judge(
    claim: Claim, a: Optional[RatioCounts], b: Optional[RatioCounts] = None, resamples: int = RESAMPLES
) -> Dict[str, Any]:
    """The verdict on a claim (`verdict_of`), with the numbers it rests on.

    Args:
        a: of the run, b: of the other, on the same utterances; None where it has not been run, or cannot do the task.
    """
    record: Dict[str, Any] = {"id": claim.id, "says": claim.says, "metric": claim.metric, "corpus": claim.corpus}
    record.update(run=claim.run, relation=claim.relation, than=claim.than, value=claim.value)
    if a is None or (claim.relation != "reaches" and b is None):
        return {**record, "verdict": OPEN}
    if claim.relation == "reaches":
        record.update(a=a.score(), interval=list(bootstrap(a, resamples)), cuts=a.utterances, a_seeds=a.by_seed())
    else:
        assert b is not None
        found = compare(a, b, resamples)
        record.update(a=found.a, b=found.b, difference=found.difference, interval=list(found.interval))
        record.update(cuts=found.utterances, a_seeds=a.by_seed(), b_seeds=b.by_seed())
    return {**record, "verdict": verdict_of(record)}


def verdict_of(record: Mapping[str, Any]) -> str:
    """The verdict that the numbers of a record give, also of one that was judged by an older rule.

    ``better``: supported where the 95% interval of the difference lies wholly on the better side of 0, not supported
    where it lies wholly on the other, undecided where it holds 0. ``not worse``: supported where the interval leaves no
    more than `MARGIN` on the worse side, not supported where it lies wholly there, undecided otherwise: that a loss
    cannot be shown does not show that there is none. Undecided too where both scores are 0. ``reaches``: supported
    where the score's own interval is wholly at the value or better, not supported where it is wholly worse, undecided
    otherwise.
    """
    if "interval" not in record:
        return OPEN
    sign = -1.0 if is_error(record["metric"]) else 1.0  # so that more is better
    aim = float(record["value"] or 0.0) if record["relation"] == "reaches" else 0.0
    worst, best = sorted(sign * (x - aim) for x in record["interval"])
    if best < 0:
        return NOT_SUPPORTED
    if record["relation"] == "not worse":
        nothing = not is_error(record["metric"]) and record["a"] == record["b"] == 0  # neither can do it
        return UNDECIDED if nothing or worst < -MARGIN else SUPPORTED
    return SUPPORTED if worst > 0 or (worst == 0 and record["relation"] == "reaches") else UNDECIDED


def judge_all(claims: Sequence[Claim], place: Place, resamples: int = RESAMPLES) -> List[Dict[str, Any]]:
    """The verdicts on all claims, from the finished seeds of the runs."""
    tests = TestSet.of(place)
    known: Dict[str, Sequence[Counted]] = {}
    for name in sorted({name for claim in claims for name in (claim.run, claim.than) if name}):
        if name not in place.grid.runs:
            raise UserError(f"claims: no run {name!r} in the grid")
        known[name] = decoded_by(place, place.grid.runs[name], tests)
    return [_judge(claim, known, tests, resamples) for claim in claims]


def _judge(claim: Claim, known: Mapping[str, Sequence[Counted]], tests: TestSet, resamples: int) -> Dict[str, Any]:
    if claim.corpus not in tests.corpora:
        raise UserError(
            f"claim {claim.id}: no corpus {claim.corpus!r}; the test cuts are of {', '.join(tests.corpora)}"
        )
    a, b = known[claim.run], known[claim.than] if claim.than else ()
    ids = common_ids([*a, *b], claim.metric, tests.corpora[claim.corpus]) if a else []
    if not ids:
        return judge(claim, None)
    of_b = counts_of(b, claim.metric, ids) if b else None
    return judge(claim, counts_of(a, claim.metric, ids), of_b, resamples)
