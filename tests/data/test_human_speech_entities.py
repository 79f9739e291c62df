import pytest
from corpus.entities import TYPES, expand, find_entities, load_rules, parse_rules
from corpus.packages import ASTERISK_LANGUAGES
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError


def entities(text, language):
    rules = load_rules(language)
    words = expand(text, rules)
    plain = " ".join(word for word, _ in words)
    return [(plain[start:end], kind) for start, end, kind in find_entities(words, rules)]


@pytest.mark.parametrize(
    "language, text, expected",
    [
        ("en", "Press 1 or twenty two.", [("one", "NUM"), ("twenty two", "NUM")]),
        ("en", "One moment, please.", []),
        ("en", "Use the 7 key for Q", [("seven", "NUM"), ("q", "LETTER")]),
        ("en", "at three o'clock on Sunday", [("three o'clock", "TIME"), ("sunday", "WEEKDAY")]),
        ("en", "Asterisk is by Digium", [("asterisk", "NAME"), ("digium", "NAME")]),
        ("es", "Marque treinta y uno", [("treinta y uno", "NUM")]),
        ("es", "una persona y dos", [("dos", "NUM")]),
        ("es", "Marque 1 o marque 0", [("uno", "NUM"), ("cero", "NUM")]),
        ("fr", "Appuyez sur un pour un poste", [("un", "NUM")]),
        ("fr", "quatre-vingt-dix ou cinq cents", [("quatre vingt dix", "NUM"), ("cinq cents", "NUM")]),
        ("it", "Attualmente sei l'unica persona", []),
        ("it", "Premere 6, poi premere sei", [("sei", "NUM"), ("sei", "NUM")]),
        ("ru", "Нажмите 1 для Q", [("один", "NUM"), ("q", "LETTER")]),
    ],
)
def test_examples(language, text, expected):
    assert entities(text, language) == expected


def test_numbers_that_have_no_one_reading_are_refused():
    rules = load_rules("en")
    for text in ("dial 500", "3D", "H.323", "0.5", "7-8"):
        assert expand(text, rules) is None


def test_text_is_what_the_reader_says():
    rules = load_rules("es")
    assert [word for word, _ in expand("Marque 7 para borrar.", rules)] == "marque el número siete para borrar".split()
    assert [word for word, _ in expand("Marque 0, marque 2.", rules)] == "marque cero marque el número dos".split()
    assert expand("Marque 1 para grabar, 2 para borrar.", rules) is None


def test_known_misspellings_are_mended():
    assert [word for word, _ in expand("El numero, atravez de", load_rules("es"))] == [
        "el",
        "número",
        "a",
        "través",
        "de",
    ]


@pytest.mark.parametrize("language", ASTERISK_LANGUAGES)
@given(data=st.data())
def test_spans_lie_on_word_boundaries_in_order(language, data):
    rules = load_rules(language)
    vocabulary = sorted({word for phrase in rules.phrases for word in phrase} | {"q", "the", "для"})
    known = st.sampled_from([None, None, None, "", *TYPES])
    words = data.draw(st.lists(st.tuples(st.sampled_from(vocabulary), known), max_size=12))
    text = " ".join(word for word, _ in words)
    last = 0
    for start, end, kind in find_entities(words, rules):
        assert kind in TYPES and last <= start < end <= len(text)
        assert (start == 0 or text[start - 1] == " ") and (end == len(text) or text[end] == " ")
        assert text[start:end] == text[start:end].strip()
        last = end + 1


@pytest.mark.parametrize("language", ASTERISK_LANGUAGES)
def test_rule_files_read_and_spell_the_digits(language):
    rules = load_rules(language)
    assert sorted(rules.digits) == list(range(11))
    assert {word for text in rules.digits.values() for word in text.split()} <= rules.number_words


def test_unknown_section_and_language_are_named():
    with pytest.raises(UserError, match=r"rules/xx.yaml.*'NUMBER'"):
        parse_rules("xx", {"NUMBER": ["one"]})
    with pytest.raises(UserError, match="'xx'"):
        load_rules("xx")
