"""Language codes: every spelling of one language chooses the same rules."""

import doctest
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.base import languages
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import (
    canonical_tag,
    casefold,
    checked_language,
    compatible_languages,
    language_problem,
    lower,
    match_language,
    matching_languages,
    primary_language,
    rules_language,
    same_language,
)


def test_doctests():
    assert doctest.testmod(languages).failed == 0


def test_what_is_no_code_and_what_is_one():
    assert {primary_language(code) for code in ("nan", "zh-min-nan", "nan-TW")} == {"nan"}  # others: SPELLINGS
    assert primary_language(" tr ") == "tr"
    assert canonical_tag("french") is None and primary_language("French") == "french"
    assert primary_language(None) is None and primary_language("") is None and primary_language("  ") is None
    assert canonical_tag("") is None and canonical_tag("a") is None


def test_match_prefers_the_tag_then_the_plain_language():
    assert match_language("pt-PT", ["pt-BR", "pt"]) == "pt"
    assert match_language("POR", ["en", "pt-br"]) == "pt-br"
    assert match_language(None, ["pt"]) is None
    assert match_language("yue", ["zh"]) is None


def test_turkish_case():
    assert lower("İI", "tur") == "iı" and casefold("I\u0307I", "az-AZ") == "iı"
    assert casefold("Straße", "de") == "strasse" and lower("I", None) == "i"


def test_kinds_of_matches():
    assert matching_languages("zh-TW", ["zh-Hans", "zh-Hant"]) == ["zh-Hant"]
    assert matching_languages("fr-BE", ["fr-FR", "fr-CA"]) == ["fr-FR", "fr-CA"]
    assert matching_languages("pt", ["pt-BR", "pt-PT", "PT"]) == ["PT"]
    assert matching_languages("jp", ["ja", "jp"]) == ["jp"] and matching_languages(None, ["fr"]) == []
    assert match_language("az", ["az-Cyrl"]) == "az-Cyrl" and match_language("fr", ["fr-FR", "fr-CA"]) is None


def test_what_agrees():
    pairs = [("tr", "tr-Latn-TR"), ("zh-CN", "cmn-Hans"), ("az", "az-Cyrl"), ("en-GB", "en"), ("sr-Latn", "sh")]
    assert all(compatible_languages(a, b) and compatible_languages(b, a) for a, b in pairs)
    pairs = [("en-GB", "en-US"), ("az-Latn", "az-Cyrl"), ("zh-TW", "zh-Hans"), ("no", "nn"), ("id", "ms"), ("fr", None)]
    assert not any(compatible_languages(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "code", ["", "  ", "f", "12", "auto", "none", "fr-", "fr--FR", "en,fr", "a b", "English", "x-own", "xx"]
)
def test_what_cannot_be_a_code(code):
    assert language_problem(code).startswith("expected a code such as 'fr'")
    with pytest.raises(UserError, match="--language: expected a code"):
        checked_language(code, "--language")


def test_private_and_new_codes_pass():
    assert [language_problem(code) for code in ("qaa", "qtz", "zzz", "und", "mis", "i-klingon")] == [""] * 6
    assert rules_language("und") is rules_language(None) is rules_language(" ") is None


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_can_be_asked_about(a, b):
    assert (canonical_tag(a) is None) == bool(language_problem(a, registered=False))
    assert same_language(a, b) == same_language(b, a) and compatible_languages(a, b) == compatible_languages(b, a)
    assert match_language(a, [a, b]) == a
    if canonical_tag(a) is not None:
        assert canonical_tag(canonical_tag(a)) == canonical_tag(a)


def test_a_code_as_the_model_spells_it_needs_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "langcodes", None)
    for function in (canonical_tag, languages._matching):
        function.cache_clear()
    assert matching_languages("qab", ["qaa", "qab"]) == matching_languages("QAB", ["qaa", "qab"]) == ["qab"]
    with pytest.raises(UserError, match="pip install langcodes"):
        matching_languages("qac", ["qaa", "qab"])
