"""`manifest import --brat/--conll`: what does not fit costs no other row, and the reasons are true."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from importing_cases import examples, imported, run, write

from tokenverse_pp.data.importing.annotations import SentencesInOrder
from tokenverse_pp.data.importing.brat_conll import read_brat, read_conll
from tokenverse_pp.data.importing.documents import Document, fit, letters
from tokenverse_pp.data.importing.rows import Place, Rejected, Row
from tokenverse_pp.data.manifests import read_cuts

PLACE = Place("x", 1)


def brat_of(folder, name, text, *lines):
    write(folder / f"{name}.txt", text)
    return write(folder / f"{name}.ann", "".join(f"{line}\n" for line in lines))


def table_of(folder, *rows, columns="id,audio,start,end,text"):
    return write(folder / "T.csv", "\n".join([columns, *rows]) + "\n")


def outcome(out, *arguments):
    """id -> words of the entities (None: not labelled); the lines about what was left out."""
    rejected = out.parent.parent / "rejected.tsv"
    code, said, err = run("import", out, *arguments, "--skip-bad", "--rejected", rejected)
    reasons = [line.split("\t") for line in rejected.read_text(encoding="utf-8").splitlines()[1:]]
    if code != 0:
        assert "nothing was written" in err, err
        return {}, reasons
    found = {}
    for cut in read_cuts(out):
        for turn in cut.supervisions:
            entities = (turn.custom or {}).get("entities")
            found[turn.id] = None if entities is None else [turn.text[e["start"] : e["end"]] for e in entities]
    kept = int(re.search(r"read = (\d+) kept", said)[1])
    assert f"rows: {kept + len(reasons)} read" in said and kept == len(found)
    return found, reasons


def rows_of(*texts):
    return [Row(Place("t", number), f"u{number}", text=text) for number, text in enumerate(texts)]


# --- BRAT, a document a row


@pytest.mark.parametrize(
    ("bad_text", "bad_line", "said"),
    [
        ("hello you world", "T1\tPER 0 5;10 15\thello world", "in 2 pieces (--discontinuous cover"),
        ("hello you world", "T1 PER 0 5 hello", "expected `T1<tab>"),
        ("hello you world", "T1\tPER\thello", "expected `T1<tab>"),
        ("hello you world", "T1\tPER 5 0\thello", "start < end"),
        ("hello you world", "T1\tPER 0 9;5 15\thello you world", "do not overlap"),
        ("hello you world", "PER\t0 5\thello", "or a line that begins with R, E"),
        ("hello you world", "T1\tPER 10 19\tworld wide", "character 19 lies beyond the end of the text of 15"),
        ("hello you world", "T1\tPER 6 15\tyou worlds", "characters 6 to 15 are 'you world', not 'you worlds'"),
        ("hello you world", "T1\tPER 5 6\t ", "holds no letter"),
        ("hello you", "T1\tPER 0 5\thello", "they differ at"),
        ("hello you world", "T1\tPER 0 3\thel", "is a part of 'hello' (--widen-entities"),
        (b"hello you w\xf6rld", "T1\tPER 0 5\thello", "x1.txt, line 1: not UTF-8"),
    ],
)
def test_a_bad_document_costs_only_its_row(audio_dir, tmp_path, out, bad_text, bad_line, said):
    table = table_of(tmp_path, "x1,a.wav,0,1,hello you world", "x2,a.wav,1,2,paris", "x3,a.wav,2,3,oui")
    brat_of(tmp_path / "brat", "x1", bad_text, bad_line)
    others = ("R1\tin Arg1:T1 Arg2:T1", "#1\tNote T1\tx", "*\tx T1")
    brat_of(tmp_path / "brat", "x2", "Paris !", "T1\tLOC 0 5\tParis", *others)
    options = ("--table", table, "--audio-dir", audio_dir, "--brat", tmp_path / "brat")
    found, [(file, line, reason)] = outcome(out, *options)
    assert found == {"x2": ["paris"], "x3": None}
    assert (file, line) == (str(table), "2") and said in reason
    # In one cut all are left out, each told why.
    found, reasons = outcome(out, *options, "--one-cut-per", "recording")
    assert found == {} and said in reasons[0][2]
    assert [r[2] for r in reasons[1:]] == [f"in one cut with {table}, line 2, which cannot be mapped"] * 2


def test_documents_of_rejected_rows_are_not_without_a_row(audio_dir, tmp_path, out):
    rows = ["x1,none.wav,0,1,paris", "x2,a.wav,1,2,paris", "x3,a.wav,2,nan,paris", "x2,b.wav,0,1,oui", "x5,too,few"]
    table = table_of(tmp_path, *rows)
    for name in ("x1", "x2", "x3", "x5"):
        brat_of(tmp_path / "brat", name, "paris", "T1\tLOC 0 5\tparis")
    found, reasons = outcome(out, "--table", table, "--audio-dir", audio_dir, "--brat", tmp_path / "brat")
    assert found == {"x2": ["paris"]}
    assert sorted(reason[1] for reason in reasons) == ["1", "2", "4", "5", "6"]
    # x5 may be the row that could not be read.
    [told] = [reason for file, _, reason in reasons if file.endswith(".ann")]
    assert told == "no row that could be read and no recording has the name 'x5'"


@pytest.mark.parametrize(("mode", "entities"), [("cover", ["hello you world"]), ("drop", ["you"]), ("refuse", None)])
def test_discontinuous_entities_are_an_option(audio_dir, tmp_path, out, mode, entities):
    table = table_of(tmp_path, "x1,a.wav,0,1,hello you world", "x2,a.wav,1,2,new york")
    lines = ["T1\tPER 0 5;10 15\thello world"] + (["T2\tX 6 9\tyou"] if mode == "drop" else [])
    brat_of(tmp_path / "brat", "x1", "hello you world", *lines)
    brat_of(tmp_path / "brat", "x2", "new\nyork", "T1\tLOC 0 3;4 8\tnew york")  # brat cuts entities at line ends
    options = ("--table", table, "--audio-dir", audio_dir, "--brat", tmp_path / "brat", "--discontinuous", mode)
    found, reasons = outcome(out, *options)
    assert found.get("x1") == entities and found["x2"] == ["new york"] and len(reasons) == (mode == "refuse")
    _, said, _ = run("import", out, *options, "--skip-bad")
    assert ("discontinuous entities, " in said) == (mode != "refuse")


@pytest.mark.parametrize(
    "content", ["😀 in Paris\r\net Rome\r\n", "\ufeff😀 in Paris\r\net Rome", "😀 in Paris\net Rome"]
)
@pytest.mark.parametrize("newline", ["\r\n", "\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_brat_counts_characters_whatever_the_line_ends(tmp_path, content, newline, mark):
    """The file may have been rewritten with other line ends, or a mark, after it was annotated."""
    annotated = mark + content.replace("\ufeff", "").replace("\r\n", "\n").replace("\n", newline)
    lines = []
    for number, word in enumerate(("Paris", "Rome"), 1):
        at = annotated.index(word)
        lines.append(f"T{number}\tLOC {at} {at + len(word)}\t{word}")
    document = read_brat(brat_of(tmp_path, "x", content, *lines))
    assert document.error is None
    assert [document.text[start:end] for start, end, _ in document.spans] == ["Paris", "Rome"]


@pytest.mark.parametrize(("unit", "encoding", "size"), [("UTF-16 code units", "utf-16-le", 2), ("bytes", "utf-8", 1)])
def test_brat_offsets_of_another_unit_are_named(tmp_path, unit, encoding, size):
    text = "😀😀😀 à Paris et Rome"
    lines = []
    for number, word in enumerate(("Paris", "Rome"), 1):
        at = len(text[: text.index(word)].encode(encoding)) // size
        lines.append(f"T{number}\tLOC {at} {at + len(word)}\t{word}")
    document = read_brat(brat_of(tmp_path, "x", text, *lines))
    assert document.error == f"its offsets count {unit}; expected characters (code points), as brat counts"


def test_brat_ids_and_entities_that_come_twice(tmp_path):
    path = brat_of(
        tmp_path, "x", "a b c", "T1\tX 0 1\ta", "T1\tX 0 1\ta", "T2\tX 0 1\ta", "T3\tY 2 3\tb", "T3\tY 4 5\tc"
    )
    document = read_brat(path)
    assert document.error is None and document.spans == [(0, 1, "X"), (2, 3, "Y")]
    found = fit(document, rows_of("a", "b", "c"))
    assert found.entities == {0: [(0, 1, "X")]} and set(found.problems) == {1, 2}
    assert "line 5: T3 is there twice, as 'b' and 'c'" in found.problems[1]


def test_overlapping_entities_cost_only_their_row(audio_dir, tmp_path, out):
    table = table_of(tmp_path, "u1,a.wav,0,1,in new york", "u2,a.wav,1,2,paris")
    text = "in new york\nparis"
    brat_of(tmp_path / "brat", "a", text, "T1\tORG 3 11\tnew york", "T2\tLOC 7 11\tyork", "T3\tLOC 12 17\tparis")
    found, reasons = outcome(out, "--table", table, "--audio-dir", audio_dir, "--brat", tmp_path / "brat")
    assert found == {"u2": ["paris"]} and [r[1] for r in reasons] == ["2"] and "overlap" in reasons[0][2]


def test_names_of_documents(audio_dir, tmp_path, out):
    table = table_of(tmp_path, "\u00e9t\u00e9,a.wav,0,1,paris", "x2,a.wav,1,2,oui", "x3,b.wav,0,1,non")
    brat = tmp_path / "brat"
    brat_of(brat, "e\u0301te\u0301", "paris", "T1\tLOC 0 5\tparis")  # as macOS writes names
    brat_of(brat, "x2", "oui").rename(brat / "x2.ANN")
    (brat / "._x2.ann").write_bytes(b"\0\x05\x16\x07")
    brat_of(brat, "x3", "non")
    brat_of(brat, "x9", "non")
    (brat / "other").mkdir()
    brat_of(brat / "other", "x3", "non")
    found, reasons = outcome(out, "--table", table, "--audio-dir", audio_dir, "--brat", brat)
    assert found == {"\u00e9t\u00e9": ["paris"], "x2": []}
    assert [r[1] for r in reasons] == ["4", "1"] and "has the same name" in reasons[0][2]
    assert reasons[1][2] == "no row and no recording has the name 'x9'"


# --- A document of a whole recording


def test_a_recording_where_a_row_was_rejected(audio_dir, tmp_path, out):
    """The text of the rejected row is in the document, and is no fault of the others'."""
    for bad in ("u2,a.wav,1,nan,de rome", "u2,a.wav,9,10,de rome", "u2,a.wav", "u2,a.wav,1,2,"):
        table = table_of(tmp_path, "u1,a.wav,0,1,a paris", bad, "u3,a.wav,2,3,vers oslo")
        text = "A Paris. De Rome. Vers Oslo."
        lines = [
            f"T{text.index(w)}\tLOC {text.index(w)} {text.index(w) + len(w)}\t{w}" for w in ("Paris", "Rome", "Oslo")
        ]
        brat_of(tmp_path / "brat", "a", text, *lines)
        found, reasons = outcome(out, "--table", table, "--audio-dir", audio_dir, "--brat", tmp_path / "brat")
        assert found == {"u1": ["paris"], "u3": ["oslo"]}, bad
        assert [(r[0], r[1]) for r in reasons] == [(str(table), "3")], reasons


