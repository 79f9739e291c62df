"""Text normalisers for every language of the recipes, by name.

``words`` (`normalise`), the default. The rules, in order:

1. Emoji and other pictographs become spaces, also those that NFKC would spell as letters (`™`, `ℹ`); a keycap (`1️⃣`)
   becomes its digit, as a separate word.
2. Characters without width are dropped: soft hyphens, zero-width joiners and non-joiners, variation selectors, word
   joiners, byte order marks, direction marks and the other default-ignorable code points of Unicode, enclosing marks,
   and the Arabic elongation (tatweel). So words do not depend on invisible characters: `Zusam\\u00admenarbeit` is
   `zusammenarbeit`, and Persian `می\\u200cخواهم`, Sinhala `ශ්\\u200dරී` are one word, spelt as without the joiner. The
   exception is the zero-width space (U+200B), which becomes a space in every language: it separates the words of Thai,
   Khmer and Lao if they are separated at all.
3. Unicode NFKC (full-width letters, ligatures, superscripts, `…` become their plain forms), then lower case; in
   Turkish, Azerbaijani, Crimean Tatar and Gagauz `I` becomes `ı` and `İ` becomes `i`.
4. Every apostrophe-like sign becomes `'`; it stays only *between* two letters or digits (`l'aide`, `zo'n`), so
   quotation marks vanish: `'s morgens` becomes `s morgens`. In Catalan the middle dot stays too (`col·lecció`).
5. `ё` becomes `е` in Russian, and if no language is given: Russian texts write both for the same sound, often within
   one file. In other languages (Belarusian) it is a separate letter and stays.
6. Everything that is not a letter, a combining mark, a digit or such an apostrophe becomes a space: hyphens
   (`dix-sept` -> `dix sept`), dots (`A.M.` -> `a m`), and brackets, so that no `[` or `]` survives (task tokens use
   them). A combining mark that follows no letter or digit is dropped.
7. In languages written without spaces (Chinese, Cantonese, Min Nan and the other Chinese languages, Japanese) every
   Han, Hiragana or Katakana character becomes a word, with its combining marks, so that the word error rate is the
   usual character error rate.
8. Runs of spaces become one space, and spaces at both ends are removed. Every word has a letter or a digit.

``cased``: the same without lower case. ``none``: the text is unchanged, except that brackets and SentencePiece's space
sign ``▁`` become spaces and spaces follow rule 8, as the label schema requires. A zero-width space counts as a space
here too, and a word without any visible character (a lone variation selector, direction mark or combining mark) is
dropped. Invisible characters *within* words stay.

The language is a code that `tokenverse_pp.base.languages` reads (``tr``, ``tr-TR``, ``tur``). A language without rules
of its own (``fr``) follows the common rules; an invalid code is an error.

Accents are kept: they are spelling, not decoration, in nl, cs, es, fr, it and ru alike. Digits are kept as well;
expand them into words when preparing a corpus, or drop the line (`has_digits`): only the corpus tells how they were
read aloud.
"""

from __future__ import annotations

import unicodedata
from typing import Callable, Dict, List, Optional

import regex

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import lower as lower_case
from tokenverse_pp.base.languages import rules_language
from tokenverse_pp.tasks.transcript import SPACE_SIGN

ZERO_WIDTH_SPACE = "\u200b"
_APOSTROPHES = regex.compile("[\u2018\u2019\u201b\u02bc\u02b9\u0060\u00b4\u2032\uff07]")
_KEYCAPS = regex.compile(r"([\p{Nd}#*])\p{DI}*\u20e3")
_KEYCAP_TEN = "🔟"  # the only keycap that is a single character
# Pictographs, and blanks that NFKC would turn into something else. The two circled ideographs are read aloud.
_BLANKS = regex.compile(r"(?V1)[[\p{Extended_Pictographic}--[㊗㊙]]\u200b\u3164\uffa0]")
# Format characters except the visible ones: number signs, which precede digits, and interlinear annotations.
_INVISIBLE = regex.compile(
    r"(?V1)[[\p{DI}\p{Cf}--[\u200b\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\ufff9-\ufffb\U000110bd\U000110cd]]"
    r"\p{Me}\u0640\u07fa]+"
)
_CATALAN_DOTS = regex.compile("(?<=[lL])[•‧∙⋅・](?=[lL])")  # characters used for the middle dot in texts
_LONE_MARKS = regex.compile(r"(?<![\p{L}\p{N}\p{M}])\p{M}+")
_LONE_SIGN = regex.compile(r"(?<![\p{L}\p{N}\p{M}])['·]|['·](?![\p{L}\p{N}])")
_UNSPACED = regex.compile(r"([\p{Han}\p{Hiragana}\p{Katakana}ー]\p{M}*)")
_VISIBLE = regex.compile(r"[^\p{DI}\p{M}\p{Cc}\p{Cf}\u2800]")  # U+2800: Braille without dots
_BRACKETS = str.maketrans({"[": " ", "]": " ", SPACE_SIGN: " ", ZERO_WIDTH_SPACE: " "})


