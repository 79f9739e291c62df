import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.manifests.normalise import NORMALISERS, has_digits, normalise
from tokenverse_pp.tasks.transcript import is_task_token


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Dat is het wrak, hè?", "dat is het wrak hè"),
        ("'s Morgens zo'n \"vis\"!", "s morgens zo'n vis"),
        ("L’aide (0 € …) dix-sept", "l'aide 0 dix sept"),
        ("Нажмите «решётку».", "нажмите решетку"),
        ("¡Hola, Ñandú!", "hola ñandú"),
        ("A.M. [beep]", "a m beep"),
        ("Příšerně  žluťoučký\tkůň", "příšerně žluťoučký kůň"),
        ("cafe\u0301", "café"),
        ("ﬁn ＡＢＣ", "fin abc"),
        ("... - '", ""),
    ],
)
def test_examples(text, expected):
    assert normalise(text) == expected


@given(st.text())
def test_result_is_plain_words_and_stays_so(text):
    result = normalise(text)
    assert normalise(result) == result
    assert not set('[]()<>{}"') & set(result)
    assert result.split(" ") == result.split() or result == ""
    assert all(word.strip("'") == word for word in result.split())


@given(st.text(alphabet="aéßЁñČİΣ' .-’"))
def test_case_and_form_do_not_matter(text):
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(text)


def test_digits_are_seen_in_any_script():
    assert has_digits("room 5") and has_digits("२५") and not has_digits("room five")


@pytest.mark.parametrize(
    "language, text, expected",
    [
        ("ca", "Col·lecció · de l’any", "col·lecció de l'any"),
        ("fr", "a·b", "a b"),
        ("tr", "IĞDIR'da İstanbul", "ığdır'da istanbul"),
        ("en", "IT", "it"),
        ("ru", "Ещё ёлка", "еще елка"),
        ("be", "Яшчэ ёлка", "яшчэ ёлка"),
        ("zh", "今天 OK 了。", "今 天 ok 了"),
        ("ja", "カタカナと漢字", "カ タ カ ナ と 漢 字"),
        ("ko", "한국어 문장", "한국어 문장"),
    ],
)
def test_rules_of_one_language(language, text, expected):
    assert normalise(text, language) == expected


def test_cased_and_none():
    assert NORMALISERS["cased"]("L’Aide, [NE] MAX!", "fr") == "L'Aide NE MAX"
    assert NORMALISERS["none"](" L’Aide,  [NE] MAX! ", "fr") == "L’Aide, NE MAX!"


@given(st.text(), st.sampled_from(sorted(NORMALISERS)), st.sampled_from([None, "ca", "tr", "ru", "zh", "be"]))
def test_every_normaliser_gives_what_the_label_schema_takes_and_keeps_it(text, name, language):
    result = NORMALISERS[name](text, language)
    assert NORMALISERS[name](result, language) == result
    assert result == " ".join(result.split())
    assert not any(is_task_token(word) or "[" in word or "]" in word for word in result.split())
