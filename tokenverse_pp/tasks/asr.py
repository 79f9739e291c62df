"""Speech recognition: the words. It has no task token and is always active."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Dict, List, Sequence, Tuple

from tokenverse_pp.base.languages import language_group
from tokenverse_pp.metrics.error_rates import error_rates
from tokenverse_pp.tasks.base import ScoredExample, Task
from tokenverse_pp.tasks.transcript import SPACE_SIGN, Mark, turns_of

if TYPE_CHECKING:
    from lhotse.cut import Cut


class Asr(Task):
    """The transcript. Labelled by ``supervision.text``: plain words, separated by single spaces, without brackets."""

    name: ClassVar[str] = "asr"

    @property
    def symbols(self) -> Tuple[str, ...]:
        """Empty: the words come from the tokenizer."""
        return ()

    def check(self, cut: Cut) -> List[str]:
        """Check that every turn has a text without task tokens."""
        problems = []
        for turn in turns_of(cut):
            where = f"supervision {turn.index}, field 'text'"
            if not turn.text.strip():
                problems.append(f"{where}: expected plain words, found nothing")
            elif turn.text != " ".join(turn.words):
                problems.append(f"{where}: words must be separated by single spaces, with none at the ends")
            if "[" in turn.text or "]" in turn.text:  # every task token has brackets
                bad = [word for word in turn.words if "[" in word or "]" in word]
                problems.append(f"{where}: brackets are for task tokens only, found {bad[0]!r}")
            if SPACE_SIGN in turn.text:  # the tokenizer reads it as a space: its word would become two
                problems.append(f"{where}: {SPACE_SIGN!r} is the space sign of the tokenizer, expected plain words")
        return problems

    def from_cut(self, cut: Cut) -> None:
        """None: the words are read by `transcript_of`."""
        return None

    def to_marks(self, answer: Any, num_words: int) -> List[Tuple[int, int, str]]:
        """Return no tokens."""
        return []

    def from_marks(self, marks: Sequence[Mark], num_words: int) -> None:
        """Return None."""
        return None

    def score(self, examples: Sequence[ScoredExample]) -> Dict[str, Any]:
        """WER and CER, overall and by language of the reference, without task tokens."""
        groups: Dict[str, List[Tuple[Sequence[str], Sequence[str]]]] = {"all": []}
        for e in examples:
            pair = (e.ref.words, e.hyp.words)
            groups["all"].append(pair)
            language = _language_of(e)
            if language and language != "all":  # also the code of Allar, whose words would count twice
                groups.setdefault(language, []).append(pair)
        return {key: error_rates(pairs) for key, pairs in sorted(groups.items())}


def _language_of(example: ScoredExample) -> str:
    """Return the reference's language, whether labelled for ``lid`` or not; only for grouping WER."""
    if example.ref.language:
        return language_group(example.ref.language, example.languages) or ""
    turns = turns_of(example.cut) if example.cut is not None else []
    languages = {language_group(turn.language, example.languages) for turn in turns}
    return languages.pop() or "" if len(languages) == 1 else ""
