"""Language identification: one token ``[XX]`` before the first word.

A label is any code that `tokenverse_pp.base.languages` reads. It is written as the matching language of the model
(`match_language`): a model of ``fr`` and ``de`` writes ``[FR]`` for ``fr-FR``, ``FRA`` and ``fr_CA``; one of ``pt-BR``
and ``pt-PT`` keeps the two apart. A token is the configured code in capitals, and is never renamed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Dict, List, Optional, Sequence, Tuple

from tokenverse_pp.base.languages import (
    canonical_tag,
    compatible_languages,
    language_group,
    language_problem,
    match_language,
    matching_languages,
)
from tokenverse_pp.metrics.error_rates import score_languages
from tokenverse_pp.tasks.base import RANK_FRONT, ScoredExample, Task
from tokenverse_pp.tasks.transcript import Mark, MarkReader, read_first, turns_of

if TYPE_CHECKING:
    from lhotse.cut import Cut

# Nepali's two-letter code would give [NE], which opens an entity, so its three-letter code is used.
WRITTEN_AS = {"ne": "nep"}
READ_AS = {written: code for code, written in WRITTEN_AS.items()}
CODE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")


def language_token(code: str) -> str:
    """Return the token of a code or locale name: ``fr`` -> ``[FR]``. Codes are not shortened (``fra`` -> ``[FRA]``).

    >>> language_token("pt-br"), language_token("ne"), language_token("ru_RU.UTF-8")
    ('[PT-BR]', '[NEP]', '[RU-RU]')
    """
    text = code.lower() if CODE.fullmatch(code.lower()) else (canonical_tag(code) or code).lower()
    return f"[{WRITTEN_AS.get(text, text).upper()}]"


def language_code(token: str) -> str:
    """The inverse of `language_token`."""
    code = token[1:-1].lower()
    return READ_AS.get(code, code)


@dataclass(frozen=True)
class LanguageId(Task):
    """Answer: a language code in lower case (``fr``, ``pt-br``), or None if no token was written.

    Labelled by ``supervision.language``, the same for all turns of a cut. Parsing uses the first language token,
    wherever it stands, and drops later ones.
    """

    languages: Tuple[str, ...] = ()

    name: ClassVar[str] = "lid"

    @classmethod
    def from_options(cls, options: Any) -> LanguageId:
        """Build the task from ``languages``, the codes that the model can write."""
        return cls(languages=tuple(options.get("languages", ())))

    def options(self) -> Dict[str, Any]:
        """The language codes."""
        return {"languages": list(self.languages)}

    @property
    def symbols(self) -> Tuple[str, ...]:
        """One token per language."""
        return tuple(language_token(code) for code in self.languages)

    @property
    def ranks(self) -> Dict[str, int]:
        """All tokens precede the first word."""
        return dict.fromkeys(self.symbols, RANK_FRONT)

    def check(self, cut: Cut) -> List[str]:
        """Check that all turns have codes of the same language, one of the task's if it lists any."""
        turns = turns_of(cut)
        problems = [
            f"supervision {turn.index}, field 'language': {problem}"
            for turn in turns
            for problem in [_label_problem(turn.language)]
            if problem
        ]
        if problems:
            return problems
        codes = sorted({str(turn.language) for turn in turns})
        for code in codes if self.languages else ():
            meant = matching_languages(code, self.languages)
            if not meant:
                return [f"field 'language': {code!r} is not one of {', '.join(self.languages)} (tasks.languages)"]
            if len(meant) > 1:
                return [f"field 'language': {code!r} may be {' or '.join(meant)}: expected one of them"]
        if self.languages:
            same = len({self.written(code) for code in codes}) <= 1
        else:
            same = all(compatible_languages(code, codes[0]) for code in codes[1:])
        return [] if same else [f"field 'language': one cut, one language; found {', '.join(codes)}"]

    def written(self, code: str) -> str:
        """Return the code that the model writes for a label: its matching language, else the plain language.

        If the task lists no languages, this is the label's canonical form.

        >>> LanguageId(("fr", "pt-BR")).written("fr_CA"), LanguageId(("fr", "pt-BR")).written("de-AT")
        ('fr', 'de')
        """
        if not self.languages:
            return (canonical_tag(code) or code).lower()
        entry = match_language(code, self.languages)
        return language_code(language_token(entry)) if entry is not None else language_group(code) or code

    def from_cut(self, cut: Cut) -> Optional[str]:
        """The language of the turns, as the model writes it."""
        turns = turns_of(cut)
        return self.written(turns[0].language) if turns and turns[0].language else None

    def project(self, answer: Optional[str]) -> Optional[str]:
        """The language as the model writes it."""
        return self.written(answer) if answer and self.languages else answer

    def to_marks(self, answer: Optional[str], num_words: int) -> List[Tuple[int, int, str]]:
        """Return one token before all words."""
        if answer is None:
            return []
        return [(0, RANK_FRONT, language_token(match_language(answer, self.languages) or answer))]

    @property
    def reader(self) -> MarkReader:
        """Reads the language of the first token."""
        return partial(read_first, meanings={token: language_code(token) for token in self.symbols})

    def from_marks(self, marks: Sequence[Mark], num_words: int) -> Optional[str]:
        """See `reader`."""
        return self.reader(marks, num_words)

    def score(self, examples: Sequence[ScoredExample]) -> Dict[str, Any]:
        """Accuracy and confusion counts; a hypothesis without a language token is wrong."""
        pairs = [(e.ref.language or "", e.hyp.language) for e in examples]
        return score_languages(pairs, self.languages or None)


def _label_problem(language: Any) -> str:
    """Return the problem of a turn's language; ``jp`` and similar codes of old labels pass (see `language_problem`)."""
    because = " because the cut is labelled for lid, found "
    if not isinstance(language, str) or not language.strip():
        return f"expected a code such as 'fr'{because}{language!r}"
    return language_problem(language, registered=False).replace(", found ", because, 1)