def test_two_channels_of_a_recording_have_one_document(audio_dir, tmp_path, out):
    table = table_of(
        tmp_path, "u1,d.wav,1,0,1,a paris", "u2,d.wav,2,1,2,de rome", "u3,d.wav,1,2,3,oui",
        columns="id,audio,channel,start,end,text",
    )  # fmt: skip
    text = "a paris\nde rome\noui"
    brat_of(tmp_path / "brat", "d", text, "T1\tLOC 2 7\tparis", "T2\tLOC 11 15\trome")
    options = ("--table", table, "--audio-dir", audio_dir, "--brat", tmp_path / "brat")
    for more in ((), ("--one-cut-per", "recording"), ("--any-rate", "--one-cut-per", "recording")):
        found, reasons = outcome(out, *options, *more, "--audio-out", tmp_path / f"audio{len(more)}")
        assert found == {"u1": ["paris"], "u2": ["rome"], "u3": []} and reasons == []


@pytest.mark.parametrize(
    ("text", "rows", "bad", "surplus"),
    [
        # A row that differs; text that no row has, on a line of its own or beside a row.
        ("a paris\nbon jour\noui", ["a paris", "bon soir", "oui"], {1: "differ at 'jour oui'"}, 0),
        ("a paris\nmerci\noui", ["a paris", "oui"], {}, 1),
        ("a paris merci\noui", ["a paris", "oui"], {0: "differ at 'merci oui'"}, 0),
        ("a paris\nmerci oui", ["a paris", "oui"], {1: "differ at 'merci oui'"}, 0),
        ("a paris\noui", ["a paris", "merci", "oui"], {1: "differ at 'oui'"}, 0),
        ("oui\noui\nnon", ["oui", "non"], {0: "more than one place"}, 0),
        ("oui\nnon\noui", ["non", "oui", "oui"], {1: "more than one place", 2: "more than one place"}, 1),
        ("oui\nx\noui\nx\nnon", ["oui", "y", "oui", "y", "non"], {1: "'x oui", 3: "'x non"}, 0),
        ("rien de tout cela", ["a", "b", "c"], {0: "differ", 1: "differ", 2: "differ"}, 0),
    ],
)  # fmt: skip
def test_rows_that_a_document_fits(text, rows, bad, surplus):
    found = fit(Document(PLACE, "d", text, []), rows_of(*rows))
    assert set(found.problems) == set(bad) and set(found.entities) == set(range(len(rows))) - set(bad), found
    for number, said in bad.items():
        assert said in found.problems[number]
    assert bool(found.surplus) == bool(surplus)


