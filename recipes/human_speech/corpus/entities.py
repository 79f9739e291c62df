"""Rule-based named entities for the telephone prompts; one YAML file per language under `rules/` (format:
`rules/README.md`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Dict, FrozenSet, List, Optional, Sequence, Tuple

import yaml

from corpus.clips import Entity
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import primary_language
from tokenverse_pp.data.normalise import normalise

TYPES = ("NUM", "WEEKDAY", "MONTH", "TIME", "LETTER", "NAME")

Word = Tuple[str, Optional[str]]
"""A normalised word and, when something better than the rules tells, its entity type ("" = surely none)."""

_INTEGER = re.compile(r"(?<![\w.,/-])\d+(?!\w|[.,/-]\d)")


@dataclass(frozen=True)
class Rules:
    """The rules of one language; phrases are tuples of normalised words."""

    language: str
    digits: Dict[int, str]
    phrases: Dict[Tuple[str, ...], str]
    before_letter: FrozenSet[Tuple[str, ...]]
    before_number: FrozenSet[Tuple[str, ...]]
    ambiguous_numbers: FrozenSet[str]
    joiners: FrozenSet[str]
    spelling: Dict[Tuple[str, ...], Tuple[str, ...]]
    rephrase: Tuple[Tuple[str, str], ...] = ()
    unsure: Tuple[str, ...] = ()

    @property
    def number_words(self) -> FrozenSet[str]:
        """Every word that may be (part of) a number."""
        listed = {word for phrase, kind in self.phrases.items() if kind == "NUM" for word in phrase}
        return frozenset(listed | self.ambiguous_numbers | {w for text in self.digits.values() for w in text.split()})


@lru_cache(maxsize=16)
def load_rules(language: str) -> Rules:
    """Rules of a language.

    Raises:
        UserError: there is no rule file for it, or the file has an unknown section.
    """
    language = primary_language(language) or language
    file = resources.files(__package__) / "rules" / f"{language}.yaml"
    if not file.is_file():
        raise UserError(f"no entity rules for language {language!r}: expected rules/{language}.yaml")
    return parse_rules(language, yaml.safe_load(file.read_text(encoding="utf-8")))


def parse_rules(language: str, data: dict) -> Rules:
    """Builds `Rules` from the parsed YAML; see `load_rules`."""
    known = {"digits", "none", "before_letter", "before_number", "ambiguous_numbers", "joiners", "spelling"}
    known |= {"rephrase", "unsure", *TYPES}
    unknown = sorted(set(data) - known)
    if unknown:
        raise UserError(f"rules/{language}.yaml: unknown section {unknown[0]!r}, expected one of {sorted(known)}")
    phrases = {_phrase(text): kind for kind in TYPES for text in data.get(kind, [])}
    phrases.update({_phrase(text): "" for text in data.get("none", [])})
    return Rules(
        language=language,
        digits={int(number): normalise(text) for number, text in data.get("digits", {}).items()},
        phrases=phrases,
        before_letter=frozenset(_phrase(text) for text in data.get("before_letter", [])),
        before_number=frozenset(_phrase(text) for text in data.get("before_number", [])),
        ambiguous_numbers=frozenset(normalise(text) for text in data.get("ambiguous_numbers", [])),
        joiners=frozenset(normalise(text) for text in data.get("joiners", [])),
        spelling={_phrase(wrong): _phrase(right) for wrong, right in data.get("spelling", {}).items()},
        rephrase=tuple(data.get("rephrase", {}).items()),
        unsure=tuple(data.get("unsure", [])),
    )


def _phrase(text: object) -> Tuple[str, ...]:
    return tuple(normalise(str(text)).split())


def expand(original: str, rules: Rules) -> Optional[List[Word]]:
    """Normalised words of an original text: integers as words (typed NUM), known misspellings mended.

    None when a number is written that the rules cannot read aloud (`500`, `3D`, `H.323`), or the text is listed as
    unsure.
    """
    for pattern, replacement in rules.rephrase:
        original = re.sub(pattern, replacement, original)
    if any(re.search(pattern, original) for pattern in rules.unsure):
        return None
    words: List[Word] = []
    position = 0
    for match in _INTEGER.finditer(original):
        number = int(match[0])
        if number not in rules.digits:
            return None
        words += _mend(original[position : match.start()], rules)
        words += [(word, "NUM") for word in rules.digits[number].split()]
        position = match.end()
    words += _mend(original[position:], rules)
    return None if any(char.isdigit() for word, _ in words for char in word) else words


def _mend(text: str, rules: Rules) -> List[Word]:
    words = normalise(text).split()
    longest = max((len(wrong) for wrong in rules.spelling), default=0)
    result: List[Word] = []
    i = 0
    while i < len(words):
        for length in range(min(longest, len(words) - i), 0, -1):
            right = rules.spelling.get(tuple(words[i : i + length]))
            if right is not None:
                result += [(word, None) for word in right]
                i += length
                break
        else:
            result.append((words[i], None))
            i += 1
    return result


def find_entities(words: Sequence[Word], rules: Rules) -> Tuple[Entity, ...]:
    """Entities of a text given as words, as character spans into `" ".join(words)`.

    Every word gets the type of the longest listed phrase that it begins (`none` phrases protect), or what `words`
    says of it. Neighbouring NUM words form one entity, joined across `joiners` ("treinta y uno"); a number next to a
    TIME phrase ("three o'clock") is part of the time; letters in a row are one spelled name.
    """
    kinds = _word_types(words, rules)
    spans: List[Tuple[int, int, str]] = []
    for i, (kind, fresh) in enumerate(kinds):
        if not kind:
            continue
        if spans and spans[-1][1] == i and _continues(spans[-1][2], kind, fresh):
            merged = "TIME" if "TIME" in (kind, spans[-1][2]) else kind
            spans[-1] = (spans[-1][0], i + 1, merged)
        elif spans and spans[-1][1] == i - 1 and spans[-1][2] == kind == "NUM" and words[i - 1][0] in rules.joiners:
            spans[-1] = (spans[-1][0], i + 1, "NUM")
        else:
            spans.append((i, i + 1, kind))
    return tuple(_to_characters(words, span) for span in spans)


def _continues(before: str, kind: str, fresh: bool) -> bool:
    if not fresh:
        return True
    if before == kind:
        return kind in ("NUM", "LETTER", "TIME")
    return {before, kind} == {"NUM", "TIME"}


def _word_types(words: Sequence[Word], rules: Rules) -> List[Tuple[str, bool]]:
    """Type of every word ("" = none), and whether an entity may begin there (False inside of a listed phrase)."""
    plain = [word for word, _ in words]
    longest = max((len(phrase) for phrase in rules.phrases), default=0)
    result: List[Tuple[str, bool]] = []
    while len(result) < len(words):
        i = len(result)
        if words[i][1] is not None:
            result.append((str(words[i][1]), True))
            continue
        for length in range(min(longest, len(words) - i), 0, -1):
            kind = rules.phrases.get(tuple(plain[i : i + length]))
            if kind is not None and all(known is None for _, known in words[i : i + length]):
                result += [(kind, j == 0) for j in range(length)]
                break
        else:
            result.append((_by_context(plain, i, rules), True))
    return result


def _by_context(plain: Sequence[str], i: int, rules: Rules) -> str:
    if len(plain[i]) == 1 and plain[i].isalpha() and _follows(plain, i, rules.before_letter):
        return "LETTER"
    if plain[i] in rules.ambiguous_numbers and _follows(plain, i, rules.before_number):
        return "NUM"
    return ""


def _follows(plain: Sequence[str], i: int, contexts: FrozenSet[Tuple[str, ...]]) -> bool:
    return any(len(context) <= i and tuple(plain[i - len(context) : i]) == context for context in contexts)


def _to_characters(words: Sequence[Word], span: Tuple[int, int, str]) -> Entity:
    first, last, kind = span
    start = len(" ".join(word for word, _ in words[:first])) + (1 if first else 0)
    return (start, start + len(" ".join(word for word, _ in words[first:last])), kind)
