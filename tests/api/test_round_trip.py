"""What `transcribe` writes, `manifest import` reads back: the same words, in the recording, and what else a format has.

STM and CTM have no escapes: words that look like NIST's notation need ``--nist-notation keep``.
"""

import json

import numpy as np
import pytest
import soundfile
from command_lines import run, run_ok
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.api.formats import FORMATS, render
from tokenverse_pp.api.formats.subtitles import cues_of
from tokenverse_pp.cli.manifest_import import import_corpus
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.result import Transcript, Word, transcript_of_words

TASKS = build_tasks(
    ["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["fr", "nl"]}, "ner": {"types": ["PER", "LOC"]}}
)
OPTIONS = {
    "srt": ("--subtitles",),
    "vtt": ("--subtitles",),
    "stm": ("--stm",),
    "ctm": ("--pause", "1000", "--ctm"),
    "json": ("--transcripts",),
    "rttm": ("--rttm",),
}
TEXTS = ["srt", "vtt", "stm", "ctm", "json"]
PLAIN = ["bonjour", "l'été", "10", "2", "我们去北京", "ß", "--", "NOTE", "STYLE", "WEBVTT:", "x" * 60, "a" * 99]
MARKUP = "<b> </i> <i & &amp; &lt; &#39; --> -> ;; { } {\\an8} % <v a<b>c - – <3 <00:00:01.000> (uh) %hes".split()
MARKUP += "<unk> <fr> @ \\N 00:00:01,000 <font".split()
KEEP_NOTATION = any("--nist-notation" in option.opts for option in import_corpus.params)


def heard(texts, name="call", duration=None, tasks=("asr", "scd", "endp", "ner", "lid"), step=0.2, length=0.16):
    """A transcript of words and task tokens, a time step each."""
    words = [Word(text, round(i * step, 3), round(i * step + length, 3), 0.9) for i, text in enumerate(texts)]
    whole = duration if duration is not None else round(len(texts) * step, 3)
    return transcript_of_words(words, list(tasks), whole, name, TASKS)


def import_back(folder, transcript, format, *options, name=None, seconds=None):
    """The import of a transcript that was written: (exit code, turns in order of time, messages)."""
    audio = folder / "audio"
    audio.mkdir(exist_ok=True)
    for old in (*audio.iterdir(), *folder.glob("*.*")):
        old.unlink()
    samples = max(round(16000 * (seconds if seconds is not None else transcript.duration)), 1)
    soundfile.write(audio / f"{name or transcript.name}.wav", np.zeros(samples), 16000)
    path = folder / f"{transcript.name}{FORMATS[format].ending}"
    path.write_text(render(transcript, format), encoding="utf-8", newline="")
    out = folder / "cuts.jsonl"
    if format in ("stm", "ctm", "rttm") and KEEP_NOTATION:
        options = ("--nist-notation", "keep", *options)
    done = run("manifest", "import", out, "--audio-dir", audio, *options, *OPTIONS[format], path)
    cuts = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    assert done.exit_code in (0, 2) and (done.exit_code == 0) == bool(cuts), done.output
    for cut in cuts:
        assert cut["start"] >= 0 and cut["start"] + cut["duration"] <= cut["recording"]["duration"] + 1e-6
        assert cut["recording"]["id"] == (name or transcript.name)
        for turn in cut["supervisions"]:
            turn["start"] += cut["start"]
    turns = [turn for cut in cuts for turn in cut["supervisions"]]
    return done.exit_code, turns, done.output + done.stderr


def words_of(turns):
    return " ".join(turn["text"] for turn in turns).split()


MIXED = "[FR] bonjour [NE:PER] jean paul [/NE] [ENDP] oui [SCD] à [NE:LOC] paris [/NE] [ENDP] [SCD] non".split()


@pytest.mark.parametrize("format", TEXTS)
def test_words_times_speakers_and_whatever_a_format_has(tmp_path, format):
    transcript = heard(MIXED)
    code, turns, said = import_back(tmp_path, transcript, format)
    assert code == 0, said
    assert words_of(turns) == transcript.text.split()
    expected = {
        "srt": [None] * 4,
        "vtt": ["turn1", "turn1", "turn2", "turn3"],
        "stm": ["turn1", "turn2", "turn3"],
        "ctm": [None],
        "json": ["turn1", "turn1", "turn2", "turn3"],
    }
    assert [turn.get("speaker") for turn in turns] == expected[format]
    starts = {word.start for word in transcript.words}
    assert all(any(abs(turn["start"] - start) < 0.0006 for start in starts) for turn in turns)
    if format in ("stm", "json"):
        ends = {word.end for word in transcript.words}
        assert all(any(abs(turn["start"] + turn["duration"] - end) < 0.0011 for end in ends) for turn in turns)
    if format == "json":
        assert [turn["custom"]["endpoint"] for turn in turns] == [True, False, True, False]
        found = [turn["text"][e["start"] : e["end"]] for turn in turns for e in turn["custom"]["entities"]]
        assert found == [entity.text for entity in transcript.entities] == ["jean paul", "paris"]
        assert {turn["language"] for turn in turns} == {"fr"}


def test_rttm_gives_the_turns_and_ctm_their_words(tmp_path):
    transcript = heard(["one", "two", "[SCD]", "three", "[SCD]", "four"], name="my call", duration=1.1)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "x.ctm").write_text(render(transcript, "ctm"))
    code, turns, said = import_back(tmp_path, transcript, "rttm", "--ctm", tmp_path / "words")
    assert code == 0, said
    assert [(turn["speaker"], turn["text"]) for turn in turns] == [
        *(("turn1", "one two"), ("turn2", "three"), ("turn3", "four")),
    ]
    assert [(turn["start"], round(turn["start"] + turn["duration"], 3)) for turn in turns] == [
        *((0.0, 0.36), (0.6, 0.76), (1.0, 1.1)),
    ]