def test_entities_between_rows():
    text = "a paris\nde rome"
    found = fit(Document(PLACE, "d", text, [(2, 10, "X")]), rows_of("a paris", "de rome"))
    assert found.entities == {} and "reaches from one turn into the next" in found.problems[1]
    found = fit(Document(PLACE, "d", text, [(7, 8, "X")]), rows_of("a paris", "de rome"))
    assert found.entities == {1: []} and "holds no letter" in found.problems[0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("IŞIK", "ışık", True),
        ("I\u0307stanbul", "istanbul", True),
        ("İSTANBUL Isparta", "istanbul ısparta", True),
        ("STRASSE", "straße", True),
        ("ΟΔΟΣ", "οδός", True),
        ("J\u0328\u0307", "j", True),
        ("Ame\u0301lie", "amelie", True),
        ("ca\u00adfé\u200d \u2764\ufe0f", "café", True),
        ("１２ ﬁn", "12 fin", True),
        ("כָּל", "כל", True),
        ("की", "का", False),
        ("がき", "かき", False),
        ("กิน", "กัน", False),
        ("oui", "oud", False),
    ],
)
def test_letters(one, other, same):
    assert ([a for a, _ in letters(one)] == [b for b, _ in letters(other)]) == same


LINES = ["oui", "non merci", "a paris", "vers rome", "x y z"]