class _WordCharacters(Dict[int, int]):
    """For `str.translate`: keeps letters, marks, digits and the characters in `kept`; all others become spaces.

    Uses the Unicode version of Python, as NFKC, lower case and `str.isalnum` do, and not the newer one of `regex`.
    """

    def __init__(self, kept: str):
        super().__init__({ord(char): ord(char) for char in kept})

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return self[code]


_WORD_CHARACTERS, _WORD_CHARACTERS_CA = _WordCharacters("'"), _WordCharacters("'·")

CHINESE = frozenset(
    "cdo cjy cnp cpx csp czh czo gan hak hsn lzh mnp nan wuu yue zh".split()  # ISO 639-3: members of `zho`, and `zh`
)
UNSPACED_LANGUAGES = CHINESE | {"ja"}


def normalise(text: str, language: Optional[str] = None, lower: bool = True) -> str:
    """Return `text` as plain words with single spaces between them; `normalise` is idempotent.

    Args:
        language: a code (BCP 47, ISO 639), for the rules of one language.

    Raises:
        UserError: if the language is not a code.
    """
    rules = rules_language(language)
    text = _BLANKS.sub(" ", _KEYCAPS.sub(r" \1 ", text.replace(_KEYCAP_TEN, " 10 ")))
    # Apostrophe look-alikes are replaced before NFKC, which would turn a free-standing acute accent into a space and a
    # combining mark; invisible characters are dropped before, since they keep letters from being composed.
    text = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", _INVISIBLE.sub("", text)))
    text = _INVISIBLE.sub("", text)  # those made by NFKC: tatweels of Arabic presentation forms
    text = unicodedata.normalize("NFKC", lower_case(text, rules) if lower else text)
    text = _APOSTROPHES.sub("'", text)
    if rules == "ca":
        text = _CATALAN_DOTS.sub("·", text)
    if rules in (None, "ru"):
        text = _without_yo(text)
    text = text.translate(_WORD_CHARACTERS_CA if rules == "ca" else _WORD_CHARACTERS)
    text = _LONE_MARKS.sub("", text)
    if rules in UNSPACED_LANGUAGES:
        text = _UNSPACED.sub(r" \1 ", text)
    text = " ".join(_LONE_SIGN.sub(" ", text).split())
    return unicodedata.normalize("NFC", text)


def cased(text: str, language: Optional[str] = None) -> str:
    """`normalise` without lower case."""
    return normalise(text, language, lower=False)


def untouched(text: str, language: Optional[str] = None) -> str:
    """Return the text with single spaces, no brackets and no ``▁``, as the label schema requires; else unchanged."""
    return " ".join(visible_words(text.translate(_BRACKETS)))


def visible_words(text: str) -> List[str]:
    """Split a text at spaces, zero-width ones too, and drop words without a visible character.

    >>> visible_words("a \\ufe0f b\\u200bc")
    ['a', 'b', 'c']
    """
    words = text.replace(ZERO_WIDTH_SPACE, " ").split()
    return words if text.isascii() else [word for word in words if _VISIBLE.search(word)]


Normaliser = Callable[[str, Optional[str]], str]
NORMALISERS: Dict[str, Normaliser] = {"words": normalise, "cased": cased, "none": untouched}


def has_digits(text: str) -> bool:
    """True when a decimal digit of any script is left in `text`."""
    return any(char.isdigit() for char in text)


def check_written(written: bool, normaliser: str) -> None:
    """Check that written texts can be labelled with this normaliser (raises UserError)."""
    if written and normaliser != "words":
        raise UserError("--written: needs --normaliser words, which makes plain words of the written texts")


def _without_yo(text: str) -> str:
    """Replace `ё` by `е`, repeatedly if a second diaeresis follows."""
    while "ё" in text or "Ё" in text:
        text = unicodedata.normalize("NFC", text.replace("ё", "е").replace("Ё", "Е"))
    return text