@pytest.mark.parametrize("format", TEXTS)
def test_words_that_look_like_markup(tmp_path, format):
    """All in a row and each alone."""
    for words in (MARKUP + PLAIN, *([word] for word in MARKUP + PLAIN)):
        if not (format in ("stm", "ctm") and words == ["@"]):
            code, turns, said = import_back(tmp_path, heard(words, tasks=["asr"]), format)
            assert code == 0 and words_of(turns) == words, (words, said)


@pytest.mark.parametrize("format", TEXTS)
def test_blanks_within_words_and_words_of_nothing(tmp_path, format):
    transcript = heard(["10\u00a0000", "new\nyork", "", "a \t b", "\u3000x", "end\r"], tasks=["asr"])
    if format == "ctm" and not KEEP_NOTATION:
        pytest.skip("the reader of CTM splits at no-break spaces")
    _, turns, said = import_back(tmp_path, transcript, format)
    assert words_of(turns) == "10 000 new york a b x end".split(), said


@pytest.mark.parametrize("format", TEXTS)
def test_times_end_with_the_audio(tmp_path, format):
    """Words at the very end, of no length, and many in little time."""
    for words in (
        [Word("one", 0.0, 0.999, 0.9), Word("two", 0.9996, 0.9996, 0.9)],
        [Word(*item, 0.9) for item in (("one", 0.2, 0.2), ("two", 0.2, 0.2), ("[SCD]", 0.9, 1.0), ("three", 1.0, 1.0))],
        [Word(text, 1.2, 1.3, 0.9) for text in "one [SCD] two [SCD] three [SCD] four".split()],
        [Word("one", 0.0004, 0.0004, 0.9)],
        [Word("one", 0.5, 9.0, 0.9)],
    ):
        for duration in (1.0, 0.9996, 0.0337):
            transcript = transcript_of_words(words, ["asr", "scd"], duration, "call", TASKS)
            code, turns, said = import_back(tmp_path, transcript, format, seconds=duration)
            assert code == 0, (words, duration, said)
            assert words_of(turns) == transcript.text.split()
            for cue in cues_of(transcript):
                assert 0 <= cue.start < cue.end <= 1000 * transcript.duration


@pytest.mark.parametrize("format", ["ctm", "stm", "rttm"])
@pytest.mark.parametrize("name", ["my call", " x ", ";; odd", "100%", "a%20b", "a\u00a0b\u3000c", "été", "sub/call"])
def test_names_that_no_field_can_hold(tmp_path, format, name):
    transcript = heard(["one", "two"], name=name.replace("/", "-"), tasks=["asr"])
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "x.ctm").write_text(render(transcript, "ctm"), encoding="utf-8")
    options = ("--ctm", tmp_path / "words") if format == "rttm" else ()
    code, turns, said = import_back(tmp_path, transcript, format, *options)
    assert code == 0 and words_of(turns) == ["one", "two"], said
    # A table of recordings has the names as they are.
    (tmp_path / "R.jsonl").write_text(json.dumps({"recording": transcript.name, "audio": f"{transcript.name}.wav"}))
    path = tmp_path / f"{transcript.name}.{format}"
    table = ("--recordings", tmp_path / "R.jsonl", "--audio-dir", tmp_path / "audio")
    run_ok("manifest", "import", tmp_path / "c.jsonl", *table, *options, *OPTIONS[format], path)
    assert json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0])["recording"]["id"] == transcript.name


