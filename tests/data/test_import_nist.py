"""NIST and Kaldi files: fields of ASCII blanks, lines that cannot be read, and which tokens are words or marks."""

import pytest
from fuzzing import ctm_line, spoken, stm_line
from hypothesis import given
from hypothesis import strategies as st
from importing_cases import examples, imported, run, turns, write, write_audio

from tokenverse_pp.data.importing.kaldi import read_kaldi
from tokenverse_pp.data.importing.nist import read_ctm, read_rttm, read_stm
from tokenverse_pp.data.importing.notation import KEEP, REFUSE, RESOLVE, read_word, read_words, split_label
from tokenverse_pp.data.importing.rows import BadRow, ImportedWord, Rejected, Row, Words, seconds


@examples(60)
@given(st.lists(stm_line(), min_size=1, max_size=5))
def test_every_line_of_an_stm_is_a_turn_or_named(tmp_path, lines):
    path = write(tmp_path / "x.stm", b"\n".join([b";; a comment", b"", *(line for line, _ in lines)]))
    found = {item.place.line: item for item in read_stm(path)}
    wanted = {number: words for number, (line, words) in enumerate(lines, start=3) if line.strip(b" \t")}
    assert found.keys() == wanted.keys()  # each line is a row or named
    for number, words in wanted.items():
        if words is not None:
            assert isinstance(found[number], Row) and found[number].text.split() == " ".join(words).split()
            assert found[number].speaker == "sp\u00a0k"
    for notation in ("keep", "resolve"):
        items = {item.place.line: item for item in read_stm(path, notation)}
        assert items.keys() == wanted.keys()
        assert all(items[number].text == found[number].text for number, words in wanted.items() if words is not None)


@examples(60)
@given(st.lists(ctm_line(), min_size=1, max_size=8))
def test_every_word_of_a_ctm_is_in_a_turn_or_named(tmp_path, lines):
    path = write(tmp_path / "x.ctm", b"\n".join(line for line, _ in lines))
    items = list(read_ctm(path))
    good = [item for item in items if isinstance(item, ImportedWord) and item.problem is None]
    named = [item for item in items if isinstance(item, Rejected) or item.problem is not None]
    assert len(good) + len(named) == sum(bool(line.strip(b" \t")) for line, _ in lines)
    by_line = {item.place.line: item.text for item in good}
    for number, (_, word) in enumerate(lines, start=1):
        assert word is None or by_line[number] == word
    words = Words(item for item in items if isinstance(item, ImportedWord))
    made = list(words.turns(pause=0.3))
    kept = [text for row in made if isinstance(row, Row) for text in row.text.split()]
    assert len(kept) <= sum(len(word.text.split()) for word in good)
    bad_lines = {item.place.line for item in named if isinstance(item, ImportedWord)}
    assert all(row.row.text is not None for row in made if isinstance(row, Rejected))
    assert {row.place.line for row in made if isinstance(row, Rejected)} <= bad_lines
    assert all(word.used for found in words.by_recording.values() for word in found)


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


def test_words_of_a_ctm_replace_those_of_the_rttm(audio_dir, tmp_path):
    lines = ["SPEAKER a 1 0 1 <NA> <NA> s <NA> <NA>", "LEXEME a 1 0.1 0.2 bon lex s <NA> <NA>"]
    rttm = write(tmp_path / "a.rttm", "\n".join([*lines, "LEXEME a 1 2 0.2 perdu lex s <NA> <NA>"]))
    ctm = write(tmp_path / "a.ctm", "a 1 0.1 0.2 bon\na 1 0.5 0.2 jour\n")
    [cut] = imported(tmp_path / "o.jsonl", "--rttm", rttm, "--ctm", ctm, "--audio-dir", audio_dir)
    assert turns(cut) == [(0.0, 1.0, "s", "bon jour")]


ROW = "SPEAKER {} 1 {} 1 <NA> <NA> ann <NA> <NA>\n"


