"""Read NIST's transcription notation in STM, CTM and RTTM: tell words from marks, and resolve the marks.

The marks are those of the formats of sclite (SCTK, ``doc/infmts.htm``) and of the LDC transcripts that are scored
with it. Words in Buckwalter's transliteration of Arabic contain the same signs (``<n``, ``>mr``, ``{lktAb``), so a
single sign is not a mark.

==========================  ===================  ==================================================
mark                        what it is           ``resolve``
==========================  ===================  ==================================================
``{ um / uh / @ }``         alternatives         the first; ``@`` stands for no word
``(word)``, ``(two words)`` optional words       the words
``((a guess))``             unclear speech       the words
``(( ))``                   unclear speech       refused: the words were not transcribed
``%HESITATION``             a filled pause       left out
``%um``, ``%AH``            a filled pause       ``um``, ``AH``
``%BCACK``, ``%BCNACK``     a class of words     refused: the word is unknown
``[noise]``, ``{BREATH}``   a sound              left out
``<sil>``, ``<laugh>``      a sound              left out
``[laughter-yeah]``         a word and a sound   the word
``<B_ASIDE>``               start of an aside    left out, the aside's words are kept
``<unk>``, ``[inaudible]``  unknown word         refused
``the(2)``                  a pronunciation      ``the``
==========================  ===================  ==================================================

Other tags are refused. Fragments (``wor-``, ``-rd``) are words and stay unchanged.
"""

from __future__ import annotations

import re
from typing import List, Optional, Sequence, Tuple

from tokenverse_pp.data.importing.rows import BadRow, shown
from tokenverse_pp.data.lines import fields

MOST_TOKENS = 500  # maximum tokens in one mark
MOST_LEVELS = 20  # maximum depth of nested marks
REFUSE, RESOLVE, KEEP = "refuse", "resolve", "keep"
OPTION = "--nist-notation"

SOUNDS = frozenset(
    "bkg breath cackle click cough crosstalk ding foreground hes laugh laughs laughing laughter "
    "lipsmack music noise nonspeech non-speech no-speech nonvocal overlap pause ring sigh sil silence "
    "smack sneeze sniff sp spn throat".split()
)
ASIDES = frozenset(("aside", "b_aside", "e_aside", "a_aside"))
UNKNOWN = frozenset(("unk", "unknown", "unintelligible", "inaudible", "foreign", "redacted", "oov", "skip", "pii"))
HESITATIONS = frozenset(("hesitation", "hes", "\u062a\u0631\u062f\u0651\u062f", "\u062a\u0631\u062f\u062f"))
WORD_CLASSES = frozenset(("bcack", "bcnack"))  # a backchannel that agrees, one that does not

