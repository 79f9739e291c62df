"""Whisper's words as the recipe writes words: normalised, numbers in letters, each with its time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import match_language
from tokenverse_pp.data.normalise import normalise

SENTENCE_ENDS = (".", "?", "!", "…")
COMMAS = (",", ";", ":")
CLOSING = "\"'»”’)]"

# 1,000 or 1.000 (thousands), 3.5 or 3,5 (a fraction), 12; then what makes an ordinal of it: 2nd, 1er, 3º
_NUMBER = re.compile(r"(\d{1,3}(?:[.,]\d{3})+(?!\d)|\d+[.,]\d+|\d+)((?:st|nd|rd|th|er|ère|e|ème|ste|de|º|ª|°)(?!\w))?")
_THOUSANDS = re.compile(r"\d{1,3}(?:[.,]\d{3})+")


@dataclass(frozen=True)
class SpokenWord:
    """A plain word. ``mark``: ``.`` where Whisper ended a sentence behind it, ``,`` for a lesser pause, or nothing."""

    text: str
    start: float
    end: float
    confidence: float
    mark: str = ""
    number: bool = False


def spoken_words(segments: Sequence[Dict[str, Any]], language: str, spell: bool = True) -> List[SpokenWord]:
    """The plain words of `whisper_pass` segments.

    A written word may be several plain ones (``25`` -> ``twenty five``) or none (a dash). They all have its time.

    Args:
        spell: write numbers in letters, as the references do; without, digits stay as Whisper wrote them.
    """
    found: List[SpokenWord] = []
    for text, start, end, confidence in written_words(segments):
        unspelled = [(word, False) for word in normalise(text, language).split()]
        plain = spell_numbers(text, language) if spell else unspelled
        found += [SpokenWord(word, start, end, confidence, "", number) for word, number in plain]
        mark = mark_of(text)
        if found and mark:
            last = found[-1]
            found[-1] = SpokenWord(last.text, last.start, last.end, last.confidence, mark, last.number)
    return found


def written_words(segments: Sequence[Dict[str, Any]]) -> Iterator[Tuple[str, float, float, float]]:
    """What stands between spaces: (text with punctuation, start, end, lowest probability of its parts).

    Whisper's timed "words" are parts of these: `` n`` and ``'est`` are ``n'est``.
    """
    for segment in segments:
        group: List[Sequence[Any]] = []
        for part in segment["words"]:
            if group and part[0].startswith(" "):
                yield _joined(group)
                group = []
            group.append(part)
        if group:
            yield _joined(group)


def _joined(parts: Sequence[Sequence[Any]]) -> Tuple[str, float, float, float]:
    text = "".join(part[0] for part in parts).strip()
    return text, parts[0][1], parts[-1][2], min(part[3] for part in parts)


def mark_of(text: str) -> str:
    """``.``, ``,`` or nothing: what a written word ends in.

    >>> mark_of("oui."), mark_of("oui..."), mark_of("no?»"), mark_of("ja,"), mark_of("ja")
    ('.', ',', '.', ',', '')
    """
    text = text.rstrip(CLOSING)
    if text.endswith(("...", "…")):  # broken off: what the references call no endpoint
        return ","
    return "." if text.endswith(SENTENCE_ENDS) else "," if text.endswith(COMMAS) else ""


def spell_numbers(text: str, language: str) -> List[Tuple[str, bool]]:
    """Normalised words, and whether each comes from digits.

    Cardinals; ordinals where the digits carry an ending and num2words knows the language's; numbers with leading
    zeros digit by digit. Where num2words does not know the language the digits stay.

    >>> spell_numbers("Room 21.", "en")
    [('room', False), ('twenty', True), ('one', True)]
    """
    words: List[Tuple[str, bool]] = []
    position = 0
    for match in _NUMBER.finditer(text):
        words += [(word, False) for word in normalise(text[position : match.start()], language).split()]
        spelled = in_letters(match[1], bool(match[2]), language)
        words += [(word, True) for word in normalise(spelled, language).split()]
        position = match.end()
    return words + [(word, False) for word in normalise(text[position:], language).split()]


@lru_cache(maxsize=4096)
def in_letters(digits: str, ordinal: bool, language: str) -> str:
    """A number as num2words reads it aloud; ``digits`` itself where it does not know the language.

    Raises:
        UserError: num2words is not installed.
    """
    try:
        from num2words import CONVERTER_CLASSES, num2words
    except ImportError as error:
        raise UserError("num2words is not installed: pip install num2words") from error
    lang = match_language(language, CONVERTER_CLASSES)
    if lang is None:
        return digits
    if _THOUSANDS.fullmatch(digits):
        digits = re.sub("[.,]", "", digits)
    if not digits.isdecimal():
        return num2words(float(digits.replace(",", ".")), lang=lang)
    if len(digits) > 1 and digits.startswith("0"):
        return " ".join(num2words(int(digit), lang=lang) for digit in digits)
    if ordinal:
        try:
            return num2words(int(digits), lang=lang, to="ordinal")
        except NotImplementedError:
            pass
    return num2words(int(digits), lang=lang)