@pytest.mark.parametrize(("file", "said"), [("Zo\u00eb", "Zoe\u0308"), ("Zoe\u0308", "Zo\u00eb")])
def test_names_may_be_composed_or_decomposed(tmp_path, file, said):
    write_audio(tmp_path / "audio" / file / f"{file}.wav", seconds=1.0)
    write_audio(tmp_path / "audio" / "x.wav", seconds=1.0)
    rttm = write(tmp_path / "x.rttm", ROW.format(said, 0) + ROW.format("x", 0))
    ctm = write(tmp_path / "x.ctm", f"{said} 1 0.2 0.2 oui\nx 1 0.2 0.2 non\n")
    out, options = tmp_path / "o.jsonl", ("--rttm", rttm, "--ctm", ctm, "--audio-dir", tmp_path / "audio")
    for path in (f"{file}/{file}.wav", f"{said}/{said}.wav"):
        table = write(tmp_path / "T.csv", f"audio,start,end\n{path},0,1\nx.wav,0,1\n")
        cuts = imported(out, "--table", table, *options)
        assert [turns(cut)[0][2:] for cut in cuts] == [("ann", "oui"), ("ann", "non")]
    write_audio(tmp_path / "audio" / file / "x.wav", seconds=1.0)
    cuts = imported(out, *options[:-1], tmp_path / "audio" / file)
    assert [cut["recording"]["sources"][0]["source"][-5:] for cut in cuts] == [f"{file}.wav"[-5:], "x.wav"]


def test_speakers_that_are_given_are_those_of_turns_outside_the_rttm(audio_dir, tmp_path):
    stm = write(tmp_path / "x.stm", "a 1 one 0 1 un\na 1 one 2 3 deux\nb 1 one 0 1 trois\n")
    rttm = write(tmp_path / "x.rttm", ROW.format("a", 0))
    recordings = write(tmp_path / "R.csv", "recording,audio,speaker\na,a.wav,\nb,b.wav,eve\n")
    options = ("--stm", stm, "--rttm", rttm, "--audio-dir", audio_dir)
    for more, expected in (
        ((), ["ann", None, None]),
        (("--set", "speaker=bob"), ["ann", "bob", "bob"]),
        (("--recordings", recordings, "--set", "speaker=bob"), ["ann", "bob", "eve"]),
    ):
        cuts = imported(tmp_path / "o.jsonl", *options, *more)
        assert [cut["supervisions"][0].get("speaker") for cut in cuts] == expected


def test_speakers_of_an_rttm_that_are_on_another_channel_are_told(tmp_path):
    write_audio(tmp_path / "c.wav", channels=2)
    stm = write(tmp_path / "x.stm", "c 1 one 0 1 un\nc 2 two 0 1 deux\nc B two 2 3 trois\n")
    rttm = write(tmp_path / "x.rttm", ROW.format("c", 0))
    code, said, _ = run("import", tmp_path / "o.jsonl", "--stm", stm, "--rttm", rttm, "--audio-dir", tmp_path)
    what = "turns without a speaker in the RTTM, which has speakers on another channel then"
    assert code == 0 and f"{what} (the first: {stm}, line 2, channel '2', in the RTTM '1'): 1\n" in said


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--rttm", "x.rttm", "SPEAKER lines"),
        ("--ctm", "x.ctm", "words"),
        ("--recordings", "R.csv", "recordings"),
        ("--recordings", "wav.scp", "recordings"),
    ],
)
def test_a_file_beside_the_turns_that_says_nothing_is_named(audio_dir, tmp_path, option, name, said):
    stm = write(tmp_path / "x.stm", "a 1 one 0 1 un\n")
    text = {"x.rttm": ";; LEXEME alone\nLEXEME a 1 0.1 0.2 un lex s <NA> <NA>\n", "R.csv": "recording,audio\n"}
    empty = write(tmp_path / name, text.get(name, ""))
    code, _, err = run("import", tmp_path / "o.jsonl", "--stm", stm, option, empty, "--audio-dir", audio_dir)
    assert (code, err) == (2, f"error: {empty}: holds no {said}; nothing was written\n")
    assert not (tmp_path / "o.jsonl").exists()


