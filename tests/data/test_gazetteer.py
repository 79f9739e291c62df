"""What is equal for a gazetteer: the rules of the text's language, signs, spaces; and how its file is read."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import casefold
from tokenverse_pp.data.editing.entity_finders import Gazetteer, read_gazetteer
from tokenverse_pp.data.editing.label import GazetteerEntities, LabelChange, label_rows
from tokenverse_pp.data.manifests import ManifestRow, row_bytes


def words_found(phrases, text, language=None, **options):
    spans = Gazetteer([(phrase, "X", 1.0) for phrase in phrases], **options).find(text, language)
    return [text[span.start : span.end] for span in spans]


TURKISH = ["İstanbul", "istanbul", "İSTANBUL", "I\u0307stanbul", "I\u0307STANBUL"], ["Isparta", "ısparta", "ISPARTA"]


@pytest.mark.parametrize("code", ["tr", "tr-TR", "TUR", "tr_TR.UTF-8", "az", "aze", "az-Latn-AZ"])
def test_turkish_both_ways(code):
    for forms, others in (TURKISH, TURKISH[::-1]):
        for phrase in forms:
            for text in forms:
                assert words_found([phrase], f"in {text} bir", code) == [text], (phrase, text)
            for text in others:
                assert words_found([phrase], text, code) == []
    assert words_found(["ışık"], "IŞIK is", code) == ["IŞIK"] and words_found(["ışık"], "IŞIK", "en") == []
    assert words_found(["ışık"], "IŞIK", code, match_case=True) == []


@pytest.mark.parametrize(
    ("phrase", "text", "language"),
    [
        ("İstanbul", "istanbul", None),
        ("İstanbul", "i\u0307stanbul", "de"),  # what str.lower makes of it
        ("Isparta", "isparta", "en"),
        ("Isparta", "ısparta", None),
        ("ışık", "IŞIK", ""),
        ("Straße", "STRASSE", "de"),
        ("GROSSE STRAẞE", "große strasse", "de"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς", "el"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ", "el"),
        ("Ì vardas", "i\u0307\u0300 vardas", "lt"),
        ("Królów", unicodedata.normalize("NFD", "królów"), "pl"),
        (unicodedata.normalize("NFD", "Hà Nội"), "hà nội", "vi"),
        ("Королёв", "королев", "ru"),
        ("l'Oréal", "l’oréal", "fr"),
        ("L’ORÉAL", "lʼoréal l".split()[0], "fr"),
        ("Saint-Denis", "saint denis", "fr"),
        ("Saint Denis", "saint\u2011denis", "fr"),
        ("Saint – Denis", "saint - denis", "fr"),
        ("New  \u00a0York", "new york", "en"),
        ("New York", "new\u00a0york", "en"),
        ("Paris", "Paris,", "fr"),
        ("Paris", "«\u202fParis\u202f».".replace("\u202f", ""), "fr"),
        ("St. Louis", "st louis", "en"),
        ("Yahoo!", "yahoo", "en"),
        ("C++", "c++,", "en"),
        ("AT&T", "at&t", "en"),
        ("Par\u00adis", "pa\u200bris", "fr"),
        ("上海", "上 海", "zh-CN"),
        ("Ｐａｒｉｓ", "paris", "fr"),
        ("col·lecció", "COL·LECCIÓ", "ca"),
    ],
)
def test_what_is_equal(phrase, text, language):
    assert words_found([phrase], f"x {text} y", language) == [text]


@pytest.mark.parametrize(
    ("phrase", "text"),
    [("paris", "parisien"), ("paris", "d'paris"), ("Denis", "saint-denis"), ("C++", "c"), ("c", "c++"), ("été", "ete")],
)
def test_what_is_not_equal(phrase, text):
    assert words_found([phrase], text, "fr") == []


def test_the_longest_phrase_counts_also_over_hyphens():
    found = words_found(["New York", "New York City", "Denis"], "de new-york city à saint-denis denis")
    assert found == ["new-york city", "denis"]


names = st.text(st.sampled_from("iİıIşŞßéΣςJĮĄ"), min_size=1, max_size=6)


@settings(max_examples=60)
@given(names, st.sampled_from(["tr", "de", "el", "lt", None]), st.sampled_from(["NFC", "NFD"]))
def test_texts_that_differ_by_case_only_match(name, language, form):
    forms = set() if language == "tr" or ("ı" in name and language) else {name.upper(), name.lower()}
    for text in {name, casefold(name, language), *forms}:
        text = unicodedata.normalize(form, text)
        assert words_found([name], f"x {text}", language) == [text]


def test_labels_by_the_language_of_each_turn():
    finder = GazetteerEntities(Gazetteer([("Isparta", "LOC", 1.0)]), "g.tsv")
    turns = [[{"text": "ısparta", "language": "tr-TR"}, {"text": "ısparta", "language": "fr"}], [{"text": "isparta"}]]
    data = [make_cut(f"c{number}", cut_turns).to_dict() for number, cut_turns in enumerate(turns)]
    data[1]["supervisions"][0]["language"] = 5  # no code: not known
    rows = [ManifestRow("x, line 1", row_bytes(cut), cut) for cut in data]
    labelled = [cut["supervisions"] for cut in label_rows(rows, LabelChange(), finder)]
    assert [[len(turn["custom"]["entities"]) for turn in cut] for cut in labelled] == [[1, 0], [1]]


def test_forms_of_the_file(tmp_path):
    path = tmp_path / "g.tsv"
    path.write_bytes("\ufeff# x\r\nNew\u00a0 York \tLOC\t\r\n\u00a0\r\nParis\t LOC\t0.5\t\r\n".encode())
    found = read_gazetteer(path).find("new york paris")
    assert [(span.start, span.end, span.type, span.confidence) for span in found] == [
        (0, 8, "LOC", 1.0),
        (9, 14, "LOC", 0.5),
    ]
    for line, said in (("…\tX", "a letter or digit"), ("a\tX\tnan", "0 to 1"), ("a X", "TAB"), ("a\tX\t1\t2", "TAB")):
        path.write_text(f"x\tY\n{line}\n", encoding="utf-8")
        with pytest.raises(UserError, match=rf"g\.tsv, line 2: .*{said}"):
            read_gazetteer(path)
