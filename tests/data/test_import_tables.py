"""Tables of any kind: a row that cannot be read is rejected and spoils no other."""

import csv

import pytest
from fuzzing import table
from hypothesis import given
from importing_cases import examples, imported, run

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.importing.fields import FieldMap, entities_of
from tokenverse_pp.data.importing.rows import BadRow, Rejected, Row
from tokenverse_pp.data.importing.tables import read_table


def rows_of(path, data, delimiter=None):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_table(path, FieldMap(), delimiter))


@examples(80)
@given(table())
def test_every_row_is_read_or_named(tmp_path, case):
    delimiter, data, rows = case
    items = rows_of(tmp_path / "T.csv", data, delimiter)
    kept = {item.id: (item.audio, item.text) for item in items if isinstance(item, Row)}
    wanted = {f"u{number}": (f"{number}.wav", text) for number, text in rows if text is not None}
    # Unchanged, but for the line ends within quotes.
    assert {name: (audio, text.replace("\r\n", "\n")) for name, (audio, text) in kept.items()} == wanted
    assert len(items) == len(rows) and len({item.place.line for item in items}) == len(rows)


BAD = [
    ("csv", "2,a.wav,bad\rcell", "holds a carriage return (U+000D)"),
    ("csv", '2,a.wav,"bad" cell', "broken quoting"),
    ("csv", '2,a.wav,"bad""cell" x', "broken quoting"),
    ("csv", '2,a.wav,"a\rb",x\ry', "holds a carriage return (U+000D) outside of quotes"),
    ("csv", '2,a.wav,"bad', "a quote is not closed"),
    ("csv", '2,"a.wav,bad', "a quote is not closed"),
    ("csv", "2,a.wav,bad,cell", "expected 3 cells, found 4"),
    ("csv", "2,a.wav", "expected 3 cells, found 2"),
    ("tsv", "2\ta.wav\tbad\rcell", "holds a carriage return (U+000D)"),
    ("tsv", "2\ta.wav\tbad\0cell", "found a NUL byte"),
    ("tsv", "2\ta.wav\tbad\x07cell", "field 'text': holds the control character U+0007"),
    ("tsv", "2\ta.wav\tbad\x9dcell", "field 'text': holds the control character U+009D"),
    ("tsv", "2\ta.wav\tbad\tcell", "expected 3 cells, found 4"),
    ("tsv", "2\x01\ta.wav\tbad", "field 'id': expected a name"),
    ("jsonl", '{"id": "2", "audio": "a.wav", "text": "bad\\u0000cell"}', "holds the control character U+0000"),
    ("jsonl", '{"id": "2", "audio": "a.wav"}\r{"id": "2"}', "not JSON"),
]


@pytest.mark.parametrize(("ending", "line", "reason"), BAD)
def test_a_bad_row_leaves_the_others(audio_dir, tmp_path, ending, line, reason):
    good = {
        "csv": ("id,audio,text", "1,a.wav,good", '3,a.wav,"good, too"'),
        "tsv": ("id\taudio\ttext", '1\ta.wav\t"good', "3\ta.wav\tgood too"),
        "jsonl": ("", '{"id": "1", "audio": "a.wav", "text": "x"}', '{"id": "3", "audio": "a.wav", "text": "x\\ry"}'),
    }[ending]
    path = tmp_path / f"T.{ending}"
    path.write_bytes("\n".join([good[0], good[1], line, good[2]]).encode())
    options = ("--table", path, "--audio-dir", audio_dir)
    code, _, err = run("import", tmp_path / "o.jsonl", *options)
    assert code == 2 and f"error: {path}, line 3: " in err and reason in err and "1 of 3 rows" in err
    cuts = imported(tmp_path / "o.jsonl", *options, "--skip-bad")
    assert [cut["id"] for cut in cuts] == ["1", "3"]