def test_a_word_in_no_turn_spoils_the_cut_of_its_recording(audio_dir, tmp_path):
    line = "SPEAKER {} 1 0 1 <NA> <NA> s <NA> <NA>\n"
    rttm = write(tmp_path / "x.rttm", line.format("a") + line.format("b") + line.format("none"))
    ctm = write(tmp_path / "x.ctm", "".join(f"{n} 1 0.2 0.2 oui\n" for n in ("a", "b", "none")) + "b 1 2 0.2 perdu\n")
    ctm.write_text(ctm.read_text() + "none 1 2 0.2 perdu\nc 1 2 0.2 perdu\n")
    options = ("--rttm", rttm, "--ctm", ctm, "--audio-dir", audio_dir, "--skip-bad")
    assert [cut["recording"]["id"] for cut in imported(tmp_path / "o.jsonl", *options)] == ["a", "b"]
    [cut] = imported(tmp_path / "o.jsonl", *options, "--one-cut-per", "recording")
    assert cut["id"] == "a"
    # A table knows where the audio is, and only one channel has the word.
    rows = "sub/c.flac,,0,1\nd.wav,A,0,1\nd.wav,B,0,1\na.wav,,0,1\n"
    table = write(tmp_path / "T.csv", f"audio,channel,start,end\n{rows}")
    write(ctm, "".join(f"{n} {k} 0.2 0.2 oui\n" for n, k in ("c1", "d1", "d2", "a1")) + "c 1 2 1 x\nd 2 2 1 x\n")
    options = ("--table", table, "--ctm", ctm, "--audio-dir", audio_dir, "--skip-bad", "--one-cut-per", "recording")
    assert [cut["id"] for cut in imported(tmp_path / "p.jsonl", *options)] == ["d-1", "a"]


def test_turns_with_a_text_keep_it_beside_a_ctm(audio_dir, tmp_path):
    table = write(tmp_path / "T.csv", "audio,start,end,text\na.wav,0,1,Bon jour\na.wav,1,2,\na.wav,0.5,1.5,\n")
    ctm = write(tmp_path / "x.ctm", "a 1 0.6 0.2 bon\na 1 0.8 0.1 (%x)\na 1 1.2 0.2 oui\na 1 1.4 0.2 oui\n")
    options = ("--table", table, "--ctm", ctm, "--audio-dir", audio_dir)
    code, _, err = run("import", tmp_path / "o.jsonl", *options)
    assert code == 2 and "T.csv, line 4: field 'text': expected words" in err and "1 of 3 rows" in err, err
    cuts = imported(tmp_path / "o.jsonl", *options, "--skip-bad")
    assert [cut["supervisions"][0]["text"] for cut in cuts] == ["Bon jour", "oui oui"]


def test_a_kaldi_text_without_an_utterance_may_be_of_any_recording(audio_dir, tmp_path):
    write(tmp_path / "wav.scp", f"a {audio_dir}/a.wav\nb {audio_dir}/b.wav\n")
    write(tmp_path / "segments", "u1 a 0 1\nu3 b x 1\n")
    write(tmp_path / "text", "u1 un\nu2 deux\nu3 trois\nu4\n")
    options = ("--kaldi", tmp_path, "--audio-dir", "/", "--skip-bad")
    assert len(imported(tmp_path / "o.jsonl", *options)) == 1
    code, _, err = run("import", tmp_path / "p.jsonl", *options, "--one-cut-per", "recording")
    assert code == 2 and "text, line 2: there is no utterance 'u2': its recording is not known" in err, err
    # That of u3 is, and u4 has no words.
    write(tmp_path / "text", "u1 un\nu3 trois\nu4\n")
    [cut] = imported(tmp_path / "o.jsonl", *options, "--one-cut-per", "recording")
    assert cut["id"] == "a"