@examples(60)
@given(st.randoms(use_true_random=False))
def test_every_row_of_a_recording_is_kept_or_named(rng):
    """Rows changed, dropped and added: a row gets the entities of its own letters, or a reason."""
    texts = [rng.choice(LINES) for _ in range(rng.randint(1, 7))]
    wanted = list(texts)
    for _ in range(rng.randint(0, 2)):
        at = rng.randrange(len(wanted) + 1)
        wanted[at : at + rng.randint(0, 1)] = rng.choice([[], ["bon soir"], ["oui"], ["vers rome"]])
    text = "\n".join(texts)
    spans = [(match.start(), match.end(), "X") for match in re.finditer("paris|rome", text)]
    rows = rows_of(*wanted)
    found = fit(Document(PLACE, "d", text, spans), rows)
    assert {*found.problems, *found.entities} == set(range(len(rows))) and not {*found.problems} & {*found.entities}
    if wanted == texts:
        assert found.problems == {} and found.surplus == []
    elif rows:
        assert found.problems or found.surplus
    for number, entities in found.entities.items():
        row = rows[number].text
        assert [row[start:end] for start, end, _ in entities] == re.findall("paris|rome", row)


# --- CoNLL


def conll_of(folder, text):
    return write(folder / "T.conll", text)


GOOD = "New\tB-LOC\nYork\tI-LOC\n\noui\tO\n\nParis\tB-LOC\n"