def test_a_bad_row_spoils_the_cut_of_its_recording_only(audio_dir, tmp_path):
    path = tmp_path / "T.tsv"
    path.write_bytes(b"audio\tstart\tend\ttext\na.wav\t0\t1\tun\nb.wav\t0\t1\toui\na.wav\t1\t2\tbad\rcell\n")
    options = ("--table", path, "--audio-dir", audio_dir, "--one-cut-per", "recording", "--skip-bad")
    [cut] = imported(tmp_path / "o.jsonl", *options)
    assert cut["id"] == "b"


def test_a_quote_does_not_swallow_rows(tmp_path):
    lines = ["id,audio,text", '1,a.wav,"open', "2,b.wav,good", '3,c.wav,closes 5"', "4,d.wav,good"]
    items = rows_of(tmp_path / "T.csv", "\n".join(lines))
    assert [item.reason for item in items if isinstance(item, Rejected)] == [
        "a quote is not closed before line 3, which is a row of its own"
    ]
    assert [item.text for item in items if isinstance(item, Row)] == ["good", 'closes 5"', "good"]
    # Quoted line ends are fine, also where the first cell has them and the last line looks like a row.
    items = rows_of(tmp_path / "T.csv", 'id,audio,text\n"1\n2",a.wav,"x\ny, z\n"\n3,b.wav,good\n')
    assert isinstance(items[0], Rejected) and "field 'id'" in items[0].reason and items[1].text == "good"
    [item] = rows_of(tmp_path / "T.csv", 'id,audio,text\n1,a.wav,"one,\ntwo,\n3,b,c\n""four"""\n')
    assert item.text == 'one,\ntwo,\n3,b,c\n"four"'


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path):
    lines = ['0,a.wav,"open', *(f"{number},a.wav,good" for number in range(1, 3000))]
    items = rows_of(tmp_path / "T.csv", "\n".join(["id,audio,text", *lines]))
    assert isinstance(items[0], Rejected) and items[0].place.line == 2
    assert [item.id for item in items[1:]] == [str(number) for number in range(1, 3000)]


def test_long_cells_and_the_limit_of_the_csv_module(tmp_path):
    before = csv.field_size_limit()
    [item] = rows_of(tmp_path / "T.csv", f'id,audio,text\n1,a.wav,"{"long " * 100_000}, x"\n')
    assert len(item.text) > 500_000 and csv.field_size_limit() == before


HEADER = "line 1: expected a header line with the names of the columns: "


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("id\raudio\r1\ra.wav\r", HEADER + "holds a carriage return"),
        ('id,"audio\n1,a.wav\n', HEADER + "a quote is not closed"),
        ("id,audio\n".encode("utf-16"), HEADER + "expected text"),
        (b"id,\xffaudio\n", HEADER + "not UTF-8"),
        ("\n  \n", "empty; expected a header line"),
        ("", "empty; expected a header line"),
    ],
)
def test_a_header_that_cannot_be_read_ends_the_import(tmp_path, data, reason):
    with pytest.raises(UserError, match=r"T\.csv") as error:
        rows_of(tmp_path / "T.csv", data)
    assert reason in str(error.value)


def test_columns_without_a_name_are_no_fields(tmp_path):
    """Spreadsheets write them after the last column."""
    [row] = rows_of(tmp_path / "T.csv", "audio,text,,\na.wav,oui,,\n")
    assert (row.audio, row.text) == ("a.wav", "oui")


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n", "\r"])
def test_delimiters_that_are_none(audio_dir, tmp_path, delimiter):
    (tmp_path / "T.txt").write_text("audio;text\na.wav;oui\n")
    options = ("--table", tmp_path / "T.txt", "--audio-dir", audio_dir)
    code, _, err = run("import", tmp_path / "o.jsonl", *options, "--delimiter", delimiter)
    assert code == 2 and "--delimiter" in err and err.count("\n") == 1
    assert len(imported(tmp_path / "o.jsonl", *options, "--delimiter", ";")) == 1
    (tmp_path / "T.txt").write_text("audio\ttext\na.wav\toui\n")
    assert len(imported(tmp_path / "o.jsonl", *options, "--delimiter", "\\t")) == 1


