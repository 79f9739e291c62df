"""Subtitles as the WebVTT standard has them and as files in the wild are: no cue lost unnamed, no word changed."""

import doctest
import gzip
import importlib
import pkgutil
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from importing_cases import examples, imported, run, turns, write, write_audio

from tokenverse_pp.api.formats.subtitles import clock
from tokenverse_pp.data.importing.rows import BadRow, Row
from tokenverse_pp.data.importing.subtitles import read_subtitles, read_text
from tokenverse_pp.data.normalise import NORMALISERS

T = [f"00:00:0{i}.000 --> 00:00:0{i + 1}.000" for i in range(9)]
S = [times.replace(".", ",") for times in T]


def read(folder, name, content, **options):
    """(texts by the line of their times, reasons by line) of a file."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    rows = list(read_subtitles(path, **options))
    path.unlink()
    kept = {row.place.line: row.text for row in rows if isinstance(row, Row)}
    named = {row.place.line: row.reason for row in rows if not isinstance(row, Row)}
    assert len(kept) + len(named) == len(rows)
    return kept, named


VTT_CASES = {
    "no blank line after the header": (f"WEBVTT\n{T[0]}\none\n\n{T[1]}\ntwo\n", {2: "one", 5: "two"}, {}),
    "text and metadata in the header": (
        f"WEBVTT - a --> title\nKind: captions\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000\n{T[0]}\none\n",
        {4: "one"}, {}),
    "no blank lines at all": (f"WEBVTT\n{T[0]}\none\n{T[1]}\ntwo\n{T[2]}\nthree", {2: "one", 4: "two", 6: "three"}, {}),
    "a line of spaces is not empty": (
        f"WEBVTT\n\n{T[0]}\n \none\n\t\ntwo\n\n{T[1]}\nthree\n", {3: "one two", 9: "three"}, {}),
    "several empty lines": (f"WEBVTT\n\n\n\n{T[0]}\none\n\n\n\n{T[1]}\ntwo\n\n\n", {5: "one", 10: "two"}, {}),
    "text after an empty line": (
        f"WEBVTT\n\n{T[0]}\none\n\nlost words\n\n{T[1]}\ntwo\n", {3: "one", 8: "two"}, {6: "text without times"}),
    "settings": (f"WEBVTT\n\n{T[0]} align:start position:50%,start line: 84%\none\n", {3: "one"}, {}),
    "text after the times": (f"WEBVTT\n\n{T[0]} Mary: hello\none\n", {}, {3: "expected settings"}),
    "comments": (
        f"WEBVTT\n\nNOTE one\n\nNOTE\nmore\n\n{T[0]}\none\n\nNOTE last\n{T[1]}\ntwo\n\nNOTE\nglued\n{T[2]}\nthree\n",
        {8: "one", 12: "two", 17: "three"}, {}),
    "a comment within a cue is text": (
        f"WEBVTT\n\n{T[0]}\none\nNOTE this\n{T[1]}\ntwo\n", {3: "one NOTE this", 6: "two"}, {}),
    "a comment with an arrow is a cue": (f"WEBVTT\n\nNOTE a --> b\n\n{T[0]}\none\n", {5: "one"}, {3: "expected times"}),
    "style sheets and regions": (
        f"WEBVTT\n\nSTYLE\n::cue {{ }}\n\nREGION\nid:fred\n\n{T[0]} region:fred\none\n\nSTYLE\n::cue {{ }}\n",
        {9: "one"}, {}),
    "identifiers of any look": (
        f"WEBVTT\n\nNOTE-1\n{T[0]}\none\n\nSTYLE\n{T[1]}\ntwo\n\n \n3\n{T[2]}\nthree\n",
        {4: "one", 8: "two", 13: "three"}, {}),
    "words that look like blocks": (
        f"WEBVTT\n\n{T[0]}\nSTYLE\n\nSTYLEGUIDE text\n\nNOTE-1 text\n\n{T[1]}\nNOTE this\n",
        {3: "STYLE", 10: "NOTE this"}, {6: "text without times", 8: "text without times"}),
    "a number may be text or the next identifier": (
        f"WEBVTT\n\n1\n{T[0]}\none\n2\n{T[1]}\ntwo\n \n3\n{T[2]}\nthree\n4\n",
        {11: "three 4"}, {4: "line 6: '2' may be", 7: "line 10: '3' may be"}),
    "no header": (f"{T[0]}\none\n\nNOTE x\n\n{T[1]}\ntwo\n", {1: "one", 6: "two"}, {}),
    "something else": ("once upon\na time\n\nthere was\n", {}, {1: "text without times", 4: "text without times"}),
    "bad times": (
        f"WEBVTT\n\n00:00:01 --> x\none\n\n00:61.000 --> 01:02.000\ntwo\n\n{T[2]} --> 3\nthree\n\n-00:00:01.000 --> "
        f"00:00:02.000\nfour\n\n٠٠:٠١ --> ٠٠:٠٢\nfive\n\n{T[3]}\nsix\n",
        {18: "six"},
        {3: "expected times", 6: "up to 59", 9: "expected settings", 12: "expected times", 15: "expected times"}),
    "times that go back": (
        f"WEBVTT\n\n00:02.000 --> 00:01.000\none\n\n{T[1]}\ntwo\n", {6: "two"}, {3: "after the start"}),
    "another arrow": (f"WEBVTT\n\n{T[0]}\none\n00:00:01.000 -> 00:00:02.000\ntwo\n", {}, {3: "line 5: expected `-->`"}),
    "an empty cue": (
        f"WEBVTT\n\n{T[0]}\n\n{T[1]}\n&nbsp;&lrm;\n\u200b\n\n{T[2]}\ntwo\n", {3: None, 5: None, 9: "two"}, {}),
    "two files, joined": (
        f"WEBVTT\n\n{T[3]}\none\n\nWEBVTT\n\n{T[0]}\ntwo\n\n{T[5]}\nthree\n",
        {3: "one"}, {8: "begin anew", 11: "begin anew"}),
    "segments of one stream": (
        f"WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:9,LOCAL:0\n\n{T[3]}\none\n\nWEBVTT\nX-TIMESTAMP-MAP=MPEGTS:9,LOCAL:0\n\n{T[2]}\n"
        f"two\nWEBVTT\n\n{T[5]}\nthree\n", {4: "one", 14: "three"}, {10: "line 12: the header of another file"}),
    "not UTF-8": (
        f"WEBVTT\n\nNOTE \xe9\n\n{T[0]}\n\xe9\n\n{T[1]}\ntwo\n".encode("latin-1"),
        {8: "two"}, {5: "line 6: not UTF-8"}),
    "binary": (
        f"WEBVTT\n\n{T[0]}\none\0\n\n{T[1]}\ntwo\n", {6: "two"}, {3: "line 4: expected text in UTF-8, found a NUL"}),
}  # fmt: skip
SRT_CASES = {
    "numbers": (f"1\n{S[0]}\none\n\n2\n{S[1]}\ntwo\n\n", {2: "one", 6: "two"}, {}),
    "no numbers": (f"{S[0]}\none\n\n{S[1]}\n10\n\n{S[2]}\nthree\n", {1: "one", 4: "10", 7: "three"}, {}),
    "a number is missing": (
        f"1\n{S[0]}\none\n\n{S[1]}\ntwo\n\n3\n{S[2]}\nthree\n", {2: "one", 5: "two", 9: "three"}, {}),
    "no blank lines": (f"1\n{S[0]}\none\n2\n{S[1]}\ntwo\n3\n{S[2]}\nthree", {2: "one", 5: "two", 8: "three"}, {}),
    "blank lines within the text": (
        f"1\n{S[0]}\n \none\n\n \ntwo\n\n\n\n2\n\n{S[1]}\nthree\n", {2: "one two", 13: "three"}, {}),
    "numbers that are text": (
        f"1\n{S[0]}\nwe have\n10\n\n2\n{S[1]}\n3\n\n3\n{S[2]}\nlast\n10", {2: "we have 10", 7: "3", 11: "last 10"}, {}),
    "a number that may be both": (
        f"1\n{S[0]}\nwe have\n10\n{S[1]}\ntwo\n\nthree\n{S[2]}\nfour\n\n5\n{S[3]}\nfive\n",
        {9: "four", 13: "five"}, {2: "line 4: '10' may be", 5: "line 8: 'three' may be"}),
    "a number in a file without numbers": (
        f"{S[0]}\none\n\n10\n{S[1]}\ntwo\n10\n{S[2]}\n\n4\n\n{S[3]}\nfour\n",
        {8: "4", 12: "four"}, {1: "line 4: '10' may be", 5: "line 7: '10' may be"}),
    "a file that was cut off": (f"1\n{S[0]}\none\n\n2\n", {2: "one"}, {5: "number 2 without a cue"}),
    "text before the first cue": (f"by me\n\n1\n{S[0]}\none\n", {4: "one"}, {1: "text without times"}),
    "sloppy times": (
        "0:0:1,5 --> 00:00:02.25\none\n\n00:03 --> 0:04\ntwo\n\n100:00:05,123456 --> 100:00:06 X1:40 X2:600\nthree\n",
        {1: "one", 4: "two", 7: "three"}, {}),
    "another arrow": (f"1\n{S[0]}\none\n\n2\n00:00:01,000 -> 00:00:02,000\ntwo\n", {2: "one"}, {6: "expected times"}),
    "an arrow in the text": (
        f"1\n{S[0]}\none\na --> b\ntwo\n\n2\n{S[1]}\nthree\n", {2: "one", 8: "three"}, {4: "expected"}),
    "comments are text": (f"1\n{S[0]}\none\n\nNOTE two\n\n2\n{S[1]}\nthree\n", {2: "one NOTE two", 8: "three"}, {}),
    "empty cues": (
        f"1\n{S[0]}\n\n2\n{S[1]}\n3\n{S[2]}\n4\n\n{S[3]}\nfour\n5\n{S[4]}\nfive\n",
        {2: None, 5: None, 10: "four", 13: "five"}, {7: "line 8: '4' may be"}),
    "two files, joined": (f"1\n{S[3]}\none\n\n1\n{S[0]}\ntwo\n", {2: "one"}, {6: "begin anew at line 6"}),
    "WebVTT under another ending": (f"WEBVTT\n\nNOTE x\n\n{T[0]}\none\n", {5: "one"}, {}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "case"), [(ending, case) for ending, cases in (("vtt", VTT_CASES), ("srt", SRT_CASES)) for case in cases]
)
def test_what_is_a_cue_and_what_is_text(tmp_path, ending, case):
    content, texts, reasons = (VTT_CASES if ending == "vtt" else SRT_CASES)[case]
    kept, named = read(tmp_path, f"a.{ending}", content)
    assert kept == texts
    assert named.keys() == reasons.keys() and all(reasons[line] in named[line] for line in named), named


@pytest.mark.parametrize("encode", [
    lambda text: text.replace("\n", "\r\n").encode(),
    lambda text: text.replace("\n", "\r").encode(),
    lambda text: text.replace("\n", "\r\r\n").encode(),
    lambda text: b"\xef\xbb\xbf" + text.replace("é", "\ufeffé").encode(),
    lambda text: text.encode("utf-16"),
    lambda text: b"\xfe\xff" + text.replace("\n", "\r").encode("utf-16-be"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.srt", "a.vtt", "a.vtt.gz"])
def test_line_ends_and_encodings(tmp_path, name, encode):
    text = f"1\n{S[0]}\né one\n\n2\n{S[1]}\ntwo\n\n" if name == "a.srt" else f"WEBVTT\n\n{T[0]}\né one\n\n{T[1]}\ntwo\n"
    content = encode(text)
    kept, named = read(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert list(kept.values()) == ["é one", "two"] and named == {}


def test_files_that_cannot_be_read_to_their_end_are_named(tmp_path):
    whole = gzip.compress(f"WEBVTT\n\n{T[0]}\none\n\n".encode() + b"".join(b"%d\n" % i for i in range(9999)))
    kept, named = read(tmp_path, "a.vtt.gz", whole[:-9])
    assert kept == {3: "one"} and any("cannot be read after line" in reason for reason in named.values())
    kept, named = read(tmp_path, "a.srt", b"\xff\xfe1\0\n")
    assert kept == {} and "not UTF-16" in named[1]


@pytest.mark.parametrize(
    ("raw", "text", "speaker"),
    [
        ("a < b and c > d, I <3 you, x<y", "a < b and c > d, I <3 you, x<y", None),
        ("<-, <<, >> yes, 1<2>0", "<-, <<, >> yes, 1<2>0", None),
        ("hello<00:00:00.500><c> world</c><00:01><c.yellow.bg_blue> again</c.yellow>", "hello world again", None),
        ("<i>so</i> <b>it</b> <u>is</u> <lang en-GB>now</lang> <c></c>", "so it is now", None),
        ('<font color="#fff" size=3>one</font> <FONT COLOR=red>two</FONT>', "one two", None),
        ('<font color=""#f">three</font>', "three", None),
        ("{\\an8}one {\\i1}two{\\i0} {three} {\\an8", "one two {three} {\\an8", None),
        ("one<br/>two<br>three <p align='center'>four</p>", "one two three four", None),
        ("&lt;b&gt; &amp;lt; &#39;x&#x27; AT&T R&B &copy &nbsp;", "<b> &lt; 'x' AT&T R&B &copy \xa0", None),
        ("a --&gt; b", "a --> b", None),
        (f"&#{'9' * 5000}; &#0; &bogus;", f"&#{'9' * 5000}; \ufffd &bogus;", None),
        ("♪ la la ♪ &lrm;", "♪ la la ♪ \u200e", None),
        ("<ruby>漢<rt>かん</rt>字<rp>(</rp><rt>じ</rt></ruby>", "漢字", None),
        ("- Oui.\n– Non - si.\n-5 degrés", "Oui. Non - si. -5 degrés", None),
        ("<v Mary>Hello <i>you</i></v>.", "Hello you.", "Mary"),
        ("<v.loud.low Tom  &amp;\nJerry>Hello", "Hello", "Tom & Jerry"),
        ("- <v Mary>One</v> <v Mary>two", "- One two", "Mary"),
        ("10\u00a0000\u2009€", "10\u00a0000\u2009€", None),
    ],
)  # fmt: skip
def test_markup_is_no_text_and_text_is_no_markup(raw, text, speaker):
    found = read_text(raw.split("\n"))
    assert (" ".join(found.words), found.speaker) == (text.replace("- One", "One"), speaker)


@pytest.mark.parametrize(
    "raw",
    [
        "<laughs> hello",
        "a <b and c> d",
        "x <y and z> w",
        "< i >hello",
        "hello</ i>",
        "<v Mary hello",
        "hello</i",
        "<v Mary>one</v> <v Ben>two",
        "<v Mary>one</v> two",
    ],
)
def test_what_may_be_a_tag_or_text_is_refused(raw):
    with pytest.raises(BadRow):
        read_text([raw])


@pytest.mark.parametrize("package", ["importing", "corpora", "editing"])
def test_examples_of_the_docstrings(package):
    for module in pkgutil.iter_modules(importlib.import_module(f"tokenverse_pp.data.{package}").__path__):
        name = f"tokenverse_pp.data.{package}.{module.name}"
        assert doctest.testmod(importlib.import_module(name)).failed == 0, name


YOUTUBE = """WEBVTT
Kind: captions
Language: en

