"""One utterance of the page: its numbers, a player, a time line, and reference and hypothesis side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from lhotse.cut import Cut

from tokenverse_pp.hypotheses import Hypothesis, words_of
from tokenverse_pp.languages import language_group
from tokenverse_pp.metrics.wer import error_rates
from tokenverse_pp.report_page.alignment import Pair, Said, align, count_errors
from tokenverse_pp.report_page.audio import Source
from tokenverse_pp.report_page.html import percent, tag, text
from tokenverse_pp.report_page.timeline import timeline
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.text import transcript_of
from tokenverse_pp.tasks.transcript import is_task_token
from tokenverse_pp.tasks.turns import turns_of

KINDS = {
    "sub": "substituted",
    "ins": "inserted",
    "del": "missing",
    "free": "not judged: the cut is not labelled for it",
}


@dataclass(frozen=True)
class Utterance:
    """A cut with its hypothesis, and what they are listed by.

    ``rates`` (`metrics.wer.error_rates`) is None where the cut has no reference words; ``confidence`` is the mean
    over the words, None where the hypothesis has none.
    """

    cut: Cut
    hyp: Hypothesis
    rates: Optional[Mapping[str, Any]]
    confidence: Optional[float]
    language: str
    corpus: str


def utterance_of(cut: Cut, hyp: Hypothesis, corpus: Optional[str], apart: Sequence[str] = ()) -> Utterance:
    """Compare the words of a cut with those of its hypothesis.

    Args:
        apart: languages that are listed apart (see `languages.language_group`).
    """
    labelled = "tasks" in (cut.custom or {})
    turns = turns_of(cut)
    words = [word for word in words_of(hyp)[0] if not is_task_token(word)]
    rates = error_rates([([word for turn in turns for word in turn.words], words)]) if labelled else None
    confidences = [word["confidence"] for word in hyp.get("words") or () if not is_task_token(word["text"])]
    mean = sum(confidences) / len(confidences) if confidences else None
    languages = {language_group(turn.language, apart) for turn in turns if turn.language}
    language = languages.pop() if len(languages) == 1 else hyp.get("language")
    return Utterance(cut, hyp, rates, mean, language or "", corpus or "")


def card(item: Utterance, tasks: TaskSet, source: Optional[Source]) -> str:
    """The utterance as an article of the page."""
    cut, hyp = item.cut, item.hyp
    ref, judged = reference(cut, hyp, tasks)
    said = hypothesis(hyp)
    pairs = align(ref, said, judged) if item.rates is not None else [Pair("free", None, word) for word in said]
    parts = [tag("h3", text(cut.id)), tag("p", *_about(item, pairs), class_="meta")]
    if source is not None:
        parts.append(tag("audio", controls=True, preload="none", src=source.url))
    parts.append(timeline(cut, hyp, tasks, said))
    parts.append(_words(ref, said) if pairs is None else tag("div", *map(column, pairs), class_="pairs", dir="auto"))
    return tag(
        "article",
        *parts,
        class_="utterance",
        data_id=cut.id,
        data_language=item.language,
        data_corpus=item.corpus,
        data_errors=item.rates["errors"] if item.rates else 0,
        data_wer=item.rates["wer"] if item.rates else 0,
        data_seconds=cut.duration,
        data_offset=source.offset if source is not None else None,
    )


def reference(cut: Cut, hyp: Hypothesis, tasks: TaskSet) -> Tuple[List[str], frozenset]:
    """Words and task tokens that were asked for, and all task tokens of the tasks that the cut is labelled for."""
    decoded = tasks if hyp.get("tasks") is None else tasks.subset(hyp["tasks"])
    labelled = (cut.custom or {}).get("tasks", ())
    judged = frozenset(symbol for task in decoded.tasks if task.name in labelled for symbol in task.symbols)
    return decoded.render(transcript_of(cut, decoded)).split(), judged


def hypothesis(hyp: Hypothesis) -> List[Said]:
    """Words and task tokens of a hypothesis."""
    if hyp.get("words"):
        return [Said(word["text"], word["start"], word["end"], word.get("confidence")) for word in hyp["words"]]
    words, times = words_of(hyp)
    return [Said(word, times[i] if times is not None else None) for i, word in enumerate(words)]


def column(pair: Pair) -> str:
    """One column of the alignment: the reference above, the hypothesis below."""
    kind = f"{pair.kind} token" if pair.is_token else pair.kind
    start, notes = None, [KINDS[pair.kind]] if pair.kind in KINDS else []
    if pair.hyp is not None:
        start = pair.hyp.start
        if start is not None:
            notes.append(f"{start:.2f} s")
        if pair.hyp.confidence is not None:
            notes.append(f"confidence {pair.hyp.confidence:.2f}")
    above = tag("span", text("" if pair.ref is None else pair.ref), class_="ref")
    below = tag("span", text("" if pair.hyp is None else pair.hyp.text), class_="hyp")
    name = "span" if start is None else "button"
    return tag(name, above, below, class_=f"pair {kind}", data_t=start, title=", ".join(notes) or None)


def _about(item: Utterance, pairs: Optional[Sequence[Pair]]) -> List[str]:
    """Language, corpus, length and errors."""
    about = [part for part in (item.language, item.corpus, f"{item.cut.duration:.1f} s") if part]
    if item.rates is not None:
        ins, delete, sub = count_errors(pairs) if pairs is not None else (None, None, None)
        parts = "" if pairs is None else f" ({sub} substituted, {delete} missing, {ins} inserted)"
        wrong = f"{item.rates['errors']} of {item.rates['words']} words"
        about.append(f"WER {percent(item.rates['wer'])} %: {wrong}{parts}")
        about.append(f"labelled for {', '.join((item.cut.custom or {}).get('tasks', ()))}")
    if item.confidence is not None:
        about.append(f"confidence {item.confidence:.2f}")
    return [tag("span", text(part)) for part in about]


def _words(ref: Sequence[str], said: Sequence[Said]) -> str:
    """Both sides as plain text, for what is too long to be aligned."""
    sides = (("reference", " ".join(ref)), ("hypothesis", " ".join(item.text for item in said)))
    return "".join(tag("details", tag("summary", name), tag("p", text(words), dir="auto")) for name, words in sides)