_SIGNS = re.compile(r"[{}()\[\]<>%@]")
_TAG = re.compile(r"</?([\w.,:=+-]+)/?>")
_KNOWN_TAG = re.compile(rf"</?(?:{'|'.join(sorted(SOUNDS | ASIDES | UNKNOWN))})/?>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"[\w-]+=[\"'].*")
_VARIANT = re.compile(r"([^()]+)\([0-9]+\)")
_PERCENT = re.compile(r"%([^\W\d_][\w'\u2019\u064b-\u0652-]*)")  # with the short vowels of Arabic
_LAUGHED = re.compile(r"laugh(?:ter|ing)?-(.+)", re.IGNORECASE)
_ARABIC = re.compile("[\u0600-\u06ff]")

# The types of words in CTM and in the LEXEME lines of RTTM.
WORD_TYPES = frozenset("lex fp frag for-lex alpha acronym interjection propernoun other".split())
TYPES = WORD_TYPES | {"un-lex", "non-lex", "misc", "noscore"}


def read_words(text: str, notation: str) -> List[str]:
    """Return the words of a transcript (raises BadRow if a mark is refused or cannot be read; the message names it).

    Args:
        notation: ``resolve`` reads marks as in the table above, ``keep`` treats them as words, ``refuse`` rejects them.

    >>> read_words("<n h*A { uh / um } (%HESITATION) hello ((there))", "resolve")
    ['<n', 'h*A', 'uh', 'hello', 'there']
    """
    tokens = fields(text)
    if notation == KEEP or not _SIGNS.search(text):
        return tokens
    return _Reader(notation).words(tokens)


def read_word(text: str, kind: Optional[str], notation: str) -> Optional[str]:
    """Return a word of a CTM or RTTM file, or None for a mark that is left out.

    Args:
        kind: type of the word (`TYPES`), if the file gives one.

    Raises:
        BadRow: if a mark or type is refused or unknown; the message names it.
    """
    kind = (kind or "lex").lower()
    if kind not in TYPES:
        raise BadRow(f"expected a type of word such as lex, frag or fp, found {shown(kind)}")
    if kind not in WORD_TYPES and notation != KEEP:
        reader = _Reader(notation)
        reader.mark(f"{text} {kind}", "a word of this type")
        if kind == "non-lex":
            return None
        if kind != "un-lex":
            raise BadRow(f"word {shown(text)}: words of type {kind} are not to be scored")
    return " ".join(read_words(text, notation)) or None


def split_label(text: str) -> Tuple[Optional[str], str]:
    """Return the label of an STM segment (or None) and the text after it.

    A label is one field in angle brackets, ``<o,f0,male>``. Tags such as ``<unk>`` are marks in the text, and fields
    that may be words (``<bdA>``) are left to `read_words`.

    Raises:
        BadRow: if a label contains spaces or is joined to a word.
    """
    first, *rest = fields(text, maxsplit=1) or [""]
    if not first.startswith("<"):
        return None, text
    if re.fullmatch(r"<[^<>]+>", first):
        if _KNOWN_TAG.fullmatch(first) or ("," not in first and _is_mixed(first[1:-1])):
            return None, text  # a mark, or what may be a word in transliteration
        return first[1:-1], rest[0] if rest else ""
    if "," in first:
        raise BadRow(f"expected a label without spaces and a space after it, such as <o,f0,male>, found {shown(text)}")
    return None, text


class _Reader:
    """Reads the tokens of one transcript."""

    def __init__(self, notation: str):
        self.notation = notation
        self.level = 0

    def mark(self, found: str, what: str) -> None:
        """Raise BadRow for a mark if the notation is ``refuse``."""
        if self.notation == REFUSE:
            raise BadRow(
                f"field 'text': {shown(found)} is NIST notation ({what}): {OPTION} {RESOLVE} reads it, "
                f"{OPTION} {KEEP} takes it as it stands"
            )

    def words(self, tokens: Sequence[str]) -> List[str]:
        """The words of a part of a transcript."""
        if self.level == MOST_LEVELS:
            raise BadRow("field 'text': marks are nested too deeply")
        self.level += 1
        found: List[str] = []
        at = 0
        while at < len(tokens):
            part, at = self._next(tokens, at)
            found += part
        self.level -= 1
        return found

    def _next(self, tokens: Sequence[str], at: int) -> Tuple[List[str], int]:
        """Return the words of the token or mark at index ``at``, and the index after it."""
        token = tokens[at]
        if token[0] == "{":
            return self._braces(tokens, at)
        if token[0] == "(":
            return self._parentheses(tokens, at)
        if token[0] == "[":
            return self._brackets(tokens, at)
        if token[0] == "<" and _ATTRIBUTE.match(" ".join(tokens[at + 1 : at + 2])):
            self.mark(" ".join(tokens[at : at + 2]), "a tag")
            raise BadRow(f"field 'text': tag {shown(' '.join(tokens[at : at + 2]))} is not known")
        return self._single(token), at + 1

    def _single(self, token: str) -> List[str]:
        if token == "}":
            return self._unbalanced(token, "alternatives")
        if token == "@":
            self.mark(token, "no word")
            return []
        if "[" in token or "]" in token:
            self.mark(token, "a word that was not finished, or a sound")
            raise BadRow(f"field 'text': {shown(token)}: brackets within a word")
        variant = _VARIANT.fullmatch(token)
        if variant:
            self.mark(token, "a pronunciation")
            return [variant[1]]
        if ("(" in token or ")" in token) and not _balanced(token):
            return self._unbalanced(token, "optional words")
        percent = _PERCENT.fullmatch(token)
        if percent:
            return self._hesitation(token, percent[1])
        tag = _TAG.fullmatch(token)
        if tag:
            return self._tag(token, tag[1].lower())
        if _KNOWN_TAG.search(token):
            self.mark(token, "a tag")
            raise BadRow(f"field 'text': {shown(token)}: expected a space between a tag and a word")
        return [token]

    def _unbalanced(self, token: str, what: str) -> List[str]:
        self.mark(token, what)
        raise BadRow(f"field 'text': {shown(token)} has no counterpart")

    def _hesitation(self, token: str, name: str) -> List[str]:
        self.mark(token, "a hesitation")
        if name.lower() in HESITATIONS:
            return []
        if name.lower() in WORD_CLASSES:
            raise BadRow(f"field 'text': {shown(token)} stands for a class of words, not for a known word")
        if _is_mixed(name) or _ARABIC.search(name):  # LDC's Arabic transcripts mark sounds like this too, such as %sEAl
            raise BadRow(f"field 'text': mark {shown(token)} is not known")
        return [name]

    def _tag(self, token: str, name: str) -> List[str]:
        self.mark(token, "a tag")
        if name in UNKNOWN:
            raise BadRow(f"field 'text': {shown(token)} stands for words that were not transcribed")
        if name not in SOUNDS | ASIDES:
            raise BadRow(f"field 'text': tag {shown(token)} is not known")
        return []

    def _sound(self, found: str, inner: str) -> List[str]:
        self.mark(found, "a sound")
        laughed = _LAUGHED.fullmatch(inner)
        if laughed:
            return self.words([laughed[1]])
        if inner.lower() in UNKNOWN:
            raise BadRow(f"field 'text': {shown(found)} stands for words that were not transcribed")
        if _is_mixed(inner) and inner.lower() not in SOUNDS:
            raise BadRow(f"field 'text': mark {shown(found)} is not known")
        return []

    def _brackets(self, tokens: Sequence[str], at: int) -> Tuple[List[str], int]:
        end = _closing(tokens, at, "[]")
        if end is None:
            return self._unbalanced(tokens[at], "a sound"), at + 1
        found = " ".join(tokens[at : end + 1])
        if "/" in found:
            self.mark(found, "a word that was said differently")
            raise BadRow(f"field 'text': {shown(found)}: which of the words was said is not known")
        return self._sound(found, found.strip("[] ")), end + 1

    def _parentheses(self, tokens: Sequence[str], at: int) -> Tuple[List[str], int]:
        end = _closing(tokens, at, "()")
        if end is None:
            if _balanced(tokens[at]):  # such as (s)he
                return [tokens[at]], at + 1
            return self._unbalanced(tokens[at], "optional words"), at + 1
        found = " ".join(tokens[at : end + 1])
        inner = fields(found[1:-1])
        if inner and inner[0][0] == "(" and _closing(inner, 0, "()") == len(inner) - 1:
            self.mark(found, "unclear speech")
            inner = fields(" ".join(inner)[1:-1])
            if not inner:
                raise BadRow(f"field 'text': {shown(found)} stands for words that were not transcribed")
        else:
            self.mark(found, "optional words")
        return self.words(inner), end + 1

    def _braces(self, tokens: Sequence[str], at: int) -> Tuple[List[str], int]:
        token = tokens[at]
        match = _braced(tokens, at, apart=True) if token == "{" else None
        match = match or _braced(tokens, at, apart=False)
        if match is None:
            if token == "{":
                return self._unbalanced(token, "alternatives"), at + 1
            return self._single(token), at + 1  # a word in transliteration, such as {lktAb
        inner, after = match
        found = " ".join(tokens[at:after])
        choices = _choices(inner)
        if len(choices) == 1 and len(inner) == 1 and after == at + 1:
            if "/" not in inner[0]:
                return self._sound(found, inner[0]), after
            choices = [[choice] if choice else [] for choice in inner[0].split("/")]
        self.mark(found, "alternatives")
        if len(choices) == 1 or not all(choices):
            raise BadRow(f"field 'text': {shown(found)}: expected alternatives such as {{ um / uh / @ }}")
        return self.words(choices[0]), after


def _is_mixed(name: str) -> bool:
    """Whether a name has capitals after its first letter but is not all capitals, as in transliterated words."""
    return any(char.isupper() for char in name[1:]) and not name.isupper()


def _balanced(token: str) -> bool:
    """Whether the parentheses in a token are balanced."""
    depth = 0
    for char in token:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth < 0:
            return False
    return depth == 0


def _closing(tokens: Sequence[str], at: int, pair: str) -> Optional[int]:
    """Return the index of the token that ends with the bracket closing token ``at``, or None."""
    depth = 0
    for number in range(at, min(at + MOST_TOKENS, len(tokens))):
        token = tokens[number]
        for i, char in enumerate(token):
            depth += 1 if char == pair[0] else -1 if char == pair[1] else 0
            if depth == 0:
                return number if i == len(token) - 1 else None
    return None


def _braced(tokens: Sequence[str], at: int, apart: bool) -> Optional[Tuple[List[str], int]]:
    """Return the content of the braces that open at token ``at``, and the index after them; None if they do not close.

    With ``apart``, a brace counts only as a token by itself, since words in transliteration contain braces.
    """
    inner: List[str] = []
    depth = 0
    for number in range(at, min(at + MOST_TOKENS, len(tokens))):
        pieces = [tokens[number]] if apart else re.findall(r"[{}]|[^{}]+", tokens[number])
        for i, piece in enumerate(pieces):
            depth += {"{": 1, "}": -1}.get(piece, 0)
            if depth == 0:
                return (inner[1:], number + 1) if i == len(pieces) - 1 else None
            inner.append(piece)
    return None


def _choices(tokens: Sequence[str]) -> List[List[str]]:
    """Alternatives, split at the slashes that are not in inner braces."""
    choices: List[List[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += {"{": 1, "}": -1}.get(token, 0)
        if token == "/" and depth == 0:
            choices.append([])
        else:
            choices[-1].append(token)
    return choices
