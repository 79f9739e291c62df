"""Files of every format are what others read: FFmpeg the subtitles, lhotse and our importers the NIST formats."""

import html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from lhotse import SupervisionSet
from spoken import transcripts

from tokenverse_pp.api.formats import FORMATS, render
from tokenverse_pp.api.formats.subtitles import CHARACTERS, LINES, LONGEST, cues_of
from tokenverse_pp.api.formats.text import CHARACTERS as PARAGRAPH
from tokenverse_pp.api.formats.text import SILENCE, clock_time, paragraphs, recording_id, to_html, to_text
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.importing.nist import read_stm
from tokenverse_pp.data.importing.rows import Row
from tokenverse_pp.tasks.result import Mark, Transcript, Turn, Word

TIME = r"\d\d+:[0-5]\d:[0-5]\d"
BLOCK = rf"(\d+)\n({TIME}),(\d{{3}}) --> ({TIME}),(\d{{3}})\n((?:[^\n]+\n){{1,2}})"


def said(*texts, step=0.5, length=0.3):
    return tuple(Word(text, i * step, round(i * step + length, 3), 0.9) for i, text in enumerate(texts))


@given(transcripts())
def test_cues_can_be_read_and_follow_one_another(heard):
    cues = cues_of(heard)
    before = 0
    for cue in cues:
        assert before <= cue.start < cue.end <= cue.start + LONGEST
        assert 1 <= len(cue.lines) <= LINES
        words = sum(len(line.split()) for line in cue.lines) - cue.has_dash
        assert all(0 < len(line) <= CHARACTERS for line in cue.lines) or words == 1
        before = cue.end
    shown = "".join(line for cue in cues for line in cue.lines).replace(" ", "")
    dashes = "-" if len(heard.turns) > 1 else ""
    starts = {turn.first for turn in heard.turns}
    assert shown == "".join((dashes if i in starts else "") + word.text for i, word in enumerate(heard.words))


def test_a_cue_ends_where_the_speaker_changes_or_is_done():
    words = said("one", "two", "three", "four", "five")
    turns = (Turn(1, "one two three", 0.0, 1.3, 0, 3), Turn(2, "four five", 1.5, 2.3, 3, 5))
    heard = Transcript("a", 3.0, ("asr", "scd", "endp"), words, (Mark("[ENDP]", 1, 0.4, 1.0),), turns)
    assert [cue.lines for cue in cues_of(heard)] == [("- one",), ("two three",), ("- four five",)]


def test_a_cue_ends_before_a_pause_and_after_seven_seconds():
    pause = (*said("one"), Word("two", 5.0, 5.3, 0.9))
    assert [cue.lines for cue in cues_of(Transcript("a", 6.0, words=pause))] == [("one",), ("two",)]
    slow = Transcript("a", 20.0, words=said(*"abcdefgh", step=1.5))
    assert [cue.lines for cue in cues_of(slow)] == [("a b c d e",), ("f g h",)]


def test_lines_are_of_about_the_same_length():
    heard = Transcript("a", 9.0, words=said(*(["word"] * 10), step=0.1, length=0.1))
    assert cues_of(heard)[0].lines == (" ".join(["word"] * 5),) * 2


@given(transcripts())
def test_paragraphs_are_whole_turns_or_parts_of_long_ones(heard):
    parts = paragraphs(heard)
    assert [at for part in parts for at in range(part.first, part.stop)] == list(range(len(heard.words)))
    assert {turn.first for turn in heard.spans()} <= {part.first for part in parts}
    entities = {at for entity in heard.entities for at in range(entity.first + 1, entity.stop)}
    inside = entities - {turn.first for turn in heard.spans()}  # a model may write a speaker change inside an entity
    gaps = [0.0, *(after.start - before.end for before, after in zip(heard.words, heard.words[1:]))]
    for part in parts:
        assert part.text == " ".join(word.text for word in heard.words[part.first : part.stop])
        within = set(range(part.first + 1, part.stop))
        assert len(part.text) < PARAGRAPH or within <= inside
        assert all(gaps[at] < SILENCE for at in within - inside) and part.first not in inside
    bare = render(heard, "text").splitlines() if len(parts) < 2 else to_text(heard, times=False).splitlines()
    assert bare == [part.text for part in parts]
    lines = to_text(heard, times=True).splitlines()
    assert lines == [f"{clock_time(part.start)}  {part.text}" for part in parts]
    assert len(parts) < 2 or render(heard, "text").splitlines() == lines


