"""`manifest import`: what may be opened, what is told of rows that cannot be mapped, and how texts carry entities."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from importing_cases import imported, run, table_of, turns, write, write_audio

from tokenverse_pp.cli.manifest_import import import_corpus
from tokenverse_pp.data.importing.fields import bio_spans, finish_text
from tokenverse_pp.data.importing.rows import BadRow
from tokenverse_pp.data.normalise import normalise


@pytest.mark.parametrize(
    "given_path", ["../secret.wav", "sub/../../secret.wav", "{secret}", "sub/../../audio/../secret.wav"]
)
def test_no_path_leads_out_of_the_audio_folder(tmp_path, out, given_path):
    folder = tmp_path / "audio"
    write_audio(folder / "sub" / "a.wav")
    secret = write_audio(tmp_path / "secret.wav")
    table = table_of(tmp_path, [(given_path.format(secret=secret), "oui")])
    code, _, err = run("import", out, "--table", table, "--audio-dir", folder)
    assert code == 2 and f"{table}, line 1: field 'audio': " in err and "lies outside of" in err and not out.exists()
    # All the same where it is the table's own folder that counts, and allowed where the user says so.
    if not given_path.startswith("{"):
        code, _, err = run("import", out, "--table", table_of(folder, [(given_path, "oui")]))
        assert code == 2 and "lies outside of" in err
    else:
        assert len(imported(out, "--table", table, "--audio-dir", "/")) == 1


def test_every_row_is_kept_or_listed(audio_dir, tmp_path, out):
    rows = [("a.wav", "oui"), ("none.wav", "non"), ("b.wav", "a [b"), ("b.wav", "si"), ("b.wav", None)]
    table = table_of(tmp_path, rows)
    rejected = tmp_path / "rejected.tsv"
    options = ("--table", table, "--audio-dir", audio_dir, "--rejected", rejected)
    code, said, err = run("import", out, *options)
    assert code == 2 and said == "" and not out.exists()
    assert err.splitlines() == [
        f"error: {table}, line 2: field 'audio': {audio_dir}/none.wav: no such file "
        "(--audio-dir FOLDER: where relative paths start)",
        f"{table}, line 3: field 'text': brackets are for task tokens only, found '[b'",
        f"{table}, line 5: field 'text': expected words, found nothing",
        "3 of 5 rows cannot be mapped; nothing was written (--skip-bad leaves them out)",
    ]
    before = rejected.read_text()
    assert [line.split("\t")[1] for line in before.splitlines()] == ["line", "2", "3", "5"]
    code, said, _ = run("import", out, *options, "--skip-bad")
    assert code == 0 and rejected.read_text() == before
    assert "rows: 5 read = 2 kept + 3 left out" in said and f"cuts: 2, labelled for asr 2: {out}" in said


def test_many_bad_rows_are_counted_and_all_in_the_file(audio_dir, tmp_path, out):
    table = table_of(tmp_path, [("none.wav", "oui")] * 50 + [("a.wav", "oui")])
    code, _, err = run("import", out, "--table", table, "--audio-dir", audio_dir, "--rejected", tmp_path / "r.tsv")
    assert code == 2 and len(err.splitlines()) == 21 and "50 of 51 rows cannot be mapped (30 more" in err
    assert len((tmp_path / "r.tsv").read_text().splitlines()) == 51


def test_what_was_there_before_stays_after_an_error(audio_dir, tmp_path, out):
    out.parent.mkdir()
    out.write_text("before")
    code, _, _ = run(
        "import", out, "--table", table_of(tmp_path, [("d.wav", "oui"), ("no", "x")]), "--audio-dir", audio_dir
    )
    assert code == 2 and out.read_text() == "before" and [p.name for p in out.parent.iterdir()] == [out.name]


def test_a_bad_turn_takes_its_recording_along_but_no_other(audio_dir, tmp_path, out):
    columns = ("audio", "start", "end", "text")
    rows = [("b.wav", 2, 3, "deux"), ("a.wav", 0, 1, "oui"), ("b.wav", 0, 1, "un"), ("a.wav", 1, "x", "non")]
    options = ("--audio-dir", audio_dir, "--one-cut-per", "recording", "--skip-bad")
    [cut] = imported(out, "--table", table_of(tmp_path, rows, columns), *options)
    assert turns(cut) == [(0, 1, None, "un"), (2, 3, None, "deux")]
    rejected = tmp_path / "r.tsv"
    code, said, _ = run("import", out, "--table", table_of(tmp_path, rows, columns), *options, "--rejected", rejected)
    assert "line 4: field 'end': expected seconds" in said and "left out: 1 more" in said
    assert "\t2\tin one cut with" in rejected.read_text() and "rows: 4 read = 2 kept + 2 left out" in said
    # A row that does not say which recording it is of might be missing from any cut.
    table = table_of(tmp_path, rows[:3], columns)
    table.write_text(table.read_text() + "\n{")
    code, _, err = run("import", out, "--table", table, *options)
    assert code == 2 and "line 4: not JSON" in err and "its recording is not known" in err


def test_a_bad_turn_takes_its_channel_along_or_if_that_is_not_known_all(tmp_path, out):
    write_audio(tmp_path / "call.wav", channels=2)
    write_audio(tmp_path / "mono.wav")
    stm = "call A s1 0 1 one\ncall A s1 1 2 (( ))\ncall B s2 2 3 three\nmono 1 s 0 1 four\n"
    options = ("--one-cut-per", "recording", "--skip-bad", "--audio-dir", tmp_path)
    cuts = imported(out, "--stm", write(tmp_path / "x.stm", stm), "--nist-notation", "resolve", *options)
    assert [(cut["id"], cut["supervisions"][0]["text"]) for cut in cuts] == [("call-2", "three"), ("mono", "four")]
    rows = "call.wav,1,0,1,one\ncall.wav,left,1,2,two\ncall.wav,2,2,3,three\nmono.wav,,0,1,four\n"
    table = write(tmp_path / "T.csv", "audio,channel,start,end,text\n" + rows)
    [cut] = imported(out, "--table", table, *options)
    assert cut["id"] == "mono"
    code, said, _ = run("import", out, "--table", table, *options)
    assert code == 0 and "rows: 4 read = 1 kept + 3 left out" in said


def test_a_bad_line_takes_the_cut_of_its_recording_along_whatever_its_audio_is_called(tmp_path, out):
    for name in ("abc", "def"):
        write_audio(tmp_path / f"k/wav/{name}.wav")
    scp = write(tmp_path / "k/wav.scp", "rec1 wav/abc.wav\nrec2 wav/def.wav\n")
    write(tmp_path / "k/text", "u1 one\nu2 two\nu3 three\n")
    segments = write(tmp_path / "k/segments", "u1 rec1 0 1\nu2 rec1 zz 3\nu3 rec2 0 1\n")
    ctm = write(tmp_path / "x.ctm", "rec1 1 0 0.3 one\nrec1 1 1.0\nrec2 1 0 0.3 three\n")
    line = "SPEAKER {} 1 {} 1 <NA> <NA> anna <NA> <NA>\n"
    rttm = write(tmp_path / "x.rttm", line.format("rec1", 0) + line.format("rec1", "zz") + line.format("rec2", 0))
    words = write(tmp_path / "words.ctm", "rec1 1 0 0.3 one\nrec2 1 0 0.3 three\n")
    options = ("--one-cut-per", "recording", "--skip-bad")
    for source in (
        ("--kaldi", tmp_path / "k"),
        ("--ctm", ctm, "--recordings", scp),
        ("--rttm", rttm, "--ctm", words, "--recordings", scp),
    ):
        cuts = imported(out, *source, *options)
        assert [(cut["id"], cut["supervisions"][0]["text"]) for cut in cuts] == [("rec2", "three")]
    # A name of which there is no audio may be another's.
    write(segments, "u1 rec1 0 1\nu2 zz 3\nu3 rec2 0 1\n")
    code, _, err = run("import", out, "--kaldi", tmp_path / "k", *options)
    assert code == 2 and "line 2: expected `utterance" in err and "its recording is not known" in err


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (0, 4.05, None),
        (0, 4.2, "is not inside the recording of 4.000 s"),
        (3, 2, "expected it after the start"),
        (4, 5, "is not inside"),
        (float("nan"), 1, "field 'start': expected seconds >= 0, found nan"),
        ("-1", 1, "expected seconds >= 0"),
        (10**400, 1, "expected seconds >= 0"),
        (True, 2, "expected seconds >= 0"),
    ],
)
def test_times(audio_dir, tmp_path, out, start, end, said):
    table = table_of(tmp_path, [("a.wav", start, end, "oui")], ("audio", "start", "end", "text"))
    if said is None:
        [cut] = imported(out, "--table", table, "--audio-dir", audio_dir)
        assert cut["start"] + cut["duration"] == 4.0
    else:
        code, _, err = run("import", out, "--table", table, "--audio-dir", audio_dir)
        assert code == 2 and said in err and f"{table}, line 1" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing to import"),
        (("--stm", "T", "--table", "T"), "both give turns"),
        (("--table", "T", "--column", "words=text"), "--column words: no such field"),
        (("--table", "T", "--column", "text=sentence"), "no column 'sentence' (--column); found audio, text"),
        (("--table", "T", "--column", "text="), "no column text; found audio, text: name it, --column text=COLUMN"),
        (("--table", "T", "--column", "audio="), "no column audio (a path) or recording (a name); found audio, text"),
        (("--table", "T", "--column", "text"), "expected FIELD=..."),
        (("--table", "T", "--set", "text=oui"), "differs from row to row"),
        (("--table", "T", "--set", "endpoint=perhaps"), "--set endpoint: field 'endpoint': expected true or false"),
        (("--table", "T", "--tasks", "asr,sing"), "--tasks: unknown task 'sing'"),
        (("--table", "T", "--tasks", ""), "--tasks: names no task"),
        (("--table", "T", "--normaliser", "shout"), "--normaliser shout: expected one of keep"),
        (("--table", "none.csv"), "--table: none.csv: no such file"),
        (("--table", "T", "--conll", "T", "--brat", "."), "expected one of them"),
        (("--kaldi", "none"), "--kaldi: none: no such file or folder"),
    ],
)
def test_options_that_make_no_sense_are_one_line(tmp_path, out, options, said):
    table = table_of(tmp_path, [("a.wav", "oui")])
    code, _, err = run("import", out, *(str(table) if option == "T" else option for option in options))
    assert code == 2 and said in err and err.count("\n") == 1 and not out.exists()


WORDS = st.lists(st.text("abcé1", min_size=1, max_size=4), min_size=1, max_size=6)
UNSEEN = st.text("\u00ad\u200c\u200d\u200e\u2060\ufe0f\ufeff\u034f", max_size=2)


@given(WORDS, st.sampled_from(["words", "cased", "none", "keep"]), st.data())
def test_entities_stay_on_their_words(words, normaliser, data):
    """Punctuation, case, spaces and invisible characters may change; the words of an entity may not."""
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    is_visible = normaliser == "words" and data.draw(st.booleans())
    unseen = st.just("") if is_visible else UNSEEN
    gaps = [" ", "  ", ", ", " (", ") ", "! ", " - ", "… "] if is_visible else [" ", " \u200d ", "\u200b", " \u0301 "]
    text, start, end = data.draw(st.sampled_from(["", "« ", "¿"] if is_visible else ["", "\u200f ", "\ufe0f"])), 0, 0
    for i, word in enumerate(words):
        text += data.draw(unseen)
        start = len(text) if i == first else start
        if is_visible:
            word = data.draw(st.sampled_from([word, word.upper()]))
        text += "".join(char + data.draw(unseen) for char in word)
        end = len(text) if i == last else end
        text += data.draw(unseen) + data.draw(st.sampled_from(gaps))
    plain, [entity] = finish_text(text, [(start, end, "X")], normaliser)
    assert [normalise(word) for word in plain.split()] == words
    assert normaliser != "words" or plain == " ".join(words) == normalise(text)
    found = plain[entity["start"] : entity["end"]].split()
    assert [normalise(word) for word in found] == words[first : last + 1]


@pytest.mark.parametrize(
    ("text", "span", "normaliser", "language", "expected"),
    [
        ("Paris, oui", (0, 5), "keep", "fr", "Paris,"),
        ("l'Europe", (2, 8), "keep", "fr", None),
        ("New-York city", (0, 3), "words", "en", "new"),
        ("我去北京", (2, 4), "words", "zh", "北 京"),
        ("我去北京", (2, 4), "keep", "zh", None),
        ("a  b ", (1, 3), "keep", None, "Empty"),
    ],
)
def test_entities_and_parts_of_words(text, span, normaliser, language, expected):
    spans = [(*span, "X")]
    if expected is None:
        with pytest.raises(BadRow, match="is a part of"):
            finish_text(text, spans, normaliser, language)
        plain, [entity] = finish_text(text, spans, normaliser, language, widen=True)
        assert (entity["start"], entity["end"]) == (0, len(plain))
    elif expected == "Empty":
        with pytest.raises(BadRow, match="holds no word"):
            finish_text(text, spans, normaliser, language)
    else:
        plain, [entity] = finish_text(text, spans, normaliser, language)
        assert plain[entity["start"] : entity["end"]] == expected


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-A I-A O B-B", [(1, 3, "A"), (4, 5, "B")]),
        ("I-A I-A I-B", [(0, 2, "A"), (2, 3, "B")]),  # IOB1, as conlleval reads it
        ("B-A B-A", [(0, 1, "A"), (1, 2, "A")]),
        ("S-A B-B E-B U-C B-C L-C", [(0, 1, "A"), (1, 3, "B"), (3, 4, "C"), (4, 6, "C")]),
        ("B I O I", [(0, 2, None), (3, 4, None)]),
    ],
)
def test_bio_tags(tags, spans):
    assert bio_spans(tags.split()) == spans


def test_the_documentation_names_options_that_exist():
    text = (Path(__file__).resolve().parents[2] / "docs" / "import.md").read_text(encoding="utf-8")
    known = {name for option in import_corpus.params for name in option.opts} | {"--cuts"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named <= known and {name for name in known if name.startswith("--")} - named <= {"--help"}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_table_with_other_columns_is_one_error(tmp_path, out, ending):
    names = ("path", "sentence")
    if ending == "csv":
        table = table_of(tmp_path, [(f"{n}.wav", "oui") for n in range(30)], names)
    else:
        table = tmp_path / "t.jsonl"
        table.write_text("".join(json.dumps({"path": f"{n}.wav", "sentence": "oui"}) + "\n" for n in range(30)))
    code, _, err = run("import", out, "--table", table)
    assert code == 2 and len(err.splitlines()) == 1 and not out.exists()
    assert "no column audio (a path) or recording (a name) and no column text; found path, sentence: name it, " in err


@pytest.mark.parametrize("column", [(), ("--column", "text=sentence")])
def test_a_table_split_at_the_wrong_character_names_the_option(tmp_path, out, column):
    table = tmp_path / "t.csv"
    table.write_text("audio;sentence\na.wav;oui, non\n")
    code, _, err = run("import", out, "--table", table, *column)
    assert code == 2 and "found audio;sentence; are the cells separated by ';' (--delimiter)?" in err
