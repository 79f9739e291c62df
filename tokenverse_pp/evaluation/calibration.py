"""Decoded speech with labels -> which of its words and task tokens are right, for calibrating confidences."""

from __future__ import annotations

from typing import Dict, Iterable, List, NamedTuple, Sequence, Tuple

import kaldialign
from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.hypotheses import Hypothesis
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.decoding.hypothesis import Calibration, Example, cross_validate, fit_curve, quality
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.result import transcript_of
from tokenverse_pp.tasks.transcript import is_task_token

NOTHING = ""  # no word is empty
Effect = Dict[str, Dict[str, Dict[str, float]]]  # words | tasks, before | after: `quality`


class Judged(NamedTuple):
    """The examples of one utterance."""

    words: List[Example]
    tasks: List[Example]


def judge(cut: Cut, hyp: Hypothesis, tasks: TaskSet) -> Judged:
    """Which words and task tokens of a hypothesis are right.

    A word is right if the alignment of fewest word errors (that of the WER) puts an equal word beside it; a task token,
    if an alignment of words and task tokens together puts the same token beside it. Only tasks that the cut is labelled
    for, and that were decoded, count.

    Args:
        cut: a labelled cut.
        hyp: its line of hyps.jsonl. ``raw_confidence`` is taken where a word has it, else ``confidence``.
        tasks: those of the model.

    Raises:
        UserError: for a hypothesis whose words have no confidences.
    """
    labelled = labelled_tasks(cut)
    known = tasks.subset([name for name in labelled if name in hyp.get("tasks", tasks.names)])
    try:
        items = [(str(word["text"]), float(word.get("raw_confidence", word["confidence"]))) for word in hyp["words"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"hypothesis {hyp['id']}: expected 'words' with 'text' and 'confidence'") from None
    reference = transcript_of(cut, tasks)
    plain = [item for item in items if not is_task_token(item[0])]
    words = _compare(reference.words, plain) if "asr" in labelled else []
    both = [item for item in items if not is_task_token(item[0]) or item[0] in known.symbols]
    examples = _compare(known.render(reference).split(), both)
    return Judged(words, [example for (text, _), example in zip(both, examples) if is_task_token(text)])


def _compare(reference: Sequence[str], items: Sequence[Tuple[str, float]]) -> List[Example]:
    """Confidences with whether the alignment has the same on both sides."""
    pairs = kaldialign.align(list(reference), [text for text, _ in items], NOTHING)
    right = [ref == hyp for ref, hyp in pairs if hyp != NOTHING]
    return [(confidence, same) for (_, confidence), same in zip(items, right)]


def judge_all(cuts: Iterable[Cut], hyps: Iterable[Hypothesis], tasks: TaskSet) -> List[Judged]:
    """`judge` for each hypothesis; cuts without one, or without labels, count not.

    Raises:
        UserError: for a hypothesis of no cut.
    """
    by_id = {cut.id: cut for cut in cuts}
    judged = []
    for hyp in hyps:
        if hyp["id"] not in by_id:
            raise UserError(f"hypothesis {hyp['id']}: there is no such cut in the reference")
        cut = by_id[hyp["id"]]
        if "tasks" in (cut.custom or {}):
            judged.append(judge(cut, hyp, tasks))
    return judged


def fit(judged: Sequence[Judged]) -> Tuple[Calibration, Effect]:
    """A calibration from all utterances, and its effect on one half of them when it is fitted on the other."""
    columns = {name: [getattr(item, name) for item in judged] for name in Judged._fields}
    curves = {name: fit_curve([e for examples in column for e in examples]) for name, column in columns.items()}
    return Calibration(**curves), {name: cross_validate(column) for name, column in columns.items()}


def measure(judged: Sequence[Judged], calibration: Calibration) -> Effect:
    """The effect of a calibration that was fitted on other speech."""
    effect = {}
    for name in Judged._fields:
        examples = [example for item in judged for example in getattr(item, name)]
        curve = getattr(calibration, name)
        effect[name] = {"before": quality(examples), "after": quality([(curve(p), right) for p, right in examples])}
    return effect