def test_long_turns_are_divided_at_endpoints_else_at_pauses():
    """Twenty minutes without a speaker change are not one line."""
    words = tuple(Word("word", i * 0.5 + (i // 30), i * 0.5 + (i // 30) + 0.3, 0.9) for i in range(2400))
    ends = tuple(Mark("[ENDP]", at, 0.0, 1.0) for at in (50, 60, 110, 115))
    heard = Transcript("a", 1300.0, ("asr", "scd", "endp"), words, ends, (Turn(1, "", 0.0, 1.0, 0, 2400),))
    parts = paragraphs(heard)
    assert [part.first for part in parts[:3]] == [0, 60, 115]  # as many sentences as there is room for
    assert all(part.first % 30 == 0 for part in parts[3:])  # a second without a word
    assert max(len(part.text) for part in parts) < PARAGRAPH and min(len(part.text) for part in parts) > 100
    assert render(heard, "text").splitlines()[1].startswith("0:32.0  word word")
    silent = (*said("one"), Word("two", 15.0, 15.3, 0.9))
    assert render(Transcript("a", 16.0, words=silent), "text") == "0:00.0  one\n0:15.0  two\n"


@pytest.mark.parametrize("times", [None, False, True])
def test_the_page_has_paragraphs_with_their_times(times):
    heard = Transcript("a", 400.0, words=said(*(["word"] * 200), step=1.0))
    page = to_html(heard, times=times)
    shown = re.findall(r'<span class="at">([^<]*)</span>', page)
    expected = [clock_time(part.start) for part in paragraphs(heard)]
    assert len(expected) > 2 and shown == ([] if times is False else expected)
    assert page.count('<p title="turn 1">') == len(expected)


@given(transcripts())
def test_srt_is_what_its_grammar_says(heard):
    text = render(heard, "srt")
    blocks = re.findall(BLOCK, text)
    assert "\n".join(f"{n}\n{a},{b} --> {c},{d}\n{e}" for n, a, b, c, d, e in blocks) == text
    assert [int(block[0]) for block in blocks] == list(range(1, len(cues_of(heard)) + 1))


@settings(max_examples=25)
@given(transcripts())
def test_ffmpeg_reads_the_subtitles(tmp_path_factory, heard):
    av = pytest.importorskip("av")
    cues = cues_of(heard)
    for name in ("srt", "vtt"):
        path = tmp_path_factory.mktemp("subtitles") / f"a.{name}"
        path.write_text(render(heard, name), encoding="utf-8")
        if not cues:
            continue  # nothing to find: FFmpeg refuses an empty file
        with av.open(str(path)) as file:
            found = [
                (round(1000 * p.pts * p.time_base), round(1000 * p.duration * p.time_base), bytes(p).decode().strip())
                for p in file.demux()
                if p.size
            ]
        assert [(start, length) for start, length, _ in found] == [(cue.start, cue.end - cue.start) for cue in cues]
        texts = [re.sub(r"^<v turn\d+>", "", text) for _, _, text in found]
        assert [html.unescape(text) for text in texts] == ["\n".join(cue.lines) for cue in cues]


def test_webvtt_escapes_what_would_be_a_tag():
    text = render(Transcript("a", 1.0, words=said("<i>", "&amp;", "-->")), "vtt")
    assert text.startswith("WEBVTT\n\n") and "&lt;i&gt; &amp;amp; --&gt;" in text and text.count("-->") == 1


@given(transcripts())
def test_lhotse_reads_rttm(tmp_path_factory, heard):
    path = tmp_path_factory.mktemp("rttm") / "a.rttm"
    path.write_text(render(heard, "rttm"), encoding="utf-8")
    found = list(SupervisionSet.from_rttm(path)) if heard.words else []
    spans = heard.spans()
    assert [sup.speaker for sup in found] == [f"turn{turn.number}" for turn in spans]
    assert all(sup.recording_id == recording_id(heard.name) for sup in found)
    for sup, turn in zip(found, spans):
        assert sup.start == pytest.approx(turn.start, abs=1e-3)
        assert sup.end == pytest.approx(max(turn.end, turn.start + 0.001), abs=2e-3)


@given(transcripts())
def test_our_importer_reads_stm(tmp_path_factory, heard):
    path = tmp_path_factory.mktemp("stm") / "a.stm"
    path.write_text(render(heard, "stm"), encoding="utf-8")
    rows = list(read_stm(path, "keep"))
    texts = [turn.text for turn in heard.spans()]
    assert all(isinstance(row, Row) for row in rows)
    assert [row.text or "" for row in rows] == texts
    assert [row.speaker for row in rows] == [f"turn{turn.number}" for turn in heard.spans()]


def test_lhotse_reads_ctm(tmp_path):
    words = said("bonjour", "amélie", "oui")
    (tmp_path / "a.ctm").write_text(render(Transcript("my call", 3.0, words=words), "ctm"), encoding="utf-8")
    (tmp_path / "a.rttm").write_text(render(Transcript("my call", 3.0, words=words), "rttm"), encoding="utf-8")
    found = list(SupervisionSet.from_rttm(tmp_path / "a.rttm").with_alignment_from_ctm(tmp_path / "a.ctm"))
    aligned = [(item.symbol, item.start, item.duration, item.score) for item in found[0].alignment["word"]]
    assert aligned == [(word.text, word.start, pytest.approx(0.3), 0.9) for word in words]


@given(transcripts())
def test_every_line_of_ctm_has_its_fields(heard):
    lines = render(heard, "ctm").splitlines()
    assert len(lines) == len(heard.words)
    for line, word in zip(lines, heard.words):
        name, channel, start, duration, text, confidence = line.split()
        assert (name, channel, text) == (recording_id(heard.name), "1", word.text)
        assert float(start) == pytest.approx(word.start) and float(duration) >= 0.001
        assert 0 <= float(confidence) <= 1


class Page(HTMLParser):
    """Tags that are open, and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link"):
            self.open.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


@settings(max_examples=20)
@given(transcripts())
def test_a_page_is_whole_and_asks_for_nothing(heard):
    page = Page()
    page.feed(render(heard, "html"))
    page.close()
    assert page.open == [] and all(address.startswith("data:") for address in page.addresses)
    for text in (heard.name, *(word.text for word in heard.words)):
        assert text in page.texts


def test_a_format_that_there_is_none_of():
    with pytest.raises(UserError, match="expected one of text, raw, json"):
        render(Transcript(), "docx")


@pytest.mark.parametrize("name", FORMATS)
def test_silence_can_be_written_too(name):
    text = render(Transcript("quiet", 1.0), name)
    assert ("quiet" in text) == (name in ("json", "html"))  # all others have nothing to say
