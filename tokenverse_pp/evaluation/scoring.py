"""Score hypotheses against labelled cuts, each task over the cuts that are labelled for it; scores as plain text."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned
from tokenverse_pp.base.languages import languages_told_apart
from tokenverse_pp.data.hypotheses import Hypothesis
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.tasks.base import ScoredExample, Task, TaskSet
from tokenverse_pp.tasks.ner import CLOSE, OPEN
from tokenverse_pp.tasks.registry import tasks_for_tokens
from tokenverse_pp.tasks.result import Transcript, written_words
from tokenverse_pp.tasks.transcript import transcript_of, turns_of

__all__ = ["corpus_of", "score_hypotheses", "score_table", "tasks_of_hypotheses"]

NAMED = 3  # ids that an error message lists


def score_hypotheses(
    cuts: Iterable[Cut],
    hyps: Iterable[Hypothesis],
    tasks: Optional[TaskSet] = None,
    corpora: Optional[Mapping[str, str]] = None,
) -> Dict[str, Any]:
    """Score one hypothesis per cut.

    Args:
        cuts: references, checked by `data.labels.validate_cuts`; a cut without a list of tasks has no labels and counts
            in no score.
        hyps: as returned by `data.hypotheses.read_hypotheses`.
        tasks: the model's tasks; by default all registered tasks, with the languages and entity types found in the
            hypotheses (entities are scored without types if no hypothesis has any; a reference without a type by its
            phrase alone).
        corpora: maps the id of a cut that names no corpus itself (``cut.custom["corpus"]``) to its corpus.

    Returns:
        ``wer.{all,<language>}`` (asr), and each other task under its name (``scd``, ``ner``, ..) if any cut is labelled
        for it and was decoded with it: see `Task.score`. ``wer_by_corpus.<corpus>`` and
        ``wer_by_corpus_and_language.<corpus>.<language>`` if corpora are known. Each WER comes with its insertions,
        deletions and substitutions (`metrics.error_rates.error_rates`). ``utterances``: the number of cuts.
        ``not_decoded``: for each task the number of cuts that are labelled for it but were decoded without it; they
        count in no score of the task.

    Raises:
        UserError: for a cut without a hypothesis, a hypothesis without a cut, or an id that occurs twice; without
            ``tasks``, for hypotheses of which some entities have types and others have none.
    """
    cuts, hyps = list(cuts), list(hyps)
    pairs, known = paired(cuts, hyps), {cut.id for cut in cuts}
    _refuse("hypotheses of cuts that are not in the reference", [hyp["id"] for hyp in hyps if hyp["id"] not in known])
    tasks = tasks_of_hypotheses(pairs, tasks)
    examples = [(scored_example(cut, hyp, tasks), labelled_if_any(cut), hyp) for cut, hyp in pairs]
    scores: Dict[str, Any] = {}
    not_decoded: Dict[str, int] = {}
    for task in tasks.tasks:
        labelled = [(e, hyp) for e, names, hyp in examples if task.name in names]
        decoded = [e for e, hyp in labelled if was_decoded(task.name, hyp)]
        if len(decoded) < len(labelled):
            not_decoded[task.name] = len(labelled) - len(decoded)
        if decoded:
            scores["wer" if task.name == "asr" else task.name] = task.score(decoded)
    scores.update(_wer_by_corpus([e for e, names, _ in examples if "asr" in names], tasks["asr"], corpora or {}))
    return {**scores, "utterances": len(examples), "not_decoded": not_decoded}


def paired(cuts: Sequence[Cut], hyps: Sequence[Hypothesis]) -> List[Tuple[Cut, Hypothesis]]:
    """Cuts with their hypotheses (raises UserError for a cut without one, and for an id that occurs twice)."""
    _refuse("cut ids that occur twice", [i for i, n in Counter(cut.id for cut in cuts).items() if n > 1])
    _refuse("hypotheses with the same id", [i for i, n in Counter(hyp["id"] for hyp in hyps).items() if n > 1])
    by_id = {hyp["id"]: hyp for hyp in hyps}
    _refuse("cuts without a hypothesis", [cut.id for cut in cuts if cut.id not in by_id])
    return [(cut, by_id[cut.id]) for cut in cuts]


def tasks_of_hypotheses(
    pairs: Sequence[Tuple[Cut, Hypothesis]], known: Optional[TaskSet] = None, several: bool = False
) -> TaskSet:
    """Return the tasks to score with, widened to cover the references (see `Task.widened`).

    Args:
        known: the model's tasks; by default all registered tasks, entities with types if any hypothesis has one.
        several: the hypotheses are of several decodings, and entities may have types in some of these only.

    Raises:
        UserError: entities of one decoding have types and have none: a task reads one kind, and would lose the other.
    """
    tasks = known or _tasks_that_show(pairs, several)
    references = [transcript_of(cut, tasks) for cut, _ in pairs]
    return TaskSet(
        tuple(
            task.widened([ref.answers[task.name] for ref in references if task.name in ref.answers])
            for task in tasks.tasks
        )
    )


def _tasks_that_show(pairs: Sequence[Tuple[Cut, Hypothesis]], several: bool) -> TaskSet:
    """All tasks, with the options inferred from the hypotheses' tokens, and the languages of the references."""
    first: Dict[str, str] = {}  # token -> the first cut that has it
    for cut, hyp in pairs:
        for word in written_words(hyp):
            if word.is_task_token:
                first.setdefault(word.text, cut.id)
    found = tasks_for_tokens(list(first))
    typed = next((token for token in found["ner"].symbols if token in first and token not in (OPEN, CLOSE)), None)
    if typed and OPEN in first and not several:
        raise UserError(
            f"hypotheses with {OPEN} (cut {first[OPEN]}) and with {typed} (cut {first[typed]}): expected types of all "
            f"entities or of none; with {OPEN} in place of each {typed} and the like they are scored without types"
        )
    spoken = [turn.language for cut, _ in pairs for turn in turns_of(cut) if isinstance(turn.language, str)]
    languages = languages_told_apart(found.languages, [code for code in spoken if code])
    lid = type(found["lid"]).from_options({"languages": languages})
    return TaskSet(tuple(lid if task.name == "lid" else task for task in found.tasks))