def entities_of(path):
    return [(d.name, d.error or [d.text[start:end] for start, end, _ in sorted(d.spans)]) for d in read_conll(path)]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\t", " "),
        GOOD.replace("\t", "  \t "),
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n\n", "\n \t \n\n"),
        GOOD.replace("\n", " \n"),
        "\ufeff-DOCSTART- -X- O\n\n" + GOOD,
        GOOD.replace("\t", "\tNN\tI-NP\t"),
        "# text = New York\n# id =\n" + GOOD,
        GOOD.replace("B-LOC", "I-LOC"),  # IOB1
        GOOD.replace("York\tI", "York\tE").replace("Paris\tB", "Paris\tS"),
        GOOD[:-1],
    ],
)
def test_forms_of_conll(tmp_path, text):
    assert [found for _, found in entities_of(conll_of(tmp_path, text))] == [["New York"], [], ["Paris"]]


def test_tokens_keep_no_break_spaces_and_spaces_between_tabs(tmp_path):
    text = "10\u00a0000\tB-NUM\n10 000\tB-NUM\n#\tO\nx\tO\n"
    assert entities_of(conll_of(tmp_path, text)) == [(None, ["10\u00a0000", "10 000"])]
    assert entities_of(conll_of(tmp_path, "10\u00a0000 B-NUM\n# B-X\nx O\n")) == [(None, ["10\u00a0000", "#"])]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("York I-NP\n", "expected 3 columns, as most lines have, found 2"),
        ("York\n", "line 4: expected a token and its tag"),
        ("York NNP LOC\n", "expected tags such as O, B-PER"),
        (b"Y\xf6rk NNP B-LOC\n", "line 4: not UTF-8"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_bad_sentence_costs_only_its_row(audio_dir, tmp_path, out, bad, said, named):
    one, two, three = (f"# id = {name}\n".encode() if named else b"" for name in ("u1", "u 2", "u3"))
    bad = bad if isinstance(bad, bytes) else bad.encode()
    text = one + b"oui UH O\n" + (b"" if named else b"\n") + two + bad + b"\n" + three + b"Paris NNP B-LOC\n"
    said = said if named else said.replace("line 4", "line 3")
    table = table_of(tmp_path, "u1,a.wav,0,1,oui", "u 2,a.wav,1,2,york", "u3,a.wav,2,3,paris")
    found, [(file, line, reason)] = outcome(
        out, "--table", table, "--audio-dir", audio_dir, "--conll", conll_of(tmp_path, text)
    )
    assert found == {"u1": [], "u3": ["paris"]} and (file, line) == (str(table), "3") and said in reason
    assert reason.count("T.conll") == 1  # the file is named once


def test_sentences_by_name_that_have_none_or_anothers(audio_dir, tmp_path, out):
    table = table_of(tmp_path, "u1,a.wav,0,1,oui", "u2,a.wav,1,2,york", "u3,a.wav,2,3,paris")
    text = "# id = u1\noui O\n\nnon O\n\n# id = u2\nyork B-LOC\n\n# id = u2\nyork O\n\n# id = u3\nparis B-LOC\n\n"
    text += "# id = u3\nparis B-LOC\n\n# id = u9\nx O\n"
    found, reasons = outcome(out, "--table", table, "--audio-dir", audio_dir, "--conll", conll_of(tmp_path, text))
    assert found == {"u1": [], "u3": ["paris"]}
    assert sorted(int(r[1]) for r in reasons) == [3, 4, 10, 19]
    assert any("has the name 'u2' as well" in r[2] for r in reasons)


WORDS = ["oui", "non", "a paris", "de rome", "le grand voyage au bout du monde", "merci", "peut etre bien"]


@pytest.mark.parametrize(
    ("rows", "sentences", "kept", "named"),
    [
        ("abcdefgh", "abdefgh", "abdefgh", 1),  # a sentence is missing
        ("abdefgh", "abcdefgh", "abdefgh", 1),  # a row is missing
        ("abcdefgh", "abXdefgh", "abdefgh", 1),  # one that differs
        ("abcdefgh", "bcdefgh", "bcdefgh", 1),
        ("abcdefgh", "abcdefg", "abcdefg", 1),
        ("abcdefg", "abcdefgh", "abcdefg", 1),
        ("aXbYcZd", "aUbVcWd", "abcd", 3),
        ("abcdefgh", "abefgh", "abefgh", 2),
        ("ab?defgh", "abcdefgh", "abdefgh", 1),  # a row that could not be read, with its sentence
        ("ab?defgh", "abdefgh", "abdefgh", 1),  # .. and without
        ("abc", "aXbcd", "abc", 2),
        ("abcdefgh", "stuvwxyz", "", 8),
    ],
)
def test_sentences_in_order_are_found_again(rows, sentences, kept, named):
    def text(letter):
        return f"{letter} {WORDS[ord(letter) % len(WORDS)]}"

    items = [
        Rejected(Place("t", k), "bad") if c == "?" else Row(Place("t", k), c, text=text(c)) for k, c in enumerate(rows)
    ]
    documents = [Document(Place("c", k), None, text(c).upper(), [(0, 1, c)]) for k, c in enumerate(sentences)]
    order = SentencesInOrder(iter(documents))
    found = list(order.attach(iter(items)))
    assert len(found) == len(items)
    assert [item.id for item in found if isinstance(item, Row)] == list(kept)
    assert all(item.entities == [(0, 1, item.id)] for item in found if isinstance(item, Row))
    assert sum(isinstance(item, Rejected) for item in found) + len(list(order.unused())) == named


@examples(40)
@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_no_sentence_shifts_the_others(rng, size):
    """Rows and sentences with edits: what is the same is kept, all else is named, nothing twice."""
    texts = [f"{rng.choice(WORDS)} {rng.choice(WORDS)}" if rng.random() < 0.7 else "oui" for _ in range(size)]
    sentences = list(texts)
    edits = rng.randint(0, 3)
    for _ in range(edits):
        at = rng.randrange(len(sentences) + 1)
        sentences[at : at + rng.randint(0, 2)] = rng.choice([[], ["zut alors"], ["oui"]])
    rows = rows_of(*texts)
    order = SentencesInOrder(iter([Document(PLACE, None, text, [(0, 3, "X")]) for text in sentences]))
    found = list(order.attach(iter(rows)))
    left = list(order.unused())
    assert [item.row.id if isinstance(item, Rejected) else item.id for item in found] == [row.id for row in rows]
    kept = sum(isinstance(item, Row) for item in found)
    rejected = len(found) - kept
    assert all(item.entities is not None for item in found if isinstance(item, Row))
    assert sentences != texts or (rejected, left) == (0, [])
    assert rejected + len(left) <= 16 * edits  # not hundreds


def test_sentences_after_lines_that_are_no_rows(audio_dir, tmp_path, out):
    """Lines of an RTTM that cannot be read come first, and have no sentence."""
    table = table_of(tmp_path, "u1,a.wav,0,1,oui", "u2,a.wav,1,2,a paris")
    rttm = tmp_path / "x.rttm"
    rttm.write_text("SPEAKER a 1 zero 1.5 <NA> <NA> anna <NA> <NA>\nSPEAKER a 1 0 3 <NA> <NA> ben <NA> <NA>\n")
    conll = conll_of(tmp_path, "oui O\n\na O\nparis B-LOC\n")
    found, reasons = outcome(out, "--table", table, "--rttm", rttm, "--audio-dir", audio_dir, "--conll", conll)
    assert found == {"u1": [], "u2": ["paris"]} and len(reasons) == 1


def test_turkish_documents(audio_dir, tmp_path, out):
    table = table_of(tmp_path, "u1,a.wav,0,1,ışık istanbul'da", "u2,b.wav,0,1,ISPARTA")
    brat_of(tmp_path / "brat", "u1", "IŞIK İSTANBUL'DA", "T1\tPER 0 4\tIŞIK")
    brat_of(tmp_path / "brat", "u2", "ısparta", "T1\tLOC 0 7\tısparta")
    options = ("--table", table, "--audio-dir", audio_dir, "--set", "language=tr-TR")
    cuts = imported(out, *options, "--brat", tmp_path / "brat")
    assert [len(cut["supervisions"][0]["custom"]["entities"]) for cut in cuts] == [1, 1]
