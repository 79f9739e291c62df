import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.data.normalise import NORMALISERS, has_digits, normalise, visible_words
from tokenverse_pp.tasks.transcript import is_task_token


@pytest.mark.parametrize(
    "language, text, expected",
    [
        (None, "Dat is het wrak, hè?", "dat is het wrak hè"),
        (None, "'s Morgens zo'n \"vis\"!", "s morgens zo'n vis"),
        (None, "L’aide (0 € …) dix-sept", "l'aide 0 dix sept"),
        (None, "Нажмите «решётку».", "нажмите решетку"),
        (None, "¡Hola, Ñandú!", "hola ñandú"),
        (None, "A.M. [beep]", "a m beep"),
        (None, "Příšerně  žluťoučký\tkůň", "příšerně žluťoučký kůň"),
        (None, "cafe\u0301", "café"),
        (None, "ﬁn ＡＢＣ", "fin abc"),
        (None, "... - '", ""),
        # What nobody sees is no word and splits none.
        (None, "I ❤️ you", "i you"),
        (None, "I ❤ you, I❤️you", "i you i you"),
        (None, "Zusam\u00admenarbeit", "zusammenarbeit"),
        (None, "මේ ශ්\u200dරී", "මේ ශ්රී"),
        (None, "می\u200cخواهم", "میخواهم"),
        (None, "അവൻ അവന്\u200d", "അവൻ അവന്"),
        (None, "press 1️⃣ now", "press 1 now"),
        (None, "1️⃣2️⃣ #️⃣ *\u20e3 🔟", "1 2 10"),
        (None, "👩‍👩‍👧‍👦 family 👍🏽 ok 🏳️‍🌈", "family ok"),
        (None, "🇫🇷 France 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "france"),
        (None, "ℹ️ info ℹ Brand™ ™️ 🆗", "info brand"),
        (None, "㊙情報 ①②", "秘情報 12"),
        (None, "x² H₂O ½", "x2 h2o 1 2"),
        (None, "a\u200bb ខ្ញុំ\u200bទៅ", "a b ខ្ញុំ ទៅ"),
        (None, "a \ufe0f b \u0301 c \u200d d \u0483 e", "a b c d e"),
        (None, "\u200eשלום\u200f \u2067עולם\u2069", "שלום עולם"),
        (None, "\ufeffhello wor\u2060ld", "hello world"),
        (None, "كتـــــاب ـ", "كتاب"),
        (None, "a\u3164b \uffa0 \u3164", "a b"),
        (None, "한국어 ㄱ", unicodedata.normalize("NFKC", "한국어 ㄱ")),
        (None, unicodedata.normalize("NFD", "한국어"), "한국어"),
        (None, "ब\u0947'x l'\u0301a", "बे'x l'a"),
        (None, "e\u034f\u0301 E\u0301", "é é"),
        (None, "ё\u0308\u0308", "е"),
        (None, "\u2800 \u202f\u00a0", ""),
        # Rules of one language.
        ("ca", "Col·lecció · de l’any", "col·lecció de l'any"),
        ("fr", "a·b", "a b"),
        ("tr", "IĞDIR'da İstanbul", "ığdır'da istanbul"),
        ("en", "IT", "it"),
        ("ru", "Ещё ёлка", "еще елка"),
        ("be", "Яшчэ ёлка", "яшчэ ёлка"),
        ("zh", "今天 OK 了。", "今 天 ok 了"),
        ("ja", "カタカナと漢字", "カ タ カ ナ と 漢 字"),
        ("ko", "한국어 문장", "한국어 문장"),
        ("ja", "か\u3099あ\u3099 ｶﾞ", "が あ\u3099 ガ"),
        ("ja", "今\ufe00日\U000e0100は", "今 日 は"),
        ("wuu", "今天OK", "今 天 ok"),
        ("ca-ES", "COL•LECCIÓ, col‧lecció ŀl a•b l•l", "col·lecció col·lecció l·l a b l·l"),
        ("crh", "QIRIM", "qırım"),
        ("und", "ещё", "еще"),
        ("tr", "I\u034f\u0307", "i"),
    ],
)
def test_examples(language, text, expected):
    assert normalise(text, language) == expected


def test_digits_are_seen_in_any_script():
    assert has_digits("room 5") and has_digits("२५") and not has_digits("room five")


def test_cased_and_none():
    assert NORMALISERS["cased"]("L’Aide, [NE] MAX!", "fr") == "L'Aide NE MAX"
    assert NORMALISERS["none"](" L’Aide,  [NE] ▁MAX! ", "fr") == "L’Aide, NE MAX!"


def test_none_keeps_what_it_can_see():
    untouched = NORMALISERS["none"]
    assert untouched("a \ufe0f b \u200f \u0301 c") == "a b c"
    assert untouched("Zusam\u00admenarbeit ❤️ می\u200cخواهم") == "Zusam\u00admenarbeit ❤️ می\u200cخواهم"
    assert untouched("a\u200bb\u2800 \u2800") == "a b\u2800"
    assert visible_words("a \ufe0f b") == ["a", "b"]


@given(st.text(alphabet="aéßЁñČİΣ' .-’"))
def test_case_and_form_do_not_matter(text):
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(text)


@given(st.text(), st.sampled_from(sorted(NORMALISERS)), st.sampled_from([None, "ca", "tr", "ru", "zh", "be"]))
def test_every_normaliser_gives_what_the_label_schema_takes_and_keeps_it(text, name, language):
    result = one_for_all_of_unicode(text, language, name)
    assert not any(is_task_token(word) or "[" in word or "]" in word for word in result.split())
    assert name == "none" or all(word.strip("'") == word for word in result.split())


INVISIBLE = [
    *("\u00ad", "\u034f", "\u061c", "\u180e", "\u200c", "\u200d", "\u200e", "\u200f", "\u202b", "\u202c", "\u2060"),
    *("\u2063", "\u2066", "\u2069", "\u115f", "\u17b5", "\u180b", "\ufe00", "\ufe0e", "\ufe0f", "\ufeff"),
    *("\U000e0041", "\U000e007f", "\U000e0100", "\U0001d173"),
]


def one_for_all_of_unicode(text, language, name):
    """What holds for each text, however odd; -> the normalised text."""
    normaliser = NORMALISERS[name]
    result = normaliser(text, language)
    assert normaliser(result, language) == result
    assert result == " ".join(result.split())
    if name != "none":
        assert not regex.search(r"\p{DI}|\p{Cf}|\p{Me}|[^\p{L}\p{M}\p{N}'· ]", result)
        assert all(any(char.isalnum() for char in word) for word in result.split())
        assert unicodedata.is_normalized("NFKC", result)
    return result


LANGUAGES = [None, "ar", "ca-ES", "fa", "hi", "ja", "ko", "ru_RU", "si", "th", "tr-TR", "und", "zh-TW"]
# Characters that change into, attach to or hide others, more often than chance would have them.
ODD = st.sampled_from(
    "aIiİıßΣς'’·lñёЁЕ\u0308\u0301\u0323\u0345\u3099 かｶﾞ今한ㅎㅏﹱـकीශ්ී\u200b\u3164\u20e3１①#❤👩🏽🇫™ℹ㊙-[´\u2028"
)
texts = st.lists(ODD | st.sampled_from(INVISIBLE) | st.characters(), max_size=6).map("".join)


def check_invisible(text, at, char, language, name):
    clean = "".join(c for c in text if c in "\u200b\u3164\uffa0" or not regex.match(r"\p{DI}", c))
    with_one = clean[: at % (len(clean) + 1)] + char + clean[at % (len(clean) + 1) :]
    assert len({one_for_all_of_unicode(t, language, name) for t in (text, clean, with_one)}) == 1


ARGUMENTS = (texts, st.integers(0, 9), st.sampled_from(INVISIBLE), st.sampled_from(LANGUAGES))


@settings(max_examples=150)
@given(*ARGUMENTS, st.sampled_from(["words", "cased"]))
def test_words_do_not_depend_on_what_nobody_sees(text, at, char, language, name):
    check_invisible(text, at, char, language, name)


@given(texts, st.sampled_from(LANGUAGES))
def test_none_on_any_text(text, language):
    one_for_all_of_unicode(text, language, "none")


@pytest.mark.slow
@settings(max_examples=10_000)
@given(*ARGUMENTS, st.sampled_from(["words", "cased"]))
def test_words_do_not_depend_on_what_nobody_sees_at_length(text, at, char, language, name):
    check_invisible(text, at, char, language, name)


@pytest.mark.slow
def test_every_character_alone_and_beside_others():
    for char in map(chr, range(0x110000)):
        if unicodedata.category(char) not in ("Cn", "Co"):
            for context in ("{}", "a{}b", "е{}", "か{}", "'{}a"):
                one_for_all_of_unicode(context.format(char), None, "words")