def test_names_may_end_in_a_space_of_unicode(tmp_path):
    [row] = rows_of(tmp_path / "T.tsv", "id\taudio\ttext\n u1\u00a0 \t a.wav\u3000 \tx\u2028y\u0085z\n")
    assert (row.id, row.audio, row.text.split()) == ("u1\u00a0", "a.wav\u3000", ["x", "y", "z"])


def test_a_bad_row_of_the_recordings_rejects_its_turns(audio_dir, tmp_path):
    (tmp_path / "a.stm").write_text("one 1 s 0 1 oui\ntwo 1 s 0 1 non\nb 1 s 0 1 si\n")
    recordings = tmp_path / "R.csv"
    recordings.write_bytes(b"recording,audio,language\none,a.wav,fr\ntwo,a.wav,f\rr\nb,b.wav,fr,x\n")
    options = ("--stm", tmp_path / "a.stm", "--recordings", recordings, "--audio-dir", audio_dir)
    code, _, err = run("import", tmp_path / "o.jsonl", *options)
    assert code == 2 and f"{recordings}, line 3: holds a carriage return" in err
    assert f"a.stm, line 2: its recording cannot be read: {recordings}, line 3" in err
    cuts = imported(tmp_path / "o.jsonl", *options, "--skip-bad")
    assert [cut["supervisions"][0]["text"] for cut in cuts] == ["oui", "si"]
    (tmp_path / "wav.scp").write_bytes(f"one {audio_dir}/a.wav\ntwo x\ry\nb {audio_dir}/b.wav\n".encode())
    options = ("--stm", tmp_path / "a.stm", "--recordings", tmp_path / "wav.scp", "--audio-dir", audio_dir)
    code, said, _ = run("import", tmp_path / "o.jsonl", *options, "--skip-bad")
    assert code == 2 or "left out: " in said


def test_a_duration_without_the_start_beside_it_is_refused(audio_dir, tmp_path):
    """A manifest of NeMo: without the start, its words would be those of other audio."""
    table, out = tmp_path / "n.json", tmp_path / "o.jsonl"
    table.write_text('{"audio_filepath": "a.wav", "text": "oui", "offset": 1.5, "duration": 0.5}\n')
    options = (out, "--table", table, "--audio-dir", audio_dir, "--column", "audio=audio_filepath")
    code, _, err = run("import", *options)
    assert code == 2 and "--column start=offset" in err and "--column duration=" in err and not out.exists()
    for column, stretch in (("start=offset", (1.5, 0.5)), ("duration=", (0.0, 4.0))):
        [cut] = imported(*options, "--column", column)
        assert (cut["start"], cut["duration"]) == stretch


def test_a_hugging_face_row_that_cannot_be_read(audio_dir, tmp_path):
    datasets = pytest.importorskip("datasets")
    pa = pytest.importorskip("pyarrow")
    texts = pa.array([b"oui", b"\xff\xfe", b"bad\0cell", b"a\rb"], pa.binary()).view(pa.string())
    rows = {"audio": pa.array([str(audio_dir / "a.wav")] * 4), "text": texts}
    datasets.Dataset(pa.table(rows)).save_to_disk(tmp_path / "hf")
    options = ("--hf", tmp_path / "hf", "--audio-dir", "/")
    code, _, err = run("import", tmp_path / "o.jsonl", *options)
    assert code == 2 and "row 1: cannot be read" in err and "row 2: field 'text': holds the control" in err
    cuts = imported(tmp_path / "o.jsonl", *options, "--skip-bad")
    assert [cut["supervisions"][0]["text"] for cut in cuts] == ["oui", "a b"]


def test_entities_as_hugging_face_datasets_have_them():
    spans = {"type": ["LOC", None], "start": [0, 9], "length": [5, 3]}
    assert entities_of(spans, "Paris is far") == [(0, 5, "LOC"), (9, 12, None)]
    assert entities_of({"type": [], "start": [], "end": []}, "far") == []
    for odd in ({"type": ["LOC"], "start": [0, 1], "end": [1]}, {"type": ["LOC"], "start": ["0"], "length": [1]}, {}):
        with pytest.raises(BadRow, match="field 'entities'"):
            entities_of(odd, "Paris")