00:00:00.199 --> 00:00:02.389 align:start position:0%
 
hello<00:00:00.480><c> and</c><00:00:00.640><c> welcome</c><00:00:01.000><c> to</c>

00:00:02.389 --> 00:00:02.399 align:start position:0%
hello and welcome to
 

00:00:02.399 --> 00:00:04.789 align:start position:0%
hello and welcome to
the<00:00:02.560><c> show</c><00:00:03.000><c> show</c>

00:00:04.789 --> 00:00:04.799 align:start position:0%
the show show
 

00:00:05.799 --> 00:00:07.000 align:start position:0%
the show show
show<00:00:06.500><c> now</c>

00:00:07.000 --> 00:00:07.010 align:start position:0%
 
 
"""  # noqa: W293


def test_live_captions_say_each_word_once(tmp_path):
    kept, named = read(tmp_path, "a.vtt", YOUTUBE)
    assert list(kept.values()) == ["hello and welcome to", "the show show", "show now"]
    assert list(named.values()) == ["repeats the cue before"] * 2 + ["empty, and not longer than 0.06 s"]
    # The same as SubRip, as FFmpeg converts it: the tags and spaces are gone.
    srt = re.sub(r"<[^>]*>| align.*|(?m:^ \n)", "", YOUTUBE.split("\n\n", 1)[1])
    blocks = [block for block in srt.split("\n\n") if block.strip()]
    srt = "\n\n".join(f"{i}\n{block.strip()}" for i, block in enumerate(blocks, start=1))
    kept, named = read(tmp_path, "a.srt", srt.replace("05.799", "04.799"))
    assert list(kept.values()) == ["hello and welcome to", "the show show", "show now"] and len(named) == 3
    kept, named = read(tmp_path, "a.vtt", YOUTUBE, repeats="keep")
    assert [text for text in kept.values() if text][2] == "hello and welcome to the show show" and named == {}


def captions(*texts, step=1.0):
    return "WEBVTT\n\n" + "\n\n".join(
        f"00:{i * step:06.3f} --> 00:{(i + 1) * step:06.3f}\n{text}" for i, text in enumerate(texts)
    )


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["no", "no", "no no", "no"], None),
        (["no", "no\nno"], None),
        (["thank you", "thank you", "thank you very much"], None),
        (["la la la", "la la la", "la la la"], None),
        (["one two", "three\nfour", "four\nfive six", "seven"], None),
        (["it is so", "yes", "it is so", "yes it is"], None),
        (["one two", "one two\nthree four", "three four\nfive", "five\nsix"], ["one two", "three four", "five", "six"]),
        (["one two three", "one two three\nfour"], ["one two three", "four"]),
        (["one two three", "one two three four"], None),
        (["one", "one two", "one two three", "four"], ["one", "two", "three", "four"]),
        (["a b\nc d", "c d\ne f", "e f\nno", "no\nno", "no\nyes"], ["a b c d", "e f", "no", "no", "yes"]),
    ],
)
def test_only_captions_that_roll_lose_what_they_repeat(tmp_path, texts, expected):
    kept, named = read(tmp_path, "a.vtt", captions(*texts))
    assert list(kept.values()) == (expected or [" ".join(text.split()) for text in texts]) and named == {}
    kept, _ = read(tmp_path, "a.vtt", captions(*texts), repeats="keep")
    assert list(kept.values()) == [" ".join(text.split()) for text in texts]


def test_an_echo_is_short_and_repeats_the_cue_before(tmp_path):
    kept, named = read(tmp_path, "a.vtt", captions("one two", "one two", "two", "two", step=0.05))
    assert list(kept.values()) == ["one two", "two"] and set(named.values()) == {"repeats the cue before"}
    voices = captions("<v A>no", "<v B>no", "<v B>no", step=0.05)
    kept, named = read(tmp_path, "a.vtt", voices)
    assert list(kept.values()) == ["no", "no"] and len(named) == 1
    kept, named = read(tmp_path, "a.vtt", captions("no", "no"), repeats="drop")
    assert list(kept.values()) == ["no"] and list(named.values()) == ["repeats the cue before"]


def test_the_command_names_what_it_leaves_out(tmp_path):
    out, rejected = tmp_path / "cuts.jsonl", tmp_path / "r.tsv"
    path = tmp_path / "a.vtt"
    # Repetitions and empty cues harm no cut: a recording can be one.
    path.write_text(YOUTUBE.replace("00:00:05.799", "00:00:04.999"))
    write_audio(tmp_path / "audio" / "a.wav", 8.0)
    options = ("--subtitles", path, "--audio-dir", tmp_path / "audio", "--rejected", rejected)
    [cut] = imported(out, *options, "--one-cut-per", "recording")
    assert [turn[3] for turn in turns(cut)] == ["hello and welcome to", "the show show", "show now"]
    code, said, _ = run("import", out, *options)
    assert code == 0 and "rows: 6 read = 3 kept + 3 left out" in said
    assert "left out, as the options ask: 3 (--rejected FILE lists them), the first: " in said
    assert f"{path}, line 9: repeats the cue before" in said
    assert "left out: 7 words that captions repeat" in said and len(rejected.read_text().splitlines()) == 4
    code, said, _ = run("import", out, *options, "--repeated-captions", "keep", "--skip-bad")
    assert code == 0 and "rows: 6 read = 5 kept + 1 left out" in said and "expected words, found nothing" in said
    # A bad cue stops the import unless it may be left out.
    path.write_text(f"WEBVTT\n\n{T[0]}\none\n\n00:00:0x --> 00:02.000\nbad\n\n{T[2]}\n\n{T[3]}\nthree\n")
    code, _, err = run("import", out, *options)
    assert code == 2 and f"{path}, line 6: expected times" in err and "line 9: field 'text': expected words" in err
    assert [turns(cut)[0][3] for cut in imported(out, *options, "--skip-bad")] == ["one", "three"]
    code, _, err = run("import", out, *options, "--skip-bad", "--one-cut-per", "recording")
    assert code == 2 and "3 of 4" not in err and "4 of 4 rows cannot be mapped" in err


def test_a_cue_of_signs_spoils_no_recording(tmp_path, audio_dir):
    path, out = tmp_path / "a.vtt", tmp_path / "cuts.jsonl"
    path.write_text(f"WEBVTT\n\n{T[0]}\none\n\n{T[1]}\n♪\n\n{T[2]}\ntwo\n", encoding="utf-8")
    options = ("--subtitles", path, "--audio-dir", audio_dir, "--set", "language=en", "--one-cut-per", "recording")
    code, _, err = run("import", out, *options, "--normaliser", "words")
    assert code == 2 and "line 6: field 'text': expected words, found '♪'" in err and "1 of 3 rows" in err, err
    [cut] = imported(out, *options, "--normaliser", "words", "--skip-bad")
    assert [turn[3] for turn in turns(cut)] == ["one", "two"]
    [cut] = imported(out, *options)
    assert [turn[3] for turn in turns(cut)] == ["one", "♪", "two"]


def test_texts_are_normalised_once(tmp_path, audio_dir, monkeypatch):
    texts = ["oui", "еще ё", "♪", "今天"]
    cues = [f"00:00:0{i}.000 --> 00:00:0{i}.500\n{text}\n" for i, text in enumerate(texts)]
    srt = write(tmp_path / "subs" / "a.vtt", "WEBVTT\n\n" + "\n".join(cues))
    seen, words = [], NORMALISERS["words"]
    monkeypatch.setitem(NORMALISERS, "words", lambda text, language: seen.append(text) or words(text, language))
    options = ("--subtitles", srt, "--audio-dir", audio_dir, "--normaliser", "words", "--skip-bad")
    cuts = imported(tmp_path / "cuts.jsonl", *options)
    assert [turns(cut)[0][3] for cut in cuts] == ["oui", "еще е", "今天"]
    assert all(seen.count(text) <= 1 for text in texts)  # besides, letters alone, and what was seen before


def test_overlapping_cues_are_kept(tmp_path, audio_dir):
    path = tmp_path / "a.vtt"
    path.write_text(
        "WEBVTT\n\n00:00.000 --> 00:02.000\n<v A>one two\n\n00:01.000 --> 00:03.000\n<v B>two\n\n"
        "00:02.500 --> 00:03.500\n<v A>no\n"
    )
    options = ("--subtitles", path, "--audio-dir", audio_dir)
    assert len(imported(tmp_path / "cuts.jsonl", *options)) == 3
    [cut] = imported(tmp_path / "cuts.jsonl", *options, "--one-cut-per", "recording")
    assert turns(cut) == [(0.0, 2.0, "A", "one two"), (1.0, 3.0, "B", "two"), (2.5, 3.5, "A", "no")]
    assert cut["custom"]["tasks"] == ["asr", "scd"]


def test_one_recording_has_one_file_of_subtitles(tmp_path, audio_dir):
    folder = tmp_path / "subs"
    folder.mkdir()
    (folder / "a.srt").write_text(f"1\n{S[0]}\none\n")
    (folder / "a.vtt").write_text(f"WEBVTT\n\n{T[0]}\none\n")
    options = ("--subtitles", folder, "--audio-dir", audio_dir)
    code, _, err = run("import", tmp_path / "cuts.jsonl", *options)
    assert code == 2 and f"{folder / 'a.vtt'}, line 1: {folder / 'a.srt'} is of recording 'a' too" in err
    assert len(imported(tmp_path / "cuts.jsonl", *options, "--skip-bad")) == 1


# Random files with an oracle: what each block must become.


def random_file(rng):
    """(ending, bytes, texts that are kept, number of items that are named)."""
    is_vtt = rng.random() < 0.5
    point = "." if is_vtt else ","
    lines, texts, named = [], [], 0
    now, word, number = 0, 0, 1
    before = None  # the last lines that were shown, for echoes
    numbered = rng.random() < 0.5
    if is_vtt:
        lines += ["WEBVTT" + rng.choice(["", " title", "\tx --> y"])]
        lines += rng.choice([[], ["Kind: captions", "Language: en"], ["X-TIMESTAMP-MAP=LOCAL:0,MPEGTS:0"]])
        lines += rng.choice([[], [""], ["", "", ""]])
    kinds = ["cue", "cue", "cue", "cue", "bad", "empty", "echo", *(["note", "style", "lost"] if is_vtt else [])]
    for kind in rng.choices(kinds, k=rng.randint(0, 12)):
        if kind in ("note", "style", "lost"):
            lines += [""] if lines and lines[-1] else []
            if kind == "note":
                lines += rng.choice([["NOTE"], ["NOTE some words"], ["NOTE", "more", "STYLE"]])
            elif kind == "style":
                lines += rng.choice([["STYLE", "::cue { }"], ["REGION", "id:x"]])
            else:
                lines += rng.choice([["lost words"], ["STYLEGUIDE"], ["NOTE-1", "more"], ["WEBVTTX"]])
                named += 1
            lines += [""] * rng.randint(1, 2)
            continue
        if kind == "echo" and before is None:
            continue
        length = 10 if kind == "echo" else rng.randint(200, 3000)
        start, end = now, now + length
        now = end if kind != "cue" else end + rng.choice([0, 0, 700])
        has_blank = not lines or lines[-1] == ""
        if numbered and not is_vtt:
            lines.append(str(number))
        elif is_vtt and has_blank and rng.random() < 0.5:
            lines.append(rng.choice(["id", "NOTE-1", "STYLE it", "17 b", "<v x>"]))
        number += 1
        times = f"{clock(start, point)} --> {clock(end, point)}"
        if kind == "bad":
            times = rng.choice([f"x --> {clock(end, point)}", f"{clock(end, point)} -->", times + " words"])
        elif is_vtt:
            times += rng.choice(["", " align:start position:0%", "\tline:-1"])
        lines.append(times)
        if kind == "echo":
            lines += before
            named += 1
        elif kind == "empty":
            lines += rng.choice([[], [" "], ["<i></i>"], ["{\\an8}"]])
            named += 1
            before = None
        else:
            shown = []
            for _ in range(rng.randint(1, 2)):
                raw, plain = [], []
                for _ in range(rng.randint(1, 3)):
                    form = rng.choice(FORMS)
                    raw.append(form[0].format(f"w{word}"))
                    plain.append(form[1].format(f"w{word}"))
                    word += 1
                lines += rng.choice([[], [], [" "]]) if is_vtt or not shown else []
                lines.append(" ".join(raw))
                shown.append(" ".join(plain))
            if kind == "bad":
                named += 1
                before = None
            else:
                texts.append(" ".join(shown))
                before = [lines[-1]]
        if not rng.random() < 0.5 or (is_vtt and lines[-1] == " "):
            lines += [""] * rng.randint(1, 3)
    text = "\n".join(lines) + rng.choice(["", "\n", "\n\n"])
    encoded = text.replace("\n", rng.choice(["\n", "\r\n", "\r"])).encode("utf-8")
    return "vtt" if is_vtt else "srt", rng.choice([b"", b"\xef\xbb\xbf"]) + encoded, texts, named


FORMS = [
    ("{}", "{}"),
    ("<i>{}</i>", "{}"),
    ("<00:00:01.000><c>{}</c>", "{}"),
    ("{}&amp;", "{}&"),
    ("a < {} >", "a < {} >"),
    ("I <3 {}", "I <3 {}"),
    ("{}--&gt;", "{}-->"),
    ("♪{}\u00a0x", "♪{}\u00a0x"),
    ("{{\\an8}}{}", "{}"),
    ('<font color="red">{}</font>', "{}"),
    ("NOTE {}", "NOTE {}"),
    ("&#39;{}&lt;b&gt;", "'{}<b>"),
]


def check_file(folder, rng):
    ending, content, texts, count = random_file(rng)
    kept, named = read(folder, f"a.{ending}", content)
    empty = [line for line, text in kept.items() if text is None]  # named by the import, if nothing gives the words
    assert [text for text in kept.values() if text is not None] == texts
    assert len(named) + len(empty) == count, (named, empty)


# Lines of any kind in any order: what is right may be unclear, but no line of times is lost, and none becomes text.
SOUP = (
    *("", "", " ", "\t", "\ufeff", "\0", "\u2028", "\x85", "1", "2", "3", "10", "é", "w1", "w2 w3", "- w4"),
    *("WEBVTT", "WEBVTT x", "NOTE", "NOTE a", "STYLE", "REGION", "::cue {}", "{\\an8}", "<v A>w5", "<v B>w6</v>", "<i"),
    *("<00:00:01.000>w7", "a < b", "&lt;", "--&gt;", "-->", "a --> b", "00:01 -> 00:02", "00:00:01,0 -> 00:00:02,0"),
    *(*T[:4], *S[:4], f"{T[1]} align:start", "00:01.000 --> 00:01.010", "00:09.000 --> 00:01.000"),
)


def check_soup(folder, rng):
    lines = rng.choices(SOUP, k=rng.randint(0, 20))
    kept, named = read(folder, rng.choice(["a.srt", "a.vtt"]), rng.choice(["\n", "\r\n"]).join(lines))
    first = next((i for i, line in enumerate(lines, start=1) if line.strip("\ufeff")), 0)
    cues = {i for i, line in enumerate(lines, start=1) if "-->" in line}
    cues -= {first} if lines[first - 1 :][:1] and lines[first - 1].startswith("WEBVTT") else set()
    assert cues <= kept.keys() | named.keys()
    assert kept.keys() <= cues
    assert sum((text or "").count("-->") for text in kept.values()) <= lines.count("--&gt;")


def check_rolling(folder, rng):
    """Captions of two or three lines that move up, with echoes, pauses and inline times or without."""
    height, stamped, echoes, is_vtt = rng.randint(2, 3), rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.7
    spoken = [[f"x{i}", *rng.choices(["no", "yes"], k=rng.randint(0, 2))] for i in range(rng.randint(4, 8))]
    spoken[1] = spoken[1] * 2  # words that are said twice
    cues, now = [], 0
    for i, line in enumerate(spoken):
        shown = " ".join(line)
        if stamped and is_vtt and len(line) > 1:
            shown = line[0] + "".join(f"<00:00:01.{k:03d}><c> {word}</c>" for k, word in enumerate(line[1:]))
        window = [" ".join(old) for old in spoken[max(i - height + 1, 0) : i]]
        cues.append((now, now + 1000, [*window, shown]))
        now += 1000
        if echoes:
            cues.append((now, now + 10, [*[*window, " ".join(line)][1 - height :], " "]))
            now += 10
    point = "." if is_vtt else ","
    blocks = [f"{clock(a, point)} --> {clock(b, point)}\n" + "\n".join(lines) for a, b, lines in cues]
    kept, named = read(folder, "a.vtt" if is_vtt else "a.srt", "\n\n".join(["WEBVTT", *blocks][not is_vtt :]))
    assert " ".join(kept.values()).split() == [word for line in spoken for word in line]
    assert len(kept) == len(spoken) and len(named) == len(spoken) * echoes


@pytest.mark.parametrize("check", [check_file, check_soup, check_rolling])
@examples(100)
@given(seed=st.integers(0, 2**32))
def test_rows_in_are_rows_out_and_words_in_are_words_out(tmp_path, check, seed):
    check(tmp_path, random.Random(seed))
