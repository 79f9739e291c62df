"""Punctuation and case: ``[CAP] bonjour [,] [CAP] amélie [!]`` is written ``Bonjour, Amélie!``.

| token | stands | is read from | is written |
|---|---|---|---|
| ``[.]`` | after a word | ``.`` ``…`` ``。`` ``।`` ``۔`` | ``.``; ``。`` or ``।`` by script |
| ``[,]`` | after a word | ``,`` ``;`` ``、`` ``，`` ``；`` ``،`` ``؛`` | ``,``; ``，`` or ``،`` |
| ``[?]`` | after a word | ``?`` ``？`` ``؟`` | ``?``; ``？`` or ``؟`` |
| ``[!]`` | after a word | ``!`` ``！`` | ``!``; ``！`` |
| ``[:]`` | after a word | ``:`` ``：`` | ``:``; ``：`` |
| ``[CAP]`` | before a word | a word whose first letter alone is a capital | that letter as a capital |
| ``[ALLCAPS]`` | before a word | a word of two or more letters, all capitals | all letters as capitals |

Of several signs between two words (``?!``, ``...``) the strongest is kept: ``?``, ``!``, ``.``, ``:``, ``,``. A sign
within a word or number (``3,5``, ``A.M.``) is not a mark. Other signs (quotes, brackets, dashes, ``¿``) and capitals in
the middle of a word are not restored. Neither torch nor lhotse is imported.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Dict, Iterable, List, Optional, Sequence, Tuple

from tokenverse_pp.base.languages import TURKIC_I, primary_language
from tokenverse_pp.metrics.error_rates import words_in_common
from tokenverse_pp.metrics.f1 import f1_score, score_positions
from tokenverse_pp.tasks.base import RANK_MARK, RANK_OPEN, ScoredExample, Task
from tokenverse_pp.tasks.transcript import Mark, split_marks, turns_of, word_spans

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from tokenverse_pp.tasks.result import TranscriptReader

CAP, ALLCAPS = "[CAP]", "[ALLCAPS]"
# The signs of each mark, strongest first: of several signs between two words the strongest is kept.
SIGNS = {"?": "?？؟\u037e", "!": "!！", ".": ".…。．｡।۔", ":": ":：", ",": ",;，；、､،؛"}
SIGN_OF = {sign: mark for mark, signs in SIGNS.items() for sign in signs}
STRENGTH = {mark: len(SIGNS) - i for i, mark in enumerate(SIGNS)}
TOKENS = tuple(f"[{mark}]" for mark in ".,?!:")
CJK, ARABIC, DEVANAGARI = "CJK", "ARABIC", "DEVANAGARI"
# How a mark is written after a word of these scripts; after other words it is not changed.
SCRIPTS = {
    CJK: {".": "。", ",": "，", "?": "？", "!": "！", ":": "："},
    ARABIC: {",": "،", "?": "؟"},
    DEVANAGARI: {".": "।"},
}
COMPLETE = {"?": True, "!": True, ".": True, ":": False, ",": False}
WAVES = "〜〰"  # dashes in Unicode, but they lengthen a vowel
APOSTROPHES = "\u02bc\u02b9\u0640"  # letters in Unicode that are not part of a word, and the Arabic elongation
WRITTEN = "written"  # key of supervision.custom

Written = Tuple[Tuple[int, str], ...]  # (position, token), in order


class Punctuation(Task):
    """Answer: (position, token) in order; position p is the gap before word p, as everywhere.

    Labelled by ``supervision.custom["written"]``, the turn's text as printed. Its letters and digits must be those of
    ``supervision.text``, except for case and accents. Parsing keeps the first of several marks after a word and of
    several capitals before a word; it drops a mark before the first word and a capital after the last word.
    """

    name: ClassVar[str] = "punct"
    own_fields: ClassVar[Tuple[str, ...]] = (WRITTEN,)
    symbols = (*TOKENS, CAP, ALLCAPS)

    @property
    def ranks(self) -> Dict[str, int]:
        """Marks directly after a word (after an entity's end), capitals before one."""
        return {**dict.fromkeys(TOKENS, RANK_MARK), CAP: RANK_OPEN, ALLCAPS: RANK_OPEN}

    def check(self, cut: Cut) -> List[str]:
        """Check that every turn has a written text that fits its words."""
        problems = []
        for turn in turns_of(cut):
            written = turn.custom.get(WRITTEN)
            if not isinstance(written, str):
                found = "expected a text because the cut is labelled for punct, found"
                problems.append(f"supervision {turn.index}, field 'custom.written': {found} {written!r}")
                continue
            try:
                read_written(written, turn.words)
            except ValueError as error:
                problems.append(f"supervision {turn.index}, field 'custom.written': {error}")
        return problems

    def from_cut(self, cut: Cut) -> Written:
        """The marks and capitals of all turns."""
        return tuple(
            (turn.first_word + position, token)
            for turn in turns_of(cut)
            for position, token in read_written(turn.custom[WRITTEN], turn.words)
        )

    def to_marks(self, answer: Written, num_words: int) -> List[Tuple[int, int, str]]:
        """The tokens at their positions."""
        return [(position, self.ranks[token], token) for position, token in answer]

    def from_marks(self, marks: Sequence[Mark], num_words: int) -> Written:
        """See the class's docstring."""
        found: Dict[Tuple[int, int], str] = {}
        for mark in marks:
            is_valid = mark.position > 0 if mark.text in TOKENS else mark.position < num_words
            if is_valid:
                found.setdefault((mark.position, self.ranks[mark.text]), mark.text)
        return tuple((position, token) for (position, _), token in sorted(found.items()))

    def score(self, examples: Sequence[ScoredExample]) -> Dict[str, Any]:
        """Precision, recall and F1 of each mark and each kind of capital, of all marks, and the accuracy of case.

        A mark is correct if it follows the same (aligned) word, see `metrics.f1.count_aligned`. If the words are the
        reference's, this is the F1 of each class over the slots after the words, as in scikit-learn's
        ``classification_report``: a wrong mark counts as one false negative and one false positive. ``case`` is the
        share of the words common to both texts (in an alignment with the fewest errors) that have the same capitals.
        """
        scores: Dict[str, Any] = {
            symbol.strip("[]"): score_positions([self._positions(e, symbol) for e in examples])
            for symbol in self.symbols
        }
        counts = [sum(int(scores[token[1:-1]][key]) for token in TOKENS) for key in ("tp", "fp", "fn")]
        right = words = 0
        for e in examples:
            ref, hyp = (self._capitals(side.answers.get(self.name, ())) for side in (e.ref, e.hyp))
            pairs = words_in_common(e.ref.words, e.hyp.words)
            words += len(pairs)
            right += sum(ref.get(i) == hyp.get(j) for i, j in pairs)
        return {
            "all": f1_score(*counts),
            **scores,
            "case": {"accuracy": right / max(words, 1), "right": right, "words": words},
        }

    def _positions(self, e: ScoredExample, symbol: str) -> Tuple[Sequence[str], List[int], Sequence[str], List[int]]:
        ref, hyp = (
            [position for position, token in side.answers.get(self.name, ()) if token == symbol]
            for side in (e.ref, e.hyp)
        )
        return e.ref.words, ref, e.hyp.words, hyp

    @staticmethod
    def _capitals(answer: Written) -> Dict[int, str]:
        return {position: token for position, token in answer if token not in TOKENS}


def is_complete(text: str) -> Optional[bool]:
    """Return whether the last sign of a written text ends a sentence; None if there is no sign.

    A comma, a colon and a dash (a speaker who breaks off) do not. Quotes and brackets that close after the sign, spaces
    and invisible characters do not count.

    >>> is_complete("Oui !"), is_complete("“他说：‘好。’”"), is_complete("I think —"), is_complete("oui")
    (True, True, False, None)
    """
    last = next((char for char in reversed(text) if not _may_follow_a_sign(char)), "")
    if last in SIGN_OF:
        return COMPLETE[SIGN_OF[last]]
    return False if last and unicodedata.category(last) == "Pd" and last not in WAVES else None


def _may_follow_a_sign(char: str) -> bool:
    # German closes quotes with the sign (Pi) that opens them in English.
    return char.isspace() or char in "\"'＂＇" or unicodedata.category(char) in ("Pe", "Pf", "Pi", "Cf")


def read_written(written: str, words: Sequence[str]) -> Written:
    """Return the marks and capitals of a written text, at positions in its plain words.

    Raises:
        ValueError: its letters and digits differ from those of the words in more than case and accents.

    >>> read_written("Bonjour, AMÉLIE!", ["bonjour", "amélie"])
    ((0, '[CAP]'), (1, '[,]'), (1, '[ALLCAPS]'), (2, '[!]'))
    """
    found: List[Tuple[int, str]] = []
    for i, (word, piece, signs) in enumerate(zip(words, *_pieces(written, words))):
        case = _case(piece)
        if case and word == word.lower():  # plain words may have kept their own capitals and marks
            found.append((i, case))
        marks = [SIGN_OF[sign] for sign in signs if sign in SIGN_OF]
        if marks and word[-1] not in SIGN_OF:
            found.append((i + 1, f"[{max(marks, key=STRENGTH.__getitem__)}]"))
    return tuple(found)


def _pieces(written: str, words: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Return for each word the characters of ``written`` that spell it, and the signs between it and the next word."""
    keys = ["".join(map(_key, word)) for word in words]
    pieces, after = [""] * len(words), [""] * len(words)
    at = done = 0  # index of the word; characters of its key found so far
    gap = ""
    for char in written:
        if unicodedata.category(char)[0] == "M":
            continue
        added = -1
        for key in _key(char):
            while at < len(words) and done == len(keys[at]):
                # A sign directly followed by a letter or digit is within a word or number (A.M., 3,5).
                if gap and gap[-1] not in ".,:;":
                    after[at] = gap
                gap, at, done = "", at + 1, 0
            if at == len(words) or keys[at][done] != key:
                where = " ".join(words[max(at - 2, 0) : at + 1])
                raise ValueError(f"does not fit the plain words at {where!r}: found {written!r:.80}")
            done += 1
            if added != at:  # add a ligature once, although its key has several letters
                pieces[at] += char
            gap, added = "", at
        if not _key(char):
            gap += char
    while at < len(words) and done == len(keys[at]):
        after[at] = gap
        gap, at, done = "", at + 1, 0
    if at < len(words):
        raise ValueError(f"ends before the plain words, at {words[at]!r}: found {written!r:.80}")
    return pieces, after


@lru_cache(maxsize=10_000)
def _key(char: str) -> str:
    """Return the letters and digits to compare, without case, accents and the dot of an i."""
    if unicodedata.category(char)[0] not in "LN":  # also signs that NFKD would spell out
        return ""
    for fold in (str, str.casefold):
        spelt = unicodedata.normalize("NFKD", fold(char)).replace("ı", "i")
        char = "".join(part for part in spelt if unicodedata.category(part)[0] in "LN" and part not in APOSTROPHES)
    return char


def _case(piece: str) -> Optional[str]:
    """Return the capital token of a word (``Xx`` or ``XX``); None for any other pattern of capitals."""
    letters = [char for char in piece if char.isupper() or char.istitle() or char.islower()]
    if not letters or letters[0].islower() or letters[0] != piece[0]:
        return None
    if len(letters) > 1 and all(char.isupper() for char in letters):
        return ALLCAPS
    return CAP if all(char.islower() for char in letters[1:]) else None


def spelled(words: Sequence[str], marks: Iterable[Tuple[int, str]], language: Optional[str] = None) -> List[str]:
    """Plain words with their capitals, each followed by its mark.

    Args:
        marks: (position, token); those of other tasks are ignored.
        language: selects the capitals of Turkish and similar languages.

    >>> spelled(["bonjour", "amélie"], [(0, "[CAP]"), (1, "[,]"), (1, "[CAP]"), (2, "[!]")])
    ['Bonjour,', 'Amélie!']
    """
    out, signs = list(words), [""] * len(words)
    for position, token in marks:
        if token in TOKENS and 0 < position <= len(words) and not signs[position - 1]:
            mark, script = token[1:-1], script_of(words[position - 1])
            signs[position - 1] = SCRIPTS[script].get(mark, mark) if script else mark
        elif token in (CAP, ALLCAPS) and position < len(words) and out[position] == words[position]:
            head = 1 if token == CAP else len(words[position])
            out[position] = _upper(words[position][:head], language) + words[position][head:]
    return [word + sign for word, sign in zip(out, signs)]


def joined(pieces: Sequence[str]) -> str:
    """Join spelled words with spaces, except between two words of Chinese or Japanese.

    >>> joined(["Oui,", "merci."]), joined(["你", "好，", "世", "界。"])
    ('Oui, merci.', '你好，世界。')
    """
    return "".join(gap(before, piece) + piece for before, piece in zip(("", *pieces), pieces))


def gap(before: str, piece: str) -> str:
    """What stands between two spelled words (see `joined`), and before the first one, where ``before`` is empty."""
    return " " if before and not script_of(before) == script_of(piece) == CJK else ""


def settled_text(pieces: Sequence[str], reader: TranscriptReader) -> str:
    """Return the written text that later pieces do not change: a sign may still follow the last word.

    The same as `Transcript.written_text`, but without times and confidences, as it is needed for each window of a long
    recording: a transcript of all words so far would take longer than the window's search.
    """
    words, marks = split_marks([text for text, _, _ in word_spans(pieces)])
    if "punct" not in reader.names:
        return " ".join(words)
    language = reader.answers(words, marks).language
    return joined(spelled(words, ((mark.position, mark.text) for mark in marks), language)[:-1])


def script_of(word: str) -> Optional[str]:
    """Return the key of `SCRIPTS` for a word's last letter; None for other scripts."""
    letter = next((char for char in reversed(word) if unicodedata.category(char)[0] == "L"), "")
    if not letter or letter.isascii():
        return None
    name = unicodedata.name(letter, "")
    if name.startswith(("CJK ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "IDEOGRAPHIC ")):  # with ー and 々
        return CJK
    return next((script for script in (ARABIC, DEVANAGARI) if name.startswith(script)), None)


def _upper(text: str, language: Optional[str]) -> str:
    """Capitalise each letter; a letter without a capital of one character (``ß``) is kept."""
    dotted = primary_language(language) in TURKIC_I
    found = ("İ" if dotted and char == "i" else char.title() for char in text)
    return "".join(new if len(new) == 1 else char for char, new in zip(text, found))
