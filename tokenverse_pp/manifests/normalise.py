"""One text normaliser for every language of the recipes.

The rules, in order:

1. Unicode NFKC (full-width letters, ligatures, `…` become their plain forms), then lower case.
2. Every apostrophe-like sign becomes `'`; it stays only *between* two letters or digits (`l'aide`, `zo'n`), so
   quotation marks vanish: `'s morgens` becomes `s morgens`.
3. `ё` becomes `е`: Russian texts write both for the same sound, often within one file.
4. Everything that is not a letter, a combining mark, a digit or such an apostrophe becomes a space: hyphens
   (`dix-sept` -> `dix sept`), dots (`A.M.` -> `a m`), and brackets, so that no `[` or `]` survives (task tokens use
   them).
5. Runs of spaces become one; none at either end.

Accents are kept: they are spelling, not decoration, in nl, cs, es, fr, it and ru alike. Digits are kept as well;
whoever prepares a corpus expands them into words first or drops the line (`has_digits`), as only they know how they
were read aloud.
"""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u02bc\u02b9\u0060\u00b4\u2032\uff07]")
_LONE_APOSTROPHE = re.compile(r"(?<![^\W_])'|'(?![^\W_])")


def normalise(text: str) -> str:
    """Returns `text` as plain lower-case words with single spaces between them; `normalise` is idempotent."""
    # The apostrophe look-alikes go first: NFKC would turn a free-standing acute accent into a space and a combining
    # mark.
    text = _APOSTROPHES.sub("'", text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    text = _APOSTROPHES.sub("'", text).replace("ё", "е")
    text = "".join(char if _is_word_char(char) else " " for char in text)
    text = " ".join(_LONE_APOSTROPHE.sub(" ", text).split())
    return unicodedata.normalize("NFC", text)


def has_digits(text: str) -> bool:
    """True when a decimal digit of any script is left in `text`."""
    return any(char.isdigit() for char in text)


def _is_word_char(char: str) -> bool:
    return char == "'" or unicodedata.category(char)[0] in "LMN"
