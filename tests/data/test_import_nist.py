"""NIST and Kaldi files: fields of ASCII blanks, marks, lines that cannot be read. No word is lost or made unnamed."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importing_cases import imported, make_audio_dir, run, turns
from nist_files import ctm_line, spoken, stm_line

from tokenverse_pp.data.importing.kaldi import read_kaldi
from tokenverse_pp.data.importing.nist import read_ctm, read_rttm, read_stm
from tokenverse_pp.data.importing.rows import BadRow, ImportedWord, Rejected, Row, Words, seconds

audio_dir = pytest.fixture(scope="module")(make_audio_dir)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(FEW, max_examples=5_000)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def split(text):
    """The words of a transcript: whatever white space separates."""
    return text.split()


def check_stm(folder, lines):
    path = write(folder / "x.stm", b"\n".join([b";; a comment", b"", *(line for line, _ in lines)]))
    found = {item.place.line: item for item in read_stm(path)}
    wanted = {number: words for number, (line, words) in enumerate(lines, start=3) if line.strip(b" \t")}
    assert found.keys() == wanted.keys()  # each line is a row or named
    for number, words in wanted.items():
        if words is not None:
            assert isinstance(found[number], Row) and split(found[number].text) == split(" ".join(words))
            assert found[number].speaker == "sp\u00a0k"
    for notation in ("keep", "resolve"):
        items = {item.place.line: item for item in read_stm(path, notation)}
        assert items.keys() == wanted.keys()
        assert all(items[number].text == found[number].text for number, words in wanted.items() if words is not None)


def check_ctm(folder, lines):
    path = write(folder / "x.ctm", b"\n".join(line for line, _ in lines))
    items = list(read_ctm(path))
    good = [item for item in items if isinstance(item, ImportedWord) and item.problem is None]
    named = [item for item in items if isinstance(item, Rejected) or item.problem is not None]
    assert len(good) + len(named) == sum(bool(line.strip(b" \t")) for line, _ in lines)
    by_line = {item.place.line: item.text for item in good}
    for number, (_, word) in enumerate(lines, start=1):
        assert word is None or by_line[number] == word
    words = Words(item for item in items if isinstance(item, ImportedWord))
    made = list(words.turns(pause=0.3))
    kept = [text for row in made if isinstance(row, Row) for text in split(row.text)]
    assert len(kept) <= sum(len(split(word.text)) for word in good)
    bad_lines = {item.place.line for item in named if isinstance(item, ImportedWord)}
    assert all(row.row.text is not None for row in made if isinstance(row, Rejected))
    assert {row.place.line for row in made if isinstance(row, Rejected)} <= bad_lines
    assert all(word.used for found in words.by_recording.values() for word in found)


@FEW
@given(st.lists(stm_line(), min_size=1, max_size=5))
def test_every_line_of_an_stm_is_a_turn_or_named(tmp_path, lines):
    check_stm(tmp_path, lines)


@FEW
@given(st.lists(ctm_line(), min_size=1, max_size=8))
def test_every_word_of_a_ctm_is_in_a_turn_or_named(tmp_path, lines):
    check_ctm(tmp_path, lines)


@pytest.mark.slow
def test_ten_thousand_nist_files(tmp_path):
    MANY(given(st.lists(stm_line(), min_size=1, max_size=2))(lambda lines: check_stm(tmp_path, lines)))()
    MANY(given(st.lists(ctm_line(), min_size=1, max_size=3))(lambda lines: check_ctm(tmp_path, lines)))()


@settings(FEW, max_examples=10)
@given(st.lists(stm_line(), min_size=1, max_size=4))
def test_imports_count_every_line(tmp_path, audio_dir, lines):
    """Through the command line: rows read = rows kept + rows named, and the words of those kept."""
    path = write(tmp_path / "a.stm", b"\n".join([b"a 1 x 0.5 1.5 good", *(line for line, _ in lines)]))
    out, rejected = tmp_path / "cuts.jsonl", tmp_path / "rejected.tsv"
    rejected.unlink(missing_ok=True)
    code, said, err = run(
        *("import", out, "--stm", path, "--audio-dir", audio_dir, "--skip-bad", "--rejected", rejected)
    )
    assert code == 0, err
    count = 1 + sum(bool(line.strip(b" \t")) for line, _ in lines)
    named = len(rejected.read_text(encoding="utf-8").splitlines()) - 1 if rejected.exists() else 0
    assert f"rows: {count} read = {count - named} kept + {named} left out" in said


def test_a_no_break_space_is_part_of_a_word(audio_dir, tmp_path):
    ctm = write(tmp_path / "a.ctm", "a 1 0.00 0.50 10\u00a0000 0.9\na 1 0.50 0.50 euros 0.8\n")
    [cut] = imported(tmp_path / "o.jsonl", "--ctm", ctm, "--audio-dir", audio_dir)
    assert turns(cut) == [(0.0, 1.0, None, "10 000 euros")]
    rttm = "SPEAKER a 1 0 2 <NA> <NA> s\u2009k <NA> <NA>\nLEXEME a 1 0.5 0.2 a\u3000b lex s\u2009k <NA> <NA>\n"
    rttm = write(tmp_path / "a.rttm", rttm)
    [cut] = imported(tmp_path / "o.jsonl", "--rttm", rttm, "--audio-dir", audio_dir)
    assert turns(cut) == [(0.0, 2.0, "s\u2009k", "a b")]


STM = """;; as in Hub5
a 1 A 0.00 1.00 <n h*A Alrjl >mr qAl
a 1 B 1.00 2.00 <o,f0,male> { uh / um } hello (%HESITATION)
a 1 inter_segment_gap 2.00 2.50 <o>
a 1 B 2.50 3.00 <o> (%HESITATION)
"""


def test_nist_notation_is_refused_by_line_unless_an_option_says_how_to_read_it(audio_dir, tmp_path):
    stm, out = write(tmp_path / "a.stm", STM), tmp_path / "o.jsonl"
    options = ("--stm", stm, "--audio-dir", audio_dir)
    code, _, err = run("import", out, *options)
    assert code == 2 and f"{stm}, line 3: field 'text': '{{ uh / um }}' is NIST notation" in err
    assert "--nist-notation resolve" in err and f"{stm}, line 4: its text is empty" in err and not out.exists()
    resolved = [(0.0, 1.0, "A", "<n h*A Alrjl >mr qAl"), (1.0, 2.0, "B", "uh hello")]
    # What holds no word is left out as the option asks, and a cut of the recording does without it.
    [cut] = imported(out, *options, "--nist-notation", "resolve", "--one-cut-per", "recording")
    assert turns(cut) == resolved
    code, said, _ = run("import", out, *options, "--nist-notation", "resolve")
    assert code == 0 and "rows: 4 read = 2 kept + 2 left out" in said and "left out, as the options ask: 2" in said
    cuts = imported(out, *options, "--nist-notation", "keep", "--skip-bad")
    assert [cut["supervisions"][0]["text"] for cut in cuts[1:]] == ["{ uh / um } hello (%HESITATION)", "(%HESITATION)"]
    write(stm, STM.split("\n")[3])
    code, _, err = run("import", out.with_name("p.jsonl"), *options, "--nist-notation", "resolve")
    assert code == 2 and "no row is left of 1" in err


CTM = """a 1 * * <ALT_BEGIN>
a 1 0.00 0.30 um
a 1 * * <ALT>
a 1 0.00 0.20 you
a 1 0.20 0.20 know
a 1 * * <ALT_END>
a 1 0.40 0.30 well
b 1 0.10 0.30 oui
"""


def test_alternatives_of_a_ctm(audio_dir, tmp_path):
    ctm = write(tmp_path / "a.ctm", CTM)
    options = ("--ctm", ctm, "--audio-dir", audio_dir)
    cuts = imported(tmp_path / "o.jsonl", *options, "--nist-notation", "resolve")
    assert [cut["supervisions"][0]["text"] for cut in cuts] == ["um well", "oui"]
    for more in ((), ("--nist-notation", "keep")):
        code, _, err = run("import", tmp_path / "p.jsonl", *options, *more)
        assert code == 2 and f"{ctm}, line 2: alternatives (<ALT_BEGIN> in line 1)" in err
        [cut] = imported(tmp_path / "q.jsonl", *options, *more, "--skip-bad")
        assert cut["supervisions"][0]["text"] == "oui"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (CTM.replace("a 1 * * <ALT_END>\n", ""), "<ALT_BEGIN> in line 1 without <ALT_END>"),
        (CTM.replace("a 1 * * <ALT>", "a 1 * * <ALT_BEGIN>").replace("know\n", "know\na 1 * * <ALT_END>\n"), "within"),
    ],
)
def test_broken_alternatives_spoil_their_words(tmp_path, lines, problem):
    items = list(read_ctm(write(tmp_path / "a.ctm", lines), "resolve"))
    spoilt = {item.text for item in items if item.problem is not None and problem in item.problem}
    assert spoilt >= {"um", "you", "know"}
    assert [item.text for item in items if item.problem is None][-1] == "oui"


def test_alternatives_that_were_not_begun_are_named(tmp_path):
    items = list(read_ctm(write(tmp_path / "a.ctm", CTM.split("\n", 1)[1]), "resolve"))
    assert [item.reason for item in items if isinstance(item, Rejected)] == [
        "<ALT> without <ALT_BEGIN>",
        "<ALT_END> without <ALT_BEGIN>",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a 1 0.5 0.2 new york 0.9", "expected a confidence after the word, found 'york'"),
        ("a 1 0.5 0.2 route 66 west", "expected a type of word such as lex, frag or fp, found 'west'"),
        ("a 1 0.5 0.2 x 0.9 lex s more", "expected `recording channel start duration word"),
        ("a 1 0.5 1_0 x", "field 'duration': expected seconds >= 0"),
        ("a 1 0.5 0.2 x nan", "expected a confidence"),
        ("a 1 0.5 0.2 {uh noscore", "expected a confidence"),
        ("a 1 0.5 0.2 x 0.9 noscore", "--nist-notation"),
    ],
)
def test_a_word_that_cannot_be_read_spoils_its_turn(tmp_path, line, reason):
    path = write(tmp_path / "a.ctm", f"a 1 0.1 0.2 bon\n{line}\na 1 5 0.2 oui\n")
    bad, good = Words(read_ctm(path)).turns(pause=1.0)
    assert isinstance(bad, Rejected) and reason in bad.reason and "a turn of 2 words from 0.100 s on" in bad.reason
    assert bad.place.line == 2 and bad.row.recording == "a" and good.text == "oui"


@pytest.mark.parametrize(
    "line",
    [
        "SPEAKER a 1 0 1 <NA> <NA> John Smith <NA>",
        "SPEAKER a 1 0 1 <NA> <NA> John Smith <NA> <NA>",
        "SPEAKER a 1 0 1 <NA> anna <NA> <NA>",
        "SPEAKER a 1 0 1 hello <NA> anna <NA> <NA>",
        "SPEAKER a 1 0 1 <NA> <NA>",
        "SPEAKER a 1 0 nan <NA> <NA> anna <NA>",
        "TURN a 1 0 1 <NA> <NA> anna <NA> <NA>",
    ],
)
def test_rttm_turns_that_are_named(tmp_path, line):
    [item] = read_rttm(write(tmp_path / "a.rttm", f";; comment\n  ; another\n{line}\n"))
    assert isinstance(item, Rejected) and item.place.line == 3


@pytest.mark.parametrize("cells", [8, 9, 10])
def test_rttm_turns_with_fewer_cells(tmp_path, cells):
    line = " ".join("SPEAKER a 1 0.5 1 <NA> <NA> anna 0.5 <NA>".split()[:cells])
    [item] = read_rttm(write(tmp_path / "a.rttm", line))
    assert (item.speaker, item.start, item.end) == ("anna", 0.5, 1.5)


@pytest.mark.parametrize("word", ["<NA> lex", "york york", "(%HESITATION) fp", "<unk> un-lex"])
def test_rttm_words_that_cannot_be_read_spoil_their_turn(audio_dir, tmp_path, word):
    lines = ["SPEAKER a 1 0 1 <NA> <NA> s <NA> <NA>", "SPEAKER a 1 2 1 <NA> <NA> s <NA> <NA>"]
    lines += ["LEXEME a 1 0.1 0.2 bon lex s 0.9 <NA>", f"LEXEME a 1 0.5 0.2 {word} s 0.9 <NA>"]
    lines += ["LEXEME a 1 2.1 0.2 oui lex s 0.9 <NA>"]
    rttm = write(tmp_path / "a.rttm", "\n".join(lines))
    code, _, err = run("import", tmp_path / "o.jsonl", "--rttm", rttm, "--audio-dir", audio_dir)
    assert code == 2 and f"{rttm}, line 1: {rttm}, line 4: " in err and "1 of 2 rows" in err
    [cut] = imported(tmp_path / "o.jsonl", "--rttm", rttm, "--audio-dir", audio_dir, "--skip-bad")
    assert turns(cut) == [(0.0, 1.0, "s", "oui")]


def test_old_line_ends_do_not_join_records(tmp_path):
    """A file of carriage returns is one line: its records must not become the text of the first."""
    [item] = read_stm(write(tmp_path / "a.stm", "a 1 A 0 1 hello\ra 1 B 1 2 world\r"))
    assert isinstance(item, Rejected) and "carriage return (U+000D)" in item.reason
    assert [row.text for row in read_stm(write(tmp_path / "a.stm", "a 1 A 0 1 hello\r\na 1 B 1 2 world\r\n"))] == [
        "hello",
        "world",
    ]


def test_a_bad_line_spoils_the_cut_of_its_recording_only(audio_dir, tmp_path):
    stm = write(tmp_path / "x.stm", "a 1 s 0 1 un\nb 1 s 0 1 de\x1fux\nb 1 s 1 2 trois\n")
    options = ("--audio-dir", audio_dir, "--one-cut-per", "recording", "--skip-bad")
    [cut] = imported(tmp_path / "o.jsonl", "--stm", stm, *options)
    assert cut["id"] == "a"
    write(stm, "a 1 s 0 1 un\nb 1 s 0 1 deux\rb 1 s 1 2 trois\n")
    code, _, err = run("import", tmp_path / "p.jsonl", "--stm", stm, *options)
    assert code == 2 and f"{stm}, line 2: holds a carriage return" in err and "its recording is not known" in err
    write(tmp_path / "k/wav.scp", f"a {audio_dir}/a.wav\nb {audio_dir}/b.wav\nx y\x0bz\n")
    write(tmp_path / "k/segments", "u1 a 0 1\nu2 b 0 1\n")
    write(tmp_path / "k/text", "u1 un\nu2 de\rux\n")
    [cut] = imported(tmp_path / "o.jsonl", "--kaldi", tmp_path / "k", *options[2:], "--audio-dir", "/")
    assert cut["id"] == "a"


@FEW
@given(st.lists(spoken, min_size=1, max_size=4))
def test_kaldi_texts_keep_their_words(tmp_path, texts):
    write(tmp_path / "wav.scp", "r\u00a01 dir/a\u2009b.wav\n")
    write(tmp_path / "segments", "".join(f"u\u3000{i} r\u00a01 {i} {i + 1}\n" for i in range(len(texts))))
    write(tmp_path / "text", "\ufeff" + "".join(f"u\u3000{i}\t{' '.join(words)}\n" for i, words in enumerate(texts)))
    write(tmp_path / "utt2spk", "".join(f"u\u3000{i} s\u00a0k\n" for i in range(len(texts))))
    rows = list(read_kaldi(tmp_path))
    assert [(row.id, row.recording, row.audio, row.speaker) for row in rows] == [
        (f"u\u3000{i}", "r\u00a01", "dir/a\u2009b.wav", "s\u00a0k") for i in range(len(texts))
    ]
    assert [split(row.text) for row in rows] == [split(" ".join(words)) for words in texts]


def test_an_empty_kaldi_text_is_empty_not_missing(audio_dir, tmp_path):
    write(tmp_path / "wav.scp", f"a {audio_dir}/a.wav\n")
    write(tmp_path / "segments", "u1 a 0 1\nu2 a 1 2\nu3 a 2 3.000\n")
    write(tmp_path / "text", "u1 bon\nu2\nu3 oui\n")
    options = ("--kaldi", tmp_path, "--audio-dir", "/")
    code, _, err = run("import", tmp_path / "o.jsonl", *options)
    assert code == 2 and f"{tmp_path}/text, line 2: utterance 'u2': its text is empty" in err and "1 of 3 rows" in err
    assert len(imported(tmp_path / "o.jsonl", *options, "--skip-bad")) == 2
    [cut] = imported(tmp_path / "o.jsonl", *options, "--skip-bad", "--one-cut-per", "recording")
    assert turns(cut) == [(0.0, 1.0, None, "bon"), (2.0, 3.0, None, "oui")]
    write(tmp_path / "text", "u1 bon\nu3 oui\n")
    code, _, err = run("import", tmp_path / "o.jsonl", *options)
    assert code == 2 and f"{tmp_path}/segments, line 2: no line in {tmp_path}/text" in err
    write(tmp_path / "text", "u1 bon\nu2 a\rb\nu3 oui\n")
    code, _, err = run("import", tmp_path / "o.jsonl", *options)
    assert code == 2 and f"{tmp_path}/text, line 2: holds a carriage return" in err
    assert f"segments, line 2: no line in {tmp_path}/text that can be read" in err


@pytest.mark.parametrize("value", ["1_0", "\u0661", "１", "nan", "inf", "1e999", "", "1.5s"])
def test_seconds_are_decimal_numbers(value):
    with pytest.raises(BadRow, match="expected seconds >= 0"):
        seconds(value, "start")
    assert seconds(" 1.5e0\t", "start") == 1.5 == seconds(1.5, "start")