@pytest.mark.parametrize("format", OPTIONS)
def test_silence_is_told(tmp_path, format):
    code, _, said = import_back(tmp_path, Transcript("quiet", 1.0), format)
    assert code == 2 and ("holds no rows" in said or "a transcript without words" in said)


@st.composite
def spoken(draw):
    """Words and task tokens with times that a decoder may give: they never go back, and words do not overlap."""
    items = st.one_of(st.sampled_from(PLAIN + [w for w in MARKUP if w != "@"]), st.sampled_from(TASKS.symbols))
    texts = draw(st.lists(items, max_size=30))
    words, time = [], 0.0
    for text in texts:
        start = round(time + draw(st.sampled_from([0.0, 0.02, 0.3, 2.5])), 3)
        time = round(start + draw(st.sampled_from([0.0, 0.0204, 0.04, 1.0])), 3)
        words.append(Word(text, start, time, draw(st.sampled_from([0.25, 1.0]))))
    duration = max(round(time - draw(st.sampled_from([0.0, 0.02, -1.0])), 4), 0.05)
    return transcript_of_words(words, TASKS.names, duration, "call", TASKS), duration


@settings(max_examples=15)
@given(spoken())
def test_any_transcript(tmp_path_factory, case):
    transcript, duration = case
    folder = tmp_path_factory.mktemp("any")
    for format in ("srt", "vtt", "stm", "ctm", "json"):
        # One word again and again in no time looks like rolling captions.
        keep = ("--repeated-captions", "keep") if format in ("srt", "vtt") else ()
        code, turns, said = import_back(folder, transcript, format, *keep, seconds=duration)
        assert words_of(turns) == transcript.text.split(), said
        assert (code == 0) == bool(transcript.words)
        if format in ("vtt", "stm", "json"):
            by_turn = [turn.text.split() for turn in transcript.spans()]
            speakers = list(dict.fromkeys(turn["speaker"] for turn in turns))
            assert [words_of([t for t in turns if t["speaker"] == speaker]) for speaker in speakers] == by_turn


def test_json_lines_and_folders(tmp_path):
    one, two = heard(["one"], name="a", tasks=["asr"]), heard(["two"], name="b", tasks=["asr"])
    (tmp_path / "out").mkdir()
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(16000), 16000)
    (tmp_path / "out" / "all.jsonl").write_text(one.to_json() + "\n\n" + two.to_json() + "\n{\n" + '{"name": 3}\n')
    (tmp_path / "lines.json").write_text(one.to_json() + "\n" + two.to_json() + "\n")
    options = ("--audio-dir", tmp_path, "--transcripts")
    done = run("manifest", "import", tmp_path / "c.jsonl", *options, tmp_path / "out")
    assert done.exit_code == 2 and "all.jsonl, line 4: transcript: not JSON" in done.stderr
    assert "all.jsonl, line 5: transcript, field 'name': expected a text" in done.stderr
    done = run("manifest", "import", tmp_path / "c.jsonl", "--skip-bad", *options, tmp_path / "out")
    assert done.exit_code == 0 and "rows: 4 read = 2 kept + 2 left out" in done.stdout
    done = run("manifest", "import", tmp_path / "d.jsonl", *options, tmp_path / "lines.json")
    assert done.exit_code == 0 and "rows: 2 read = 2 kept + 0 left out" in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"turns": []}, None),
        (
            {"turns": [{"number": 1, "text": "one", "start": 0, "end": 1, "first": 0, "stop": 1}]},
            "each word in one turn",
        ),
        ({"marks": []}, "field 'marks': expected [ENDP]"),
        (
            {"entities": [{"text": "x", "type": None, "start": 0, "end": 1, "confidence": 1, "first": 0, "stop": 2}]},
            "reaches",
        ),
        ({"words": [{"text": "one"}]}, "field 'words.start'"),
        ({"language": None}, None),
    ],
)
def test_json_that_was_changed(tmp_path, change, said):
    data = {**heard(["[FR]", "one", "[ENDP]", "two", "[SCD]", "three"]).to_dict(), **change}
    soundfile.write(tmp_path / "call.wav", np.zeros(32000), 16000)
    (tmp_path / "x.json").write_text(json.dumps(data, indent=1))
    done = run("manifest", "import", tmp_path / "c.jsonl", "--transcripts", tmp_path / "x.json")
    if said is None:
        assert done.exit_code == 0, done.stderr
        assert words_of(json.loads(line)["supervisions"][0] for line in (tmp_path / "c.jsonl").open()) == [
            *("one", "two", "three"),
        ]
    else:
        assert done.exit_code == 2 and f"{tmp_path / 'x.json'}, line 1: " in done.stderr and said in done.stderr
