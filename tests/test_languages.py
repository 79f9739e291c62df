"""Language codes: every spelling of one language chooses the same rules."""

import doctest

import pytest

from tokenverse_pp import languages
from tokenverse_pp.languages import canonical_tag, casefold, lower, match_language, primary_language


def test_doctests():
    assert doctest.testmod(languages).failed == 0


@pytest.mark.parametrize(
    ("codes", "language"),
    [
        (("tr", "TR", "tr-TR", "tr_TR", "tur", "tr-Latn-TR", "tr_TR.UTF-8", " tr "), "tr"),
        (("az", "aze", "azj", "az-Latn-AZ"), "az"),
        (("zh", "zh-CN", "zh_TW", "zh-Hans-CN", "cmn", "cmn-Hant", "zho", "chi"), "zh"),
        (("yue", "zh-yue", "yue-HK", "yue-Hant-HK"), "yue"),
        (("nan", "zh-min-nan", "nan-TW"), "nan"),
        (("ja", "jpn", "ja-JP"), "ja"),
        (("ru", "rus", "ru_RU", "ru-RU"), "ru"),
        (("ca", "cat", "ca-ES", "ca_ES@valencia", "ca-valencia"), "ca"),
        (("fr", "fra", "fre", "fr-CA"), "fr"),
        (("ne", "nep", "ne-NP"), "ne"),
    ],
)
def test_spellings_of_one_language(codes, language):
    assert {primary_language(code) for code in codes} == {language}


def test_what_is_no_code():
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
