"""Language identification: one token ``[XX]`` before the first word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Dict, List, Optional, Sequence, Tuple

from tokenverse_pp.metrics.languages import score_languages
from tokenverse_pp.tasks.base import RANK_FRONT, ScoredExample, Task
from tokenverse_pp.tasks.transcript import Mark, Transcript
from tokenverse_pp.tasks.turns import turns_of

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from tokenverse_pp.search.hypothesis import TimedWord

# Nepali's two-letter code would be written [NE], which opens an entity: it is written in three letters.
WRITTEN_AS = {"ne": "nep"}
READ_AS = {written: code for code, written in WRITTEN_AS.items()}
CODE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")


def language_token(code: str) -> str:
    """``fr`` -> ``[FR]``.

    >>> language_token("pt-br"), language_token("ne")
    ('[PT-BR]', '[NEP]')
    """
    return f"[{WRITTEN_AS.get(code, code).upper()}]"


def language_code(token: str) -> str:
    """The inverse of `language_token`."""
    code = token[1:-1].lower()
    return READ_AS.get(code, code)


@dataclass(frozen=True)
class LanguageId(Task):
    """Answer: a language code in lower case (``fr``, ``pt-br``), or None where no token was written.

    Labelled by ``supervision.language``, the same for all turns of a cut. Reading back: the first language
    token counts, wherever it stands; later ones are dropped.
    """

    languages: Tuple[str, ...] = ()

    name: ClassVar[str] = "lid"

    @classmethod
    def from_options(cls, options: Any) -> LanguageId:
        """``languages``: the codes that the model can write."""
        return cls(languages=tuple(options.get("languages", ())))

    def options(self) -> Dict[str, Any]:
        """The language codes."""
        return {"languages": list(self.languages)}

    @property
    def symbols(self) -> Tuple[str, ...]:
        """One token a language."""
        return tuple(language_token(code) for code in self.languages)

    @property
    def ranks(self) -> Dict[str, int]:
        """All before the first word."""
        return dict.fromkeys(self.symbols, RANK_FRONT)

    def check(self, cut: Cut) -> List[str]:
        """Every turn has a code, the same in all, and one of the task's languages where these are given."""
        turns = turns_of(cut)
        problems = [
            f"supervision {turn.index}, field 'language': expected a code such as 'fr' because the cut is "
            f"labelled for lid, found {turn.language!r}"
            for turn in turns
            if not isinstance(turn.language, str) or not CODE.fullmatch(turn.language)
        ]
        if problems:
            return problems
        codes = sorted({str(turn.language) for turn in turns})
        if len(codes) > 1:
            return [f"field 'language': one cut, one language; found {', '.join(codes)}"]
        if self.languages and codes and codes[0] not in self.languages:
            return [f"field 'language': {codes[0]!r} is not one of {', '.join(self.languages)}"]
        return []

    def from_cut(self, cut: Cut) -> Optional[str]:
        """The language of the turns."""
        turns = turns_of(cut)
        return turns[0].language if turns else None

    def to_marks(self, answer: Optional[str], num_words: int) -> List[Tuple[int, int, str]]:
        """One token at the very front."""
        return [] if answer is None else [(0, RANK_FRONT, language_token(answer))]

    def from_marks(self, marks: Sequence[Mark], num_words: int) -> Optional[str]:
        """The first token's language."""
        return language_code(marks[0].token) if marks else None

    def record(self, transcript: Transcript, words: Sequence[TimedWord], marks: Sequence[Mark]) -> Dict[str, Any]:
        """``language``: the code or null."""
        return {"language": transcript.language}

    def score(self, examples: Sequence[ScoredExample]) -> Dict[str, Any]:
        """Accuracy and confusion counts; a hypothesis without a language token is wrong."""
        return score_languages([(e.ref.language or "", e.hyp.language) for e in examples])
