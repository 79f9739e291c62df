"""Compare decodings with confidence intervals: the contribution of each utterance to each score."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from lhotse.cut import Cut

from tokenverse_pp.data.hypotheses import Hypothesis
from tokenverse_pp.evaluation import scoring
from tokenverse_pp.metrics.bootstrap import RESAMPLES, Comparison, RatioCounts, compare
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.ner import OPEN, NamedEntities
from tokenverse_pp.tasks.result import written_words
from tokenverse_pp.tasks.transcript import transcript_of

Ratio = Tuple[float, float]
WER = "wer"  # the only score that is better when it is lower
PARTS = (" precision", " recall")  # ends of the names of the parts of an F1
ACCURACY = " accuracy"  # end of the name of one


@dataclass
class Counted:
    """The counts of one decoding: metric -> cut id -> (numerator, denominator).

    Metrics are called ``wer``, ``scd text`` (an F1), ``scd text precision``, ``scd text recall``, ``endp time 0.5``,
    ``ner exact``, ``lid accuracy`` and so on. A metric has the cuts that are labelled for its task and were decoded
    with it.
    """

    metrics: Dict[str, Dict[str, Ratio]] = field(default_factory=dict)


def tasks_in_common(cuts: Sequence[Cut], decodings: Iterable[Sequence[Hypothesis]]) -> TaskSet:
    """Return the tasks by which to score several decodings of the same cuts, so that their scores mean the same.

    Entities count with their types only if no decoding has any without one.

    Raises:
        UserError: for a cut without a hypothesis, and an id that occurs twice.
    """
    pairs = [pair for hyps in decodings for pair in scoring.paired(cuts, hyps)]
    tasks = scoring.tasks_of_hypotheses(pairs, several=True)
    if any(word.text == OPEN for _, hyp in pairs for word in written_words(hyp)):
        return TaskSet(tuple(NamedEntities() if isinstance(task, NamedEntities) else task for task in tasks.tasks))
    return tasks


def count_utterances(cuts: Iterable[Cut], hyps: Iterable[Hypothesis], tasks: Optional[TaskSet] = None) -> Counted:
    """Score every utterance alone. The sums of the results are what `scoring.score_hypotheses` divides.

    Args:
        tasks: to score with, for a comparison (`tasks_in_common`); by default those of the hypotheses.

    Raises:
        UserError: for a cut without a hypothesis, an id that occurs twice, and entities with and without types.
    """
    pairs = scoring.paired(list(cuts), list(hyps))
    own = scoring.tasks_of_hypotheses(pairs)
    tasks = tasks or own
    counted = Counted()
    of_task: Dict[str, int] = Counter()
    for cut, hyp in pairs:
        example = scoring.scored_example(cut, hyp, own)
        if tasks is not own:  # the hypothesis is read by its own tasks: those in common may lack its entity types
            example = replace(example, ref=transcript_of(cut, tasks), languages=tasks.languages)
        labelled = scoring.labelled_if_any(cut)
        for task in tasks.tasks:
            if task.name in labelled and scoring.was_decoded(task.name, hyp):
                of_task[task.name] += 1
                for metric, ratio in _ratios(task.name, task.score([example])):
                    counted.metrics.setdefault(metric, {})[cut.id] = ratio
    # A score by time counts only if all hypotheses have times, as in `score_hypotheses`.
    for metric in [m for m, ratios in counted.metrics.items() if len(ratios) < of_task[m.split()[0]] and m != WER]:
        del counted.metrics[metric]
    return counted


def _ratios(task: str, scores: Mapping[str, Any]) -> Iterator[Tuple[str, Ratio]]:
    """The scores of one utterance as (metric, (numerator, denominator))."""
    if task == "asr":
        yield WER, (scores["all"]["errors"], scores["all"]["words"])
    elif scoring.has_confusion(scores):
        yield f"{task}{ACCURACY}", (scores["accuracy"], 1)
    else:
        for name, prf in scoring.find_prf(task, scores):
            tp, fp, fn = prf["tp"], prf["fp"], prf["fn"]
            yield name, (2 * tp, 2 * tp + fp + fn)
            yield f"{name} precision", (tp, tp + fp)
            yield f"{name} recall", (tp, tp + fn)
        for name, found in scoring.find_accuracies(scores):
            yield f"{task} {name}{ACCURACY}", (found["right"], found["words"])


def counts_of(decodings: Sequence[Counted], metric: str, ids: Sequence[str]) -> RatioCounts:
    """One metric of several decodings of the same cuts (seeds), for the bootstrap."""
    ratios = [[counted.metrics[metric][cut_id] for cut_id in ids] for counted in decodings]
    # As the scores: an F1 with nothing to find and nothing found is 1, what is a share of nothing is 0.
    return RatioCounts.of(ratios, 0.0 if metric == WER or metric.endswith((*PARTS, ACCURACY)) else 1.0)


def common_ids(decodings: Iterable[Counted], metric: str, among: Optional[Iterable[str]] = None) -> List[str]:
    """The cuts that count in a metric in all decodings, sorted; only those in ``among`` if given."""
    sets = [set(counted.metrics.get(metric, ())) for counted in decodings]
    return sorted(set.intersection(*sets) & set(among if among is not None else sets[0])) if sets else []


def compare_decodings(
    a: Sequence[Counted], b: Sequence[Counted], among: Optional[Iterable[str]] = None, resamples: int = RESAMPLES
) -> Dict[str, Comparison]:
    """Compare all metrics that both have (except precision and recall), on the cuts that count in both.

    Args:
        a: the decodings of one system, one per seed.
        b: those of the other.
        among: cut ids that count; by default all.
    """
    among = None if among is None else set(among)
    found: Dict[str, Comparison] = {}
    for metric in a[0].metrics:
        if metric.endswith(PARTS):
            continue
        ids = common_ids([*a, *b], metric, among)
        if ids:
            found[metric] = compare(counts_of(a, metric, ids), counts_of(b, metric, ids), resamples)
    return found
