import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.manifests.normalise import has_digits, normalise


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
