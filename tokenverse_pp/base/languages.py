"""Language codes: parsing and comparing them.

Codes are BCP 47 tags (``tr``, ``tr-TR``, ``zh-Hans-CN``), ISO 639-2 or 639-3 codes (``tur``, ``cmn``), or locale names
(``ru_RU.UTF-8``). Case does not matter. `langcodes` parses them.

How codes are compared:

- A *rule* (normaliser, word list) and a *group* (statistics, WER by language) depend only on the language:
  `primary_language`. ``tr-TR``, ``TUR`` and ``tr`` are one group.
- A *list* of languages (those that a model can write, files of language models) is matched by `match_language`: the
  same tag first, then the entry of the same language whose region and script do not contradict the code. If the list
  has ``fr``, ``fr-FR`` is ``fr``; if it has ``pt-BR`` and ``pt-PT``, they remain separate.
- A *filter* or an existing label (``manifest subset --language``) is compared by `compatible_languages`.

Code that compares languages calls one of these functions and never compares the strings.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Iterable, List, Optional, Sequence, Tuple

from tokenverse_pp.base.errors import UserError

TURKIC_I = frozenset({"az", "azb", "crh", "gag", "tr"})
"""Languages in which ``I`` is the capital of ``ı``, and ``İ`` that of ``i``: those of Unicode's SpecialCasing.txt, and
Crimean Tatar and Gagauz, whose alphabets have the same four letters."""

UNDETERMINED = frozenset({"mis", "mul", "und", "zxx"})
"""Codes that name no language."""

# English names, for hints only: a name is not a code.
_NAMES = dict(
    pair.split()
    for pair in (
        "albanian sq|amharic am|arabic ar|armenian hy|azerbaijani az|azeri az|basque eu|belarusian be|bengali bn|"
        "bosnian bs|bulgarian bg|burmese my|cantonese yue|catalan ca|chinese zh|croatian hr|czech cs|danish da|"
        "dutch nl|english en|estonian et|farsi fa|finnish fi|flemish nl|french fr|galician gl|georgian ka|german de|"
        "greek el|gujarati gu|hausa ha|hebrew he|hindi hi|hungarian hu|icelandic is|igbo ig|indonesian id|irish ga|"
        "italian it|japanese ja|javanese jv|kannada kn|kazakh kk|khmer km|korean ko|kurdish ku|kyrgyz ky|latvian lv|"
        "lithuanian lt|macedonian mk|malay ms|malayalam ml|maltese mt|mandarin zh|marathi mr|mongolian mn|nepali ne|"
        "norwegian no|pashto ps|persian fa|polish pl|portuguese pt|punjabi pa|romanian ro|russian ru|serbian sr|"
        "sinhala si|slovak sk|slovenian sl|somali so|spanish es|swahili sw|swedish sv|tagalog fil|tamil ta|tatar tt|"
        "telugu te|thai th|tibetan bo|turkish tr|türkçe tr|ukrainian uk|urdu ur|uyghur ug|uzbek uz|vietnamese vi|"
        "welsh cy|yoruba yo|zulu zu"
    ).split("|")
)
_LOCALE_SUFFIX = re.compile(r"[.@].*$", re.DOTALL)  # of `ru_RU.UTF-8`, `ca_ES@valencia`
_LANGUAGE_FIRST = re.compile(r"[a-z]{2,3}(-|$)")  # four letters and more are reserved, by RFC 5646
_SMALL_TURKIC = str.maketrans({"I": "ı", "İ": "i"})
_DECOMPOSED_TURKIC = re.compile("I\u0307")  # NFD's İ


def _langcodes() -> Any:
    """Import the library. The ONNX runtime does not need it if a code is spelled as in the model."""
    try:
        import langcodes
    except ImportError:
        raise UserError("to read language codes: pip install langcodes") from None
    return langcodes


@lru_cache(maxsize=4096)
def canonical_tag(code: str) -> Optional[str]:
    """Return a language code in its canonical form (RFC 5646), or None if it is not a code.

    >>> canonical_tag("TUR"), canonical_tag("zh_hans_cn"), canonical_tag("zh-yue"), canonical_tag("Turkish")
    ('tr', 'zh-Hans-CN', 'yue', None)
    """
    text = _LOCALE_SUFFIX.sub("", code.strip())
    try:
        tag: str = _langcodes().standardize_tag(text)
    except (LookupError, ValueError):  # LanguageTagError is a ValueError
        return None
    return tag if _LANGUAGE_FIRST.match(tag) else None


@lru_cache(maxsize=4096)
def primary_language(code: Optional[str]) -> Optional[str]:
    """Return the language that selects rules: no region, no script, the ISO 639-1 code if there is one.

    A member of a macrolanguage gives the latter (Mandarin, ``cmn``, gives ``zh``); Cantonese (``yue``) and Min Nan
    (``nan``) are not changed. A code that cannot be read is returned in lower case; None and ``""`` give None.

    >>> primary_language("tr-TR"), primary_language("cmn-Hans"), primary_language("RU_ru"), primary_language("zh-yue")
    ('tr', 'zh', 'ru', 'yue')
    """
    if code is None or not code.strip():
        return None
    tag = canonical_tag(code)
    if tag is None:
        return code.strip().lower()
    try:
        language = _langcodes().standardize_tag(tag, macro=True)
    except (LookupError, ValueError):
        language = tag
    return language.split("-")[0].lower()


def same_language(a: Optional[str], b: Optional[str]) -> bool:
    """Whether two codes name one language, whatever their region and script.

    >>> same_language("fr-CA", "fra"), same_language("zh", "yue")
    (True, False)
    """
    first = primary_language(a)
    return first is not None and first == primary_language(b)


@lru_cache(maxsize=4096)
def _parts(code: str) -> Tuple[Optional[str], Optional[str], Optional[str]]:
    """Script and region as the code gives them, and the script that it has or implies (``zh-TW``: ``Hant``)."""
    tag = canonical_tag(code)
    if tag is None:
        return None, None, None
    language = _langcodes().Language.get(tag)
    return language.script, language.territory, language.maximize().script


def compatible_languages(a: Optional[str], b: Optional[str]) -> bool:
    """Whether two codes name one language, and their regions and scripts agree if both give them.

    >>> compatible_languages("fr", "fr-CA"), compatible_languages("pt-BR", "pt-PT")
    (True, False)
    >>> compatible_languages("zh-TW", "zh-Hant"), compatible_languages("zh-TW", "zh-Hans")
    (True, False)
    """
    if a is None or b is None or not same_language(a, b):
        return False
    (script, region, implied), (other_script, other_region, other_implied) = _parts(a), _parts(b)
    if region and other_region and region != other_region:
        return False
    # A plain code (`zh`) agrees with every script; a region (`zh-TW`) implies one.
    both_say = (script or region) and (other_script or other_region)
    return not (both_say and (script or other_script) and implied != other_implied)


def matching_languages(code: Optional[str], supported: Iterable[str]) -> List[str]:
    """Return the entries of ``supported`` that a code may mean, only those of the best kind.

    The kinds, best first: the same text; the same tag; the plain language; an entry whose region and script do not
    contradict the code; any other entry of the language.

    >>> matching_languages("pt", ["en", "pt-BR", "pt-PT"]), matching_languages("pt_pt", ["pt-BR", "pt-PT"])
    (['pt-BR', 'pt-PT'], ['pt-PT'])
    """
    return list(_matching(code, tuple(supported))) if code is not None else []


@lru_cache(maxsize=4096)
def _matching(code: str, supported: Tuple[str, ...]) -> Tuple[str, ...]:
    for form in (str, str.lower):
        same_text = tuple(entry for entry in supported if form(entry) == form(code))
        if same_text:
            return same_text[:1]
    tag = canonical_tag(code)
    same_tag = tuple(entry for entry in supported if tag is not None and canonical_tag(entry) == tag)
    if same_tag:
        return same_tag
    same = tuple(entry for entry in supported if same_language(entry, code))
    agreeing = tuple(entry for entry in same if compatible_languages(entry, code))
    plain = tuple(entry for entry in agreeing if "-" not in (canonical_tag(entry) or entry))
    return plain or agreeing or same


def match_language(code: Optional[str], supported: Iterable[str]) -> Optional[str]:
    """Return the entry of ``supported`` that a code means (`matching_languages`); None if there is none, or several.

    >>> match_language("pt-br", ["pt", "pt-BR"]), match_language("fr-CA", ["en", "fr"]), match_language("de", ["fr"])
    ('pt-BR', 'fr', None)
    """
    found = matching_languages(code, supported)
    return found[0] if len(found) == 1 else None


def language_group(code: Optional[str], apart: Iterable[str] = ()) -> Optional[str]:
    """Return the name under which scores and statistics count a code: an entry of ``apart``, or the language.

    Args:
        apart: codes that are counted separately even if they are of one language, such as those that a model writes.

    >>> language_group("fr-FR"), language_group("PT_br", ["pt-BR", "pt-PT"]), language_group("", ["fr"])
    ('fr', 'pt-br', None)
    """
    if code is None or not code.strip():
        return None
    entry = match_language(code, apart)
    return entry.lower() if entry is not None else primary_language(code)


def languages_told_apart(written: Sequence[str], references: Iterable[str]) -> List[str]:
    """Return the languages that hypotheses and references distinguish, if those of the model are not known.

    Each written code is one. A reference of another region counts as the written code, unless the references have both.

    >>> languages_told_apart(["fr"], ["fr-FR", "FR", "de-DE"]), languages_told_apart(["pt-br"], ["pt-BR", "pt-PT"])
    (['fr', 'de'], ['pt-br', 'pt-pt'])
    """
    found = list(dict.fromkeys(written))
    codes = [code for code in references if code]
    tags = {canonical_tag(code) or code for code in codes}
    for code in sorted(tags, key=lambda tag: (len(tag), tag)):
        entry = match_language(code, found)
        if entry is None:
            if not matching_languages(code, found):
                found.append(primary_language(code) or code)
        elif not compatible_languages(entry, code) and canonical_tag(entry) in tags:
            found.append(code.lower())
    return found


@lru_cache(maxsize=4096)
def language_problem(code: str, registered: bool = True) -> str:
    """Return the problem of a language code, as the end of a message; empty for a valid code.

    Args:
        registered: a code of two letters must also be in ISO 639-1: ``jp`` and ``cz`` are countries. Codes of three
            letters are not checked, since new ones are registered every year.

    >>> language_problem("Turkish"), language_problem("tr_TR")
    ("expected a code such as 'fr' or 'fr-FR' (BCP 47, ISO 639), found 'Turkish'; did you mean 'tr'?", '')
    """
    tag = canonical_tag(code)
    if tag is not None:
        first = tag.split("-")[0]
        if not registered or len(first) > 2 or _langcodes().tag_is_valid(first):
            return ""
    hint = _hint(code)
    meant = f"; did you mean {hint!r}?" if hint else ""
    return f"expected a code such as 'fr' or 'fr-FR' (BCP 47, ISO 639), found {code!r}{meant}"


def _hint(code: str) -> str:
    word = code.strip().lower()
    name = re.match(r"[^\W\d_]+", word)
    if name and name[0] in _NAMES:
        return _NAMES[name[0]]
    if not re.fullmatch("[a-z]{2}", word):
        return ""
    spoken: str = _langcodes().Language.get(f"und-{word}").maximize().language or ""  # if it is a country
    return "" if spoken == "en" else spoken  # `en` is the result for unknown regions


def checked_language(code: str, where: str) -> str:
    """Return the canonical form of a code that a user gave (raises UserError, beginning with ``where``).

    >>> checked_language("pt_br", "--language"), checked_language("FRA", "--language")
    ('pt-BR', 'fr')
    """
    problem = language_problem(code)
    if problem:
        raise UserError(f"{where}: {problem}")
    return canonical_tag(code) or code


def rules_language(code: Optional[str]) -> Optional[str]:
    """Return `primary_language` of a code that selects rules; None if no language is given (or ``und``).

    Raises:
        UserError: it is not a code: the rules of the intended language would not apply.
    """
    if code is None or not code.strip():
        return None
    language = primary_language(checked_language(code, "language"))
    return None if language in UNDETERMINED else language


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