def test_a_bad_line_spoils_the_cut_of_its_recording_only(audio_dir, tmp_path):
    stm = write(tmp_path / "x.stm", "a 1 s 0 1 un\nb 1 s 0 1 de\x1fux\nb 1 s 1 2 trois\n")
    options = ("--audio-dir", audio_dir, "--one-cut-per", "recording", "--skip-bad")
    [cut] = imported(tmp_path / "o.jsonl", "--stm", stm, *options)
    assert cut["id"] == "a"
    write(stm, "a 1 s 0 1 un\nb 1 s 0 1 deux\rb 1 s 1 2 trois\n")
    code, _, err = run("import", tmp_path / "p.jsonl", "--stm", stm, *options)
    assert code == 2 and f"{stm}, line 2: holds a carriage return" in err and "its recording is not known" in err
    ctm = write(tmp_path / "x.ctm", "b 1 0 0.3 un\nb\x0b 1 1 0.3 deux\n1 1 0 0.3 trois\n")
    write_audio(tmp_path / "1.wav")
    code, _, err = run("import", tmp_path / "p.jsonl", "--ctm", ctm, *options)
    assert code == 2 and f"{ctm}, line 2: holds a" in err and "its recording is not known" in err
    write(tmp_path / "k/wav.scp", f"a {audio_dir}/a.wav\nb {audio_dir}/b.wav\nx y\x0bz\n")
    write(tmp_path / "k/segments", "u1 a 0 1\nu2 b 0 1\n")
    write(tmp_path / "k/text", "u1 un\nu2 de\rux\n")
    [cut] = imported(tmp_path / "o.jsonl", "--kaldi", tmp_path / "k", *options[2:], "--audio-dir", "/")
    assert cut["id"] == "a"


@examples(60)
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
    assert [row.text.split() for row in rows] == [" ".join(words).split() for words in texts]


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


RESOLVED = [
    ("{ uh / um } hello (%HESITATION)", "uh hello"),
    ("{ um / uh / @ } as far as i'm concerned", "um as far as i'm concerned"),
    ("so { @ / uh } yes", "so yes"),
    ("OR NOT { je / e / { fr / sdg } }", "OR NOT je"),
    ("{ { a / b } c / d } e", "a c e"),
    ("{he is / he has} just", "he is just"),
    ("{um/uh} well", "um well"),
    ("{ um / uh} well", "um well"),
    ("{ a seventy-two / seventy two } { m g / m_g }", "a seventy-two m g"),
    ("{ {lktAb / AlktAb } jdyd", "{lktAb jdyd"),
    ("(you know) it ((was there)) (( now ))", "you know it was there now"),
    ("(%hesitation) (uh) yes", "uh yes"),
    ("(%\u062a\u0631\u062f\u0651\u062f) x", "x"),
    ("%um %AH yes %eh", "um AH yes eh"),
    ("[noise] a {BREATH} b <sil> c [door slam] d {lipsmack}", "a b c d"),
    ("[laughter-yeah] the(2) end(12)", "yeah the end"),
    ("<B_ASIDE> come in <E_ASIDE> so", "come in so"),
    ("[[a comment]] a", "a"),
    ("@ a", "a"),
]
REFUSED = [
    *("(( )) a", "(())", "<unk> a", "a <unk>", "[inaudible]", "{unintelligible} x", "%BCACK", "%bcnack a"),
    *("{ um", "um }", "(um", "um)", "((um) x", "[um", "um]", "{ um }", "{ / um }", "{ um / }"),
    *("w[ord]- a", "[bidness/business] a", "<FOREIGN> a", "</foreign>", '<foreign language="x"> a', "<unk>a"),
    *("%sEAl", "%\u0633\u0639\u0627\u0644", "{lktAb h*A qAr}", "{lktAb}", "(" * 60 + "a" + ")" * 60),
]
WORDS = [
    "<n h*A Alrjl >mr qAl",  # Buckwalter's transliteration
    "AlmA} $y} {lktAb &l <lY bd>",
    "wor- -rd e- -",
    "étudiant(e)s (s)he 5% %50 % and / or",
    "10\u00a0000 a\u2009b \u3000",
    "a < b >c x>y",
    "AT&T *star* +plus+ #hash ~A.",
]