def _refuse(what: str, ids: Sequence[str]) -> None:
    if ids:
        more = f", and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        raise UserError(f"{what}: {', '.join(ids[:NAMED])}{more}")


def labelled_if_any(cut: Cut) -> List[str]:
    """The tasks that a cut is labelled for; none if it has no list of tasks."""
    return labelled_tasks(cut) if "tasks" in (cut.custom or {}) else []


def was_decoded(task: str, hyp: Hypothesis) -> bool:
    """Whether a task was decoded for a hypothesis; if it does not name its tasks, all were."""
    return task == "asr" or hyp.get("tasks") is None or task in hyp["tasks"]


def scored_example(cut: Cut, hyp: Hypothesis, tasks: TaskSet) -> ScoredExample:
    """Return a cut and its hypothesis in the form that tasks score."""
    heard = Transcript.from_record(hyp, tasks)
    return ScoredExample(cut.id, transcript_of(cut, tasks), heard.answers, cut, heard.marks, tasks.languages)


def corpus_of(cut: Cut, corpora: Mapping[str, str]) -> Optional[str]:
    """The corpus that a cut names, else that in ``corpora``, else None."""
    named = (cut.custom or {}).get("corpus")
    return str(named) if named is not None else corpora.get(cut.id)


def _wer_by_corpus(examples: Sequence[ScoredExample], asr: Task, corpora: Mapping[str, str]) -> Dict[str, Any]:
    groups: Dict[str, List[ScoredExample]] = {}
    for e in examples:
        corpus = corpus_of(e.cut, corpora) if e.cut is not None else None
        if corpus is not None:
            groups.setdefault(corpus, []).append(e)
    scores = {corpus: asr.score(group) for corpus, group in sorted(groups.items())}
    if not scores:
        return {}
    return {
        "wer_by_corpus": {corpus: wer["all"] for corpus, wer in scores.items()},
        "wer_by_corpus_and_language": {
            corpus: {language: rates for language, rates in wer.items() if language != "all"}
            for corpus, wer in scores.items()
        },
    }


