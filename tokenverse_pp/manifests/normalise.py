"""Text normalisers for every language of the recipes, by name.

``words`` (`normalise`), the default. The rules, in order:

1. Unicode NFKC (full-width letters, ligatures, `…` become their plain forms), then lower case; in Turkish and Azeri `I`
   becomes `ı` and `İ` becomes `i`.
2. Every apostrophe-like sign becomes `'`; it stays only *between* two letters or digits (`l'aide`, `zo'n`), so
   quotation marks vanish: `'s morgens` becomes `s morgens`. In Catalan the middle dot stays likewise (`col·lecció`).
3. `ё` becomes `е` in Russian, and where no language is given: Russian texts write both for the same sound, often within
   one file. In other languages (Belarusian) it is a letter of its own and stays.
4. Everything that is not a letter, a combining mark, a digit or such an apostrophe becomes a space: hyphens
   (`dix-sept` -> `dix sept`), dots (`A.M.` -> `a m`), and brackets, so that no `[` or `]` survives (task tokens use
   them).
5. In languages written without spaces (Chinese, Cantonese, Min Nan, Japanese) every Han, Hiragana or Katakana character
   becomes a word, so that the word error rate is the usual character error rate.
6. Runs of spaces become one; none at either end.

``cased``: the same without lower case. ``none``: the text as it is, but for brackets, which become spaces, and rule 6:
the label schema asks for both.

Accents are kept: they are spelling, not decoration, in nl, cs, es, fr, it and ru alike. Digits are kept as well;
whoever prepares a corpus expands them into words first or drops the line (`has_digits`), as only they know how they
were read aloud.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Callable, Dict, Optional

_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u02bc\u02b9\u0060\u00b4\u2032\uff07]")
_LONE_SIGN = re.compile(r"(?<![^\W_])['·]|['·](?![^\W_])")
_DOTLESS_I = str.maketrans({"I": "ı", "İ": "i"})
_BRACKETS = str.maketrans("[]", "  ")
_UNSPACED = re.compile(
    "([\u3005-\u3007\u3041-\u309f\u30a1-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)

DOTLESS_I_LANGUAGES = ("az", "tr")
UNSPACED_LANGUAGES = ("ja", "nan", "yue", "zh")


def normalise(text: str, language: Optional[str] = None, lower: bool = True) -> str:
    """Returns `text` as plain words with single spaces between them; `normalise` is idempotent.

    Args:
        language: ISO 639 code, for the rules of one language.
        lower: in lower case.
    """
    # The apostrophe look-alikes go first: NFKC would turn a free-standing acute accent into a space and a combining
    # mark.
    text = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", text))
    if lower:
        text = text.translate(_DOTLESS_I) if language in DOTLESS_I_LANGUAGES else text
        text = unicodedata.normalize("NFKC", text.lower())
    text = _APOSTROPHES.sub("'", text)
    if language in (None, "ru"):
        text = text.replace("ё", "е").replace("Ё", "Е")
    kept = "'·" if language == "ca" else "'"
    text = "".join(char if _is_word_char(char, kept) else " " for char in text)
    if language in UNSPACED_LANGUAGES:
        text = _UNSPACED.sub(r" \1 ", text)
    text = " ".join(_LONE_SIGN.sub(" ", text).split())
    return unicodedata.normalize("NFC", text)


def cased(text: str, language: Optional[str] = None) -> str:
    """`normalise` without lower case."""
    return normalise(text, language, lower=False)


def untouched(text: str, language: Optional[str] = None) -> str:
    """Single spaces and no brackets, as the label schema wants; otherwise as it is."""
    return " ".join(text.translate(_BRACKETS).split())


Normaliser = Callable[[str, Optional[str]], str]
NORMALISERS: Dict[str, Normaliser] = {"words": normalise, "cased": cased, "none": untouched}


def has_digits(text: str) -> bool:
    """True when a decimal digit of any script is left in `text`."""
    return any(char.isdigit() for char in text)


def _is_word_char(char: str, kept: str) -> bool:
    return char in kept or unicodedata.category(char)[0] in "LMN"
