"""The worst utterances of a decoding, each with what it is like and a cause found by rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import mean
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import kaldialign
from lhotse.cut import Cut

from tokenverse_pp.base.languages import language_group
from tokenverse_pp.data.hypotheses import Hypothesis
from tokenverse_pp.evaluation.scoring import tasks_of_hypotheses
from tokenverse_pp.tasks.result import Transcript
from tokenverse_pp.tasks.transcript import is_task_token, transcript_of, turns_of

GAP = "\0"  # no word: the alignment's sign for insertions and deletions
RARE = 3  # a word that training has fewer times than this is rare


@dataclass(frozen=True)
class Utterance:
    """An utterance that was decoded, and what there is to say of it."""

    id: str
    corpus: str
    language: str
    seconds: float
    ref: Tuple[str, ...]
    hyp: Tuple[str, ...]
    hyp_language: Optional[str]
    confidence: Optional[float]  # mean over the words, where the decoder gave any
    seen: Tuple[int, ...]  # how often training has each word of the reference

    @property
    def errors(self) -> int:
        """Word errors."""
        return int(kaldialign.edit_distance(list(self.ref), list(self.hyp))["total"])

    @property
    def wer(self) -> float:
        """Word errors over words; where there is no word, the number of errors."""
        return self.errors / max(len(self.ref), 1)

    @property
    def cer(self) -> float:
        """The same in letters."""
        ref, hyp = " ".join(self.ref), " ".join(self.hyp)
        return int(kaldialign.edit_distance(list(ref), list(hyp))["total"]) / max(len(ref), 1)

    @property
    def unseen(self) -> float:
        """The share of the words that training does not have."""
        return sum(not count for count in self.seen) / max(len(self.seen), 1)

    @property
    def rare(self) -> float:
        """The share of the words that training has fewer than `RARE` times."""
        return sum(count < RARE for count in self.seen) / max(len(self.seen), 1)


def utterances_of(cuts: Iterable[Cut], hyps: Iterable[Hypothesis], training: Iterable[Cut]) -> List[Utterance]:
    """Cuts beside their hypotheses.

    Args:
        training: the cuts that the model was trained on, to count words in.
    """
    counts = Counter(word for cut in training for turn in turns_of(cut) for word in turn.words)
    by_id = {hyp["id"]: hyp for hyp in hyps}
    pairs = [(cut, by_id[cut.id]) for cut in cuts if cut.id in by_id]
    tasks = tasks_of_hypotheses(pairs)
    languages = tasks.languages
    found = []
    for cut, hyp in pairs:
        ref = transcript_of(cut, tasks)
        heard = Transcript.from_record(hyp, tasks).answers
        found.append(
            Utterance(
                cut.id,
                str((cut.custom or {}).get("corpus", "-")),
                next((x for turn in turns_of(cut) if (x := language_group(turn.language, languages))), "-"),
                float(cut.duration),
                ref.words,
                heard.words,
                heard.language,  # None without the task lid: then no language is wrong
                _confidence(hyp),
                tuple(counts[word] for word in ref.words),
            )
        )
    return found


def _confidence(hyp: Mapping[str, Any]) -> Optional[float]:
    words = [word for word in hyp.get("words") or () if not is_task_token(word["text"]) and "confidence" in word]
    return mean(word["confidence"] for word in words) if words else None


def worst(utterances: Sequence[Utterance], number: int, min_words: int = 3, by: str = "wer") -> List[Utterance]:
    """Those with the highest WER (of equal ones, those with most errors first), or with most errors.

    Args:
        min_words: leave out shorter references, in which one wrong word is all.
        by: ``wer`` or ``errors``.
    """
    key: Callable[[Utterance], Any] = lambda u: (u.wer, u.errors) if by == "wer" else (u.errors, u.wer)
    return sorted((u for u in utterances if len(u.ref) >= min_words), key=key, reverse=True)[:number]


def cause(u: Utterance) -> str:
    """Why an utterance went wrong, as far as a rule can tell: the first of `RULES` that holds."""
    return next((name for name, holds in RULES if holds(u)), "no rule holds")


def is_repetition(u: Utterance) -> bool:
    """The hypothesis says one to four words three times or more in a row, and the reference does not."""
    return repeated(u.hyp) >= 3 > repeated(u.ref)


def repeated(words: Sequence[str], longest: int = 4) -> int:
    """How many times in a row a phrase comes at most.

    >>> repeated("no no no yes".split()), repeated("a b a b c".split()), repeated([])
    (3, 2, 0)
    """
    most = 1 if words else 0
    for size in range(1, longest + 1):
        for start in range(len(words)):
            phrase, times = words[start : start + size], 1
            while words[start + times * size : start + (times + 1) * size] == phrase and len(phrase) == size:
                times += 1
            most = max(most, times)
    return most


def letters_wrong(u: Utterance) -> float:
    """The error rate in letters, whatever the spaces between words."""
    ref, hyp = "".join(u.ref), "".join(u.hyp)
    return int(kaldialign.edit_distance(list(ref), list(hyp))["total"]) / max(len(ref), 1)


def longest_deletion(u: Utterance) -> int:
    """The longest run of words that were left out."""
    longest = run = 0
    for ref, hyp in kaldialign.align(list(u.ref), list(u.hyp), GAP):
        run = run + 1 if hyp == GAP and ref != GAP else 0
        longest = max(longest, run)
    return longest


def insertions(u: Utterance) -> int:
    """Words too many."""
    return sum(ref == GAP for ref, _ in kaldialign.align(list(u.ref), list(u.hyp), GAP))


# In the order in which they are tried: what is most of an explanation first.
RULES: Tuple[Tuple[str, Callable[[Utterance], bool]], ...] = (
    ("wrong language", lambda u: u.hyp_language is not None and u.hyp_language != u.language),
    ("nothing written", lambda u: not u.hyp),
    ("repetition made up", is_repetition),
    ("run of words left out", lambda u: longest_deletion(u) >= max(3, len(u.ref) / 3)),
    ("words made up", lambda u: insertions(u) > len(u.ref) / 2),
    ("clip under 1 s", lambda u: u.seconds < 1.0),
    ("words split or joined", lambda u: letters_wrong(u) < 0.1),
    ("nearly right in letters", lambda u: u.cer < 0.25),
    ("words rare in training", lambda u: u.rare >= 0.5),
    ("words unseen in training", lambda u: u.unseen >= 0.2),
    ("fast speech", lambda u: len(u.ref) / u.seconds > 4.0),
    ("unsure: mean confidence under 0.5", lambda u: u.confidence is not None and u.confidence < 0.5),
)


def as_rows(utterances: Sequence[Utterance]) -> List[List[str]]:
    """A table: a row an utterance."""
    head = ["id", "corpus", "lang", "s", "words", "WER %", "CER %", "unseen %", "rare %", "conf", "cause", "reference",
            "hypothesis"]  # fmt: skip
    rows = [head]
    for u in utterances:
        numbers = [f"{u.seconds:.1f}", str(len(u.ref)), *(f"{100 * x:.0f}" for x in (u.wer, u.cer, u.unseen, u.rare))]
        confidence = "-" if u.confidence is None else f"{u.confidence:.2f}"
        texts = [" ".join(words) or "-" for words in (u.ref, u.hyp)]
        rows.append([u.id, u.corpus, u.language, *numbers, confidence, cause(u), *texts])
    return rows


def without_texts(utterances: Sequence[Utterance]) -> Dict[str, List[List[str]]]:
    """For the results: the 20 worst (``worst``) and the causes of all errors (``causes``), without anybody's words."""
    return {"worst": [row[:-2] for row in as_rows(worst(utterances, 20))], "causes": cause_rows(utterances)}


def cause_rows(utterances: Sequence[Utterance]) -> List[List[str]]:
    """A table of those with errors: a row a cause."""
    wrong = [u for u in utterances if u.errors]
    rows = [["cause, all with errors", "utterances", "word errors"]]
    for why, count in summary(wrong).items():
        rows.append([why, str(count), str(sum(u.errors for u in wrong if cause(u) == why))])
    return rows


def summary(utterances: Sequence[Utterance]) -> Dict[str, int]:
    """How many utterances each cause has, the most frequent first."""
    return dict(Counter(cause(u) for u in utterances).most_common())