RATES = ("wer", "ins", "del", "sub", "cer")
PRF = ("precision", "recall", "f1")
WIDTH = 100  # columns


def score_table(scores: Mapping[str, Any]) -> str:
    """The scores of `scoring.score_hypotheses` as one table: percentages and counts."""
    parts = [
        _rates_table("words by language", scores.get("wer", {})),
        _rates_table("words by corpus", scores.get("wer_by_corpus", {})),
        _prf_table(scores),
        *(_classes_table(task, result) for task, result in scores.items() if has_confusion(result)),
        *(
            f"{task} {name}: accuracy {percent(result['accuracy'])} % of {result['words']} words"
            for task in scores
            for name, result in find_accuracies(scores[task])
        ),
        *(
            f"{task}: {count} of {scores['utterances']} cuts are labelled for it but were decoded without it"
            for task, count in scores.get("not_decoded", {}).items()
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _rates_table(title: str, groups: Mapping[str, Any]) -> str:
    if not groups:
        return ""
    rows = [[title, *(f"{rate} %" for rate in RATES), "words", "cuts"]]
    for name, rates in groups.items():
        counts = [str(rates["words"]), str(rates["utterances"])]
        rows.append([name, *(percent(rates[rate]) for rate in RATES), *counts])
    return aligned(rows)


def _prf_table(scores: Mapping[str, Any]) -> str:
    rows = [["tokens", "precision %", "recall %", "F1 %", "right", "too many", "missed"]]
    for task, result in scores.items():
        if isinstance(result, Mapping):
            for name, prf in find_prf(task, result):
                rows.append([name, *(percent(prf[key]) for key in PRF), *(str(prf[k]) for k in ("tp", "fp", "fn"))])
    return aligned(rows) if len(rows) > 1 else ""


def find_prf(name: str, result: Mapping[str, Any]) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """Yield everything with a precision in nested scores, named by its keys joined by spaces (``scd time 0.25``)."""
    if set(PRF) <= set(result):
        yield name, result
        return
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from find_prf(f"{name} {key}", value)


def find_accuracies(result: Any) -> List[Tuple[str, Mapping[str, Any]]]:
    """The scores of a task that are an accuracy over words (``right`` of ``words``), by name."""
    parts = result.items() if isinstance(result, Mapping) else ()
    return [(k, v) for k, v in parts if isinstance(v, Mapping) and {"accuracy", "right", "words"} <= set(v)]


def has_confusion(result: Any) -> bool:
    """Whether a task's scores are those of a classification: accuracy, confusion counts, number of utterances."""
    return isinstance(result, Mapping) and {"accuracy", "confusion", "utterances"} <= set(result)


def _classes_table(task: str, result: Mapping[str, Any]) -> str:
    """Accuracy, and the confusion matrix if it fits, otherwise its off-diagonal entries."""
    confusion: Dict[str, Dict[str, int]] = result["confusion"]
    title = "language" if task == "lid" else task
    head = f"{title}: accuracy {percent(result['accuracy'])} % of {result['utterances']} cuts"
    columns = sorted(set(confusion) | {hyp for row in confusion.values() for hyp in row})
    rows: List[List[str]] = [["spoken / decoded", *columns]]
    for ref, row in confusion.items():
        rows.append([ref, *(str(row.get(hyp, "")) or "." for hyp in columns)])
    matrix = aligned(rows)
    if len(matrix.split("\n")[0]) <= WIDTH:
        return f"{head}\n{matrix}"
    wrong = [(n, ref, hyp) for ref, row in confusion.items() for hyp, n in row.items() if hyp != ref]
    pairs = [[f"{ref} decoded as {hyp}", str(n)] for n, ref, hyp in sorted(wrong, key=lambda x: (-x[0], x[1:]))]
    return f"{head}\n{aligned(pairs)}" if pairs else head


def percent(fraction: float) -> str:
    """A fraction in percent.

    >>> percent(0.1234)
    '12.3'
    """
    return f"{100 * fraction:.1f}"
