"""Labels changed and found by machines: tasks, languages, and entities by gazetteers and spaCy."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import casefold
from tokenverse_pp.data.editing.entity_finders import Gazetteer, read_gazetteer
from tokenverse_pp.data.editing.label import GazetteerEntities, LabelChange, label_rows
from tokenverse_pp.data.labels import check_cut, labelled_tasks, machine_tasks
from tokenverse_pp.data.manifests import ManifestRow, cut_of, read_rows, row_bytes

FR = {"text": "je vais à new york demain", "speaker": "a", "language": "fr", "endpoint": True}


def row_of(cut):
    data = cut.to_dict()
    return ManifestRow("x, line 1", row_bytes(data), data)


def labelled(cut, finder=None, **change):
    """The cut after the change, read back by lhotse."""
    [data] = label_rows([row_of(cut)], LabelChange(**change), finder)
    return cut_of(data, "x")


def places(**options):
    return GazetteerEntities(Gazetteer([("New York", "LOC", 0.9), ("new", "X", 0.1)], **options), "places.tsv")


def test_add_and_drop_tasks():
    cut = make_cut("c", [FR, {**FR, "speaker": "b"}], ["asr", "endp"])
    more = labelled(cut, add=("lid", "scd"))
    assert more.custom["tasks"] == ["asr", "scd", "endp", "lid"] and check_cut(more) == []
    less = labelled(cut, drop=("endp",))
    assert less.custom["tasks"] == ["asr"]
    assert all("endpoint" not in sup.custom for sup in less.supervisions)
    assert [sup.speaker for sup in less.supervisions] == ["a", "b"]
    assert labelled(more, only=("lid",)).custom["tasks"] == ["asr", "lid"]


def test_language_goes_where_there_is_none():
    cut = make_cut("c", [{"text": "oui"}])
    assert labelled(cut, add=("lid",), language="fr").supervisions[0].language == "fr"
    with pytest.raises(UserError, match=r"x, line 1: cut c: its language is 'fr' already.*--replace-labels"):
        labelled(make_cut("c", [FR]), language="nl")
    assert labelled(make_cut("c", [FR]), language="nl", replace_labels=True).supervisions[0].language == "nl"
    with pytest.raises(UserError, match=r"cut c: supervision 0, field 'language': .*'French'"):
        labelled(cut, add=("lid",), language="French")


@pytest.mark.parametrize("task", ["lid", "ner", "scd", "endp"])
def test_labels_of_an_added_task_must_be_there(task):
    with pytest.raises(UserError, match=r"x, line 1: cut c: .*supervision 0"):
        labelled(make_cut("c", [{"text": "oui"}]), add=(task,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"add": ("sing",)}, "unknown task 'sing'"),
        ({"drop": ("asr",)}, "asr cannot"),
        ({"add": ("lid",), "drop": ("lid",)}, "both added and dropped"),
    ],
)
def test_impossible_changes(change, said):
    with pytest.raises(UserError, match=said):
        LabelChange(**change)


def test_entities_of_a_machine_are_marked_so():
    cut = labelled(make_cut("c", [FR, {"text": "oui"}]), places())
    assert cut.supervisions[0].custom["entities"] == [
        {"start": 10, "end": 18, "type": "LOC", "source": "machine:gazetteer/places.tsv", "confidence": 0.9}
    ]
    assert cut.supervisions[1].custom["entities"] == []
    assert cut.custom["label_source"] == {"ner": "machine:gazetteer/places.tsv"}
    assert machine_tasks(cut.custom) == ["ner"] and cut.custom["tasks"] == ["asr", "ner"]
    assert check_cut(cut) == []


def test_labels_of_people_are_not_replaced_unasked():
    by_people = make_cut("c", [{**FR, "entities": []}], ["asr", "ner"])
    with pytest.raises(UserError, match=r"cut c: has entities by people already; --replace-labels"):
        labelled(by_people, places())
    forgotten = make_cut("c", [{**FR, "entities": []}], ["asr"])  # not on the list, but somebody's work
    with pytest.raises(UserError, match="by people"):
        labelled(forgotten, places())
    done = labelled(by_people, places(), replace_labels=True)
    assert machine_tasks(done.custom) == ["ner"]
    with pytest.raises(UserError, match=r"by machine:gazetteer/places\.tsv already"):
        labelled(done, places())


def test_dropped_entities_cannot_come_back():
    cut = labelled(labelled(make_cut("c", [FR]), places()), drop=("ner",))
    assert cut.custom == {"tasks": ["asr"]} and "entities" not in cut.supervisions[0].custom
    assert machine_tasks(labelled(cut, places()).custom) == ["ner"]


@pytest.mark.parametrize(
    ("source", "entity", "said"),
    [
        ("machine:x", {}, "source None of 0..2 is not that of the cut"),
        (None, {"source": "machine:x"}, "is not that of the cut"),
        ("machine:y", {"source": "machine:x"}, "'machine:y'"),
        ("machine:x", {"source": "machine:x", "confidence": 1.5}, "confidence of 0..2: expected 0 to 1"),
        ("machine:x", {"source": "machine:x", "confidence": float("nan")}, "found nan"),
        (3, {}, "expected a name"),
    ],
)
def test_makers_that_do_not_agree(source, entity, said):
    cut = make_cut("c", [{**FR, "entities": [{"start": 0, "end": 2, "type": "X", **entity}]}], ["asr", "ner"])
    if source is not None:
        cut.custom["label_source"] = {"ner": source}
    [problem] = check_cut(cut)
    assert said in problem


def test_label_source_is_a_mapping_of_tasks():
    cut = make_cut("c", [FR], label_source=["ner"])
    assert "expected a mapping" in check_cut(cut)[0]
    cut.custom["label_source"] = {"sing": "machine:x"}
    assert "unknown task 'sing'" in check_cut(cut)[0]


def mixed(*cuts):
    """A row of a mixed cut."""
    data = {"id": "m", "type": "MixedCut", "tracks": []}
    for number, cut in enumerate(cuts):
        cut.features = None  # lhotse reads it from the cut in a track
        inner = cut.to_dict()
        del inner["type"]
        data["tracks"].append({"cut": inner, "type": "MonoCut", "offset": 1.5 * number})
    return ManifestRow("x, line 1", row_bytes(data), data)


def test_mixed_cuts_are_labelled_in_their_tracks():
    row = mixed(make_cut("a", [{"text": "new york", "language": "fr"}]), make_cut("b", [{"text": "à new york"}]))
    [data] = label_rows([row], LabelChange(), places())
    cut = cut_of(data, "x")
    assert [len(sup.custom["entities"]) for sup in cut.supervisions] == [1, 1]
    assert machine_tasks(cut.custom) == labelled_tasks(cut)[1:] == ["ner"] and check_cut(cut) == []
    [data] = label_rows([ManifestRow(row.where, row_bytes(data), data)], LabelChange(drop=("ner",)))
    assert labelled_tasks(cut_of(data, "x")) == ["asr"]


def test_tracks_with_different_tasks_are_refused():
    """lhotse would give all words the tasks of the last track: what nobody annotated would count as empty."""
    row = mixed(make_cut("a", [{"text": "oui"}]), make_cut("b", [{**FR, "entities": []}], ["asr", "ner"]))
    cut = cut_of(row.data, "x")
    assert len(check_cut(cut)) == 1
    for read in (lambda: labelled_tasks(cut), lambda: list(label_rows([row], LabelChange(add=("lid",))))):
        with pytest.raises(UserError, match=r"cut m: field 'custom\.tasks': the tracks of this mixed cut differ"):
            read()


words = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8)


@given(st.lists(words.map(lambda w: w[:3]), min_size=1, max_size=4), words)
def test_gazetteer_takes_the_longest_at_each_word(phrases, text):
    """Against a search that tries every phrase at every place."""
    expected, at = [], 0
    while at < len(text):
        fitting = [phrase for phrase in phrases if text[at : at + len(phrase)] == phrase]
        length = max(map(len, fitting), default=0)
        if length:
            expected.append((at, at + length))
        at += length or 1
    found = Gazetteer([(" ".join(phrase), "X", 1.0) for phrase in phrases]).find(" ".join(text))
    assert [(span.start // 2, (span.end + 1) // 2) for span in found] == expected


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """A folder of a spaCy pipeline of rules."""
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("fr")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "LOC", "pattern": "italie"}, {"label": "LOC", "pattern": [{"LOWER": "new"}, {"LOWER": "york"}]}]
    )
    folder = tmp_path_factory.mktemp("spacy") / "rules"
    pipeline.to_disk(folder)
    return folder


def test_spacy_rules(rules):
    from tokenverse_pp.data.editing.entity_finders import SpacyEntities

    cut = labelled(make_cut("c", [{"text": "de l'italie à new york"}, {"text": "oui"}]), SpacyEntities(str(rules), 0.3))
    found = [sup.custom["entities"] for sup in cut.supervisions]
    assert [[(e["start"], e["end"], e["type"], e["confidence"]) for e in entities] for entities in found] == [
        [(3, 11, "LOC", 0.3), (14, 22, "LOC", 0.3)],
        [],
    ]
    assert cut.custom["label_source"] == {"ner": "machine:spacy/rules"} and check_cut(cut) == []
    with pytest.raises(UserError, match="--spacy no_such_pipeline"):
        SpacyEntities("no_such_pipeline", 0.5)


def test_spacy_recogniser_gives_its_own_confidence(tmp_path):
    spacy = pytest.importorskip("spacy")
    from spacy.training import Example

    from tokenverse_pp.data.editing.entity_finders import SpacyEntities

    spacy.util.fix_random_seed(0)
    pipeline = spacy.blank("fr")
    pipeline.add_pipe("ner")
    texts = ["je vais à paris", "elle aime paris beaucoup", "il vit à lyon", "oui merci bien"]
    examples = []
    for text in texts:
        spans = [(text.index(w), text.index(w) + len(w), "LOC") for w in ("paris", "lyon") if w in text]
        examples.append(Example.from_dict(pipeline.make_doc(text), {"entities": spans}))
    optimiser = pipeline.initialize(lambda: examples)
    for _ in range(25):
        pipeline.update(examples, sgd=optimiser)
    pipeline.to_disk(tmp_path / "trained")
    [found, nothing] = SpacyEntities(str(tmp_path / "trained"), 0.0).find([texts[0], texts[3]])
    assert [(span.start, span.end, span.type) for span in found] == [(10, 15, "LOC")] and nothing == []
    assert 0.5 < found[0].confidence <= 1.0


def test_rows_stay_as_they_are_where_nothing_changes(tmp_path):
    path = tmp_path / "c.jsonl"
    CutSet.from_cuts([make_cut("c", [FR], ["asr"], other={"deep": [1]})]).to_file(path)
    [data] = label_rows(read_rows(path), LabelChange(add=("lid",)))
    before = json.loads(path.read_text())
    before["custom"]["tasks"] = ["asr", "lid"]
    assert data == before


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


def test_gazetteer_file(tmp_path):
    path = tmp_path / "g.tsv"
    path.write_bytes("\ufeff# x\r\nNew\u00a0 York \tLOC\t\r\n\u00a0\r\nParis\t LOC\t0.5\t\r\n".encode())
    for options, confidence in (({}, 1.0), ({"confidence": 0.25}, 0.25)):
        found = read_gazetteer(path, **options).find("new york yorks paris")
        assert [tuple(span) for span in found] == [(0, 8, "LOC", confidence), (15, 20, "LOC", 0.5)]
    assert read_gazetteer(path, match_case=True).find("new york") == []
    for line, said in (
        ("…\tX", "a letter or digit"),
        *((line, "phrase TAB type") for line in ("New York", "a X", "\tX", "a\tX\t1\t2")),
        *((line, "0 to 1") for line in ("a\tX\tsure", "a\tX\t2", "a\tX\tnan")),
    ):
        path.write_text(f"x\tY\n{line}\n", encoding="utf-8")
        with pytest.raises(UserError, match=rf"g\.tsv, line 2: .*{said}"):
            read_gazetteer(path)
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="found none"):
        read_gazetteer(path)