@pytest.mark.parametrize(("text", "words"), RESOLVED)
def test_marks_are_resolved_refused_or_kept(text, words):
    assert read_words(text, RESOLVE) == words.split(" ")
    assert read_words(text, KEEP) == text.split(" ")
    with pytest.raises(BadRow, match=r"is NIST notation \(.*--nist-notation resolve .*--nist-notation keep"):
        read_words(text, REFUSE)


@pytest.mark.parametrize("text", REFUSED)
def test_what_nobody_wrote_down_and_broken_marks_are_refused(text):
    for notation in (RESOLVE, REFUSE):
        with pytest.raises(BadRow, match="field 'text'"):
            read_words(text, notation)
    assert read_words(text, KEEP) == text.split(" ")


@pytest.mark.parametrize("text", WORDS)
def test_words_are_no_marks(text):
    for notation in (REFUSE, RESOLVE, KEEP):
        assert read_words(text, notation) == text.split(" ")


@pytest.mark.parametrize(
    ("text", "label", "rest"),
    [
        ("<o,f0,male> a b", "o,f0,male", "a b"),
        ("<O>", "O", ""),
        ("<fr> bonjour", "fr", "bonjour"),
        ("<n h*A >mr", None, "<n h*A >mr"),
        ("<unk> a", None, "<unk> a"),
        ("<sil>", None, "<sil>"),
        ("a <o> b", None, "a <o> b"),
        ("<bdA> Alrjl", None, "<bdA> Alrjl"),
        ("<o,F0,maleA> Alrjl", "o,F0,maleA", "Alrjl"),
        ("", None, ""),
    ],
)
def test_a_label_is_one_field_in_angle_brackets(text, label, rest):
    assert split_label(text) == (label, rest)


@pytest.mark.parametrize("text", ["<o, f0, male> a", "<o,f0,male>a b", "<o,f0"])
def test_a_label_with_spaces_does_not_become_words(text):
    with pytest.raises(BadRow, match="expected a label without spaces"):
        split_label(text)


def test_types_of_words():
    for kind in ("lex", "FRAG", "fp", "for-lex", "propernoun", None):
        assert read_word("wor-", kind, REFUSE) == "wor-"
    assert read_word("%uh", "fp", RESOLVE) == "uh" and read_word("guess", "un-lex", RESOLVE) == "guess"
    assert read_word("{laugh", "non-lex", RESOLVE) is None and read_word("(%hesitation)", "fp", RESOLVE) is None
    assert read_word("a", "noscore", KEEP) == "a"
    for kind, notation in (("non-lex", REFUSE), ("un-lex", REFUSE), ("noscore", RESOLVE), ("misc", RESOLVE)):
        with pytest.raises(BadRow):
            read_word("a", kind, notation)
    with pytest.raises(BadRow, match="expected a type of word such as lex"):
        read_word("a", "york", KEEP)


MARKS_AND_WORDS = st.sampled_from(
    [*"{}/@()", "((", "))", "uh", "um", "(uh)", "%uh", "<sil>", "<n", ">m", "{a", "b}", "[x", "y]", "[noise]", "a(2)"]
)


@examples(150)
@given(st.lists(MARKS_AND_WORDS, max_size=12))
def test_no_word_appears_or_is_joined(tokens):
    """Whatever the marks: words are among the tokens without their signs, in their order, or the text is refused."""
    text = " ".join(tokens)
    assert read_words(text, KEEP) == tokens
    try:
        assert read_words(text, REFUSE) == tokens
    except BadRow:
        pass
    try:
        words = read_words(text, RESOLVE)
    except BadRow:
        return
    signs = str.maketrans("", "", "(){}%2")
    bare = iter(token.translate(signs) for token in tokens)
    assert all(word.translate(signs) in bare for word in words)
