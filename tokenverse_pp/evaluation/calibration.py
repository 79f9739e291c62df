"""Fit and measure calibrations on words and task tokens of decoded, labelled speech that are right or wrong."""

from __future__ import annotations

import math
from typing import Dict, Iterable, List, NamedTuple, Sequence, Tuple

import kaldialign
import torch
from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.hypotheses import Hypothesis
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.decoding.hypothesis import LEAST, Calibration, Curve
from tokenverse_pp.evaluation.scoring import was_decoded
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.result import written_words
from tokenverse_pp.tasks.transcript import is_task_token, transcript_of

NOTHING = ""  # no word is empty
FEWEST = 20  # least number of examples to fit a curve
BINS = 10
Example = Tuple[float, bool]  # raw confidence of a word or task token, and whether it is right
Effect = Dict[str, Dict[str, Dict[str, float]]]  # words | tasks, before | after: `quality`


class Judged(NamedTuple):
    """The examples of one utterance."""

    words: List[Example]
    tasks: List[Example]


def judge(cut: Cut, hyp: Hypothesis, tasks: TaskSet) -> Judged:
    """Determine which words and task tokens of a hypothesis are right.

    A word is right if the alignment with the fewest word errors (that of the WER) pairs it with an equal word; a task
    token, if an alignment of words and task tokens together pairs it with the same token. Only tasks that the cut is
    labelled for, and that were decoded, count.

    Args:
        hyp: its line of hyps.jsonl. ``raw_confidence`` is used if a word has it, else ``confidence``.

    Raises:
        UserError: for a hypothesis whose words have no confidences.
    """
    labelled = labelled_tasks(cut)
    known = tasks.subset([name for name in labelled if was_decoded(name, hyp)])
    words = written_words(hyp)
    if any(word.confidence is None and not word.is_task_token for word in words):
        raise UserError(f"hypothesis {hyp['id']}: expected 'words' with 'text' and 'confidence'")
    raw = [(w.text, w.confidence if w.raw_confidence is None else w.raw_confidence) for w in words]
    items = [(text, confidence) for text, confidence in raw if confidence is not None]
    reference = transcript_of(cut, tasks)
    plain = [item for item in items if not is_task_token(item[0])]
    right = _compare(reference.words, plain) if "asr" in labelled else []
    both = [item for item in items if not is_task_token(item[0]) or item[0] in known.symbols]
    examples = _compare(known.render(reference).split(), both)
    return Judged(right, [example for (text, _), example in zip(both, examples) if is_task_token(text)])


def _compare(reference: Sequence[str], items: Sequence[Tuple[str, float]]) -> List[Example]:
    """Return each confidence, and whether the alignment has the same symbol on both sides."""
    pairs = kaldialign.align(list(reference), [text for text, _ in items], NOTHING)
    right = [ref == hyp for ref, hyp in pairs if hyp != NOTHING]
    return [(confidence, same) for (_, confidence), same in zip(items, right)]


def judge_all(cuts: Iterable[Cut], hyps: Iterable[Hypothesis], tasks: TaskSet) -> List[Judged]:
    """`judge` for each hypothesis; cuts without a hypothesis or without labels are skipped.

    Raises:
        UserError: for a hypothesis without a cut, and for a second one with the same id.
    """
    by_id = {cut.id: cut for cut in cuts}
    known, judged = set(by_id), []
    for hyp in hyps:
        cut = by_id.pop(hyp["id"], None)
        if cut is None:
            wrong = "its id occurs twice" if hyp["id"] in known else "there is no such cut in the reference"
            raise UserError(f"hypothesis {hyp['id']}: {wrong}")
        if "tasks" in (cut.custom or {}):
            judged.append(judge(cut, hyp, tasks))
    return judged


def fit(judged: Sequence[Judged]) -> Tuple[Calibration, Effect]:
    """Fit a calibration to all utterances. Also return the effect on each half when fitted on the other half."""
    columns = {name: [getattr(item, name) for item in judged] for name in Judged._fields}
    curves = {name: fit_curve([e for examples in column for e in examples]) for name, column in columns.items()}
    effect = {name: cross_validate(column) for name, column in columns.items()}
    return Calibration(curves["words"], curves["tasks"]), effect


def measure(judged: Sequence[Judged], calibration: Calibration) -> Effect:
    """Return the effect of a calibration that was fitted on other speech."""
    effect = {}
    for name in Judged._fields:
        examples = [example for item in judged for example in getattr(item, name)]
        curve = getattr(calibration, name)
        effect[name] = {"before": quality(examples), "after": quality([(curve(p), right) for p, right in examples])}
    return effect


def fit_curve(examples: Sequence[Example]) -> Curve:
    """Fit the curve of least cross-entropy (L-BFGS), with a weak normal prior around the one that changes nothing.

    With fewer than `FEWEST` examples, return that one.
    """
    if len(examples) < FEWEST:
        return Curve()
    p = torch.tensor([p for p, _ in examples], dtype=torch.float64).clamp(LEAST, 1 - LEAST)
    right = torch.tensor([right for _, right in examples], dtype=torch.float64)
    at = torch.zeros(3, dtype=torch.float64, requires_grad=True)  # ln a, ln b, c
    optimiser = torch.optim.LBFGS([at], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logit = at[0].exp() * p.log() - at[1].exp() * torch.log1p(-p) + at[2]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logit, right, reduction="sum")
        value = value + at.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    log_a, log_b, c = at.tolist()
    return Curve(math.exp(log_a), math.exp(log_b), c)


def expected_calibration_error(examples: Sequence[Example]) -> float:
    """ECE (Guo et al., 2017): |mean confidence - share that is right| of 10 equal bins, weighted by their examples."""
    bins: List[List[Example]] = [[] for _ in range(BINS)]
    for p, right in examples:
        bins[min(int(p * BINS), BINS - 1)].append((p, right))
    gaps = (abs(sum(p for p, _ in members) - sum(right for _, right in members)) for members in bins)
    return sum(gaps) / max(len(examples), 1)


def brier_score(examples: Sequence[Example]) -> float:
    """Mean squared difference between the confidence and 1 (right) or 0 (wrong)."""
    return sum((p - right) ** 2 for p, right in examples) / max(len(examples), 1)


def quality(examples: Sequence[Example]) -> Dict[str, float]:
    """Number of examples, share that is right, ECE and Brier score."""
    return {
        "examples": len(examples),
        "right": sum(right for _, right in examples) / max(len(examples), 1),
        "ece": expected_calibration_error(examples),
        "brier": brier_score(examples),
    }


def cross_validate(utterances: Sequence[Sequence[Example]]) -> Dict[str, Dict[str, float]]:
    """`quality` before and after: each half of the utterances is calibrated by a curve fitted on the other half."""
    halves = [[example for examples in utterances[start::2] for example in examples] for start in (0, 1)]
    after: List[Example] = []
    for mine, others in (halves, halves[::-1]):
        curve = fit_curve(others)
        after.extend((curve(p), right) for p, right in mine)
    return {"before": quality(halves[0] + halves[1]), "after": quality(after)}
