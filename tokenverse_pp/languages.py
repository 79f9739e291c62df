"""Language codes: one function reads them, wherever a language chooses a rule.

Codes are BCP 47 tags (``tr``, ``tr-TR``, ``zh-Hans-CN``), ISO 639-2 or 639-3 codes (``tur``, ``cmn``), or locale names
(``ru_RU.UTF-8``). Case does not matter. The parsing is `langcodes`'s.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Iterable, Optional

import langcodes

TURKIC_I = frozenset({"az", "tr"})
"""Languages in which ``I`` is the capital of ``ı``, and ``İ`` that of ``i`` (Unicode's SpecialCasing.txt)."""

_LOCALE_SUFFIX = re.compile(r"[.@].*$")  # of `ru_RU.UTF-8`, `ca_ES@valencia`
_SMALL_TURKIC = str.maketrans({"I": "ı", "İ": "i"})
_DECOMPOSED_TURKIC = re.compile("I\u0307")  # NFD's İ


@lru_cache(maxsize=4096)
def canonical_tag(code: str) -> Optional[str]:
    """A language code in its canonical form (RFC 5646), or None where it is no code.

    >>> canonical_tag("TUR"), canonical_tag("zh_hans_cn"), canonical_tag("zh-yue"), canonical_tag("Turkish")
    ('tr', 'zh-Hans-CN', 'yue', None)
    """
    text = _LOCALE_SUFFIX.sub("", code.strip())
    try:
        return langcodes.standardize_tag(text)
    except (LookupError, ValueError):  # LanguageTagError is a ValueError
        return None


@lru_cache(maxsize=4096)
def primary_language(code: Optional[str]) -> Optional[str]:
    """The language that chooses rules: no region, no script, ISO 639-1 where the language has two letters.

    A language of a macrolanguage gives the latter (Mandarin, ``cmn``, gives ``zh``); Cantonese (``yue``) and Min Nan
    (``nan``) stay what they are. A code that cannot be read is returned in lower case; None and ``""`` give None.

    >>> primary_language("tr-TR"), primary_language("cmn-Hans"), primary_language("RU_ru"), primary_language("zh-yue")
    ('tr', 'zh', 'ru', 'yue')
    """
    if code is None or not code.strip():
        return None
    tag = canonical_tag(code)
    if tag is None:
        return code.strip().lower()
    try:
        language = langcodes.standardize_tag(tag, macro=True)
    except (LookupError, ValueError):
        language = tag
    return language.split("-")[0].lower()


def same_language(a: Optional[str], b: Optional[str]) -> bool:
    """Whether two codes name one language, whatever their region and script.

    >>> same_language("fr-CA", "fra"), same_language("zh", "yue")
    (True, False)
    """
    return a is not None and b is not None and primary_language(a) == primary_language(b)


def match_language(code: Optional[str], supported: Iterable[str]) -> Optional[str]:
    """The entry of ``supported`` that a code means: the same tag, else the same language; None where there is none.

    An entry without a region is preferred to one with another region.

    >>> match_language("pt-br", ["pt", "pt-BR"]), match_language("fr-CA", ["en", "fr"]), match_language("de", ["fr"])
    ('pt-BR', 'fr', None)
    """
    if code is None:
        return None
    entries = list(supported)
    if code in entries:
        return code
    tag = canonical_tag(code)
    same_tag = [entry for entry in entries if tag is not None and canonical_tag(entry) == tag]
    same = same_tag or [entry for entry in entries if same_language(entry, code)]
    return min(same, key=len, default=None)


def lower(text: str, language: Optional[str] = None) -> str:
    """``str.lower`` by the rules of a language.

    >>> lower("IŞIK", "tr-TR"), lower("IŞIK", "en")
    ('ışık', 'işik')
    """
    return _dotless(text).lower() if primary_language(language) in TURKIC_I else text.lower()


def casefold(text: str, language: Optional[str] = None) -> str:
    """``str.casefold`` by the rules of a language, to compare texts without regard to case.

    >>> casefold("İstanbul", "tr") == casefold("istanbul", "tr"), casefold("Isparta", "tr") == casefold("ısparta", "tr")
    (True, True)
    """
    return _dotless(text).casefold() if primary_language(language) in TURKIC_I else text.casefold()


def _dotless(text: str) -> str:
    return _DECOMPOSED_TURKIC.sub("i", text).translate(_SMALL_TURKIC)
