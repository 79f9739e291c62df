"""Conversations from turns: properties of the windows, the rules for endpoints and overlaps, and the command."""

import json

import numpy as np
import pytest
import soundfile
from command_lines import run as command_line
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.conversations import (
    BESIDE_UNKNOWN,
    NO_WORDS,
    OUTSIDE,
    UNKNOWN_WORDS,
    ConversationOptions,
    Track,
    TurnWords,
    conversation_cuts,
    read_words,
)
from tokenverse_pp.data.labels import check_cut
from tokenverse_pp.tasks import build_tasks, render
from tokenverse_pp.tasks.transcript import transcript_of

TASKS = build_tasks(["asr", "scd", "endp"])
LENGTH = 200.0


def turn(number, speaker, start, end, text, **custom):
    fields = {"speaker": speaker, "text": text, "language": "en", "custom": custom or None}
    return SupervisionSegment(f"t{number}", "r", start, round(end - start, 4), **fields)


def words_of(sup):
    """Sign at the end: . complete, , not; ? alone: not understood."""
    text = (sup.text or "").strip()
    if text == "?":
        return TurnWords(None)
    return TurnWords(text.rstrip(".,"), {".": True, ",": False}.get(text[-1:]), (sup.custom or {}).get("entities"))


def windows(turns, **options):
    """Windows as cuts, and {id: reason} of what is in none."""
    left_out = {}
    cuts = conversation_cuts(
        Track("r", Recording("r", [], 16000, round(LENGTH * 16000), LENGTH), 0, turns),
        ConversationOptions(**options),
        words_of,
        lambda sup, reason: left_out.update({sup.id: reason}),
        {"tasks": ["asr", "scd", "endp"]},
    )
    return list(cuts), left_out


def texts(turns, **options):
    """The windows as training text."""
    return [render(transcript_of(cut, TASKS), TASKS) for cut in windows(turns, **options)[0]]


def test_punctuation_says_where_endpoints_are():
    turns = [turn(0, "a", 0, 1, "one."), turn(1, "a", 1, 2, "two,"), turn(2, "b", 3, 4, "three.")]
    assert texts(turns) == ["one [ENDP] two [SCD] three [ENDP]"]
    assert windows(turns)[0][0].custom == {"tasks": ["asr", "scd", "endp"]}
    # By pause alone: "one" goes on at once, "two" is followed by somebody else.
    assert texts(turns, endpoints="pause") == ["one two [ENDP] [SCD] three [ENDP]"]


@pytest.mark.parametrize(
    "complete, ends",
    [
        (True, (". ? ! … ...", "。 ？ ！ ．", "؟ ۔", "।", ".\" ?' !\u00a0»", ".) ?] .”", "。」 ！）", ".“", "؟\u200f")),
        (False, (", ; :", "， 、 ； ：", "، ؛", "- -- – — ― －", ',” —"')),
        (None, ("", "a", '"', "(a)", "*", "♪", "〜")),
    ],
)
def test_the_last_sign_of_any_script_says_whether_a_turn_is_complete(complete, ends):
    for end in (end for group in ends for end in group.split(" ")):
        for text in (f"a{end}", f"a {end} "):
            assert read_words(turn(0, "a", 0, 1, text), "none").complete is complete, text


@pytest.mark.parametrize(
    "second, expected",
    [
        (turn(1, "a", 1.4, 2, "on"), False),  # goes on after 0.4 s
        (turn(1, "a", 1.5, 2, "on"), True),  # a pause of 0.5 s
        (turn(1, "b", 1.1, 2, "on"), True),  # somebody else begins
        (turn(1, "b", 0.5, 2, "on"), True),  # somebody else talks over the end, and the speaker stops
    ],
)
def test_without_a_sign_the_pause_decides(second, expected):
    (cut,), _ = windows([turn(0, "a", 0, 1, "go"), second])
    assert cut.supervisions[0].custom["endpoint"] is expected
    assert cut.custom["label_source"] == {"endp": "machine:pause"}
    (cut,), _ = windows([turn(0, "a", 0, 1, "go"), second], endpoints="punctuation")
    assert cut.supervisions[0].custom["endpoint"] is False and "label_source" not in cut.custom


def test_word_thrown_in_does_not_end_a_turn():
    turns = [turn(0, "a", 0, 2, "one"), turn(1, "b", 0.8, 1.2, "mhm"), turn(2, "a", 2.1, 3, "two")]
    assert texts(turns) == ["one [SCD] mhm [ENDP] [SCD] two [ENDP]"]


def test_overlapping_turns_of_one_speaker_are_joined():
    turns = [
        turn(0, "a", 0, 2, "one", entities=[{"start": 0, "end": 3, "type": "X"}]),
        turn(1, "b", 0.5, 1, "mhm", entities=[]),
        turn(2, "a", 1.5, 3, "two six", entities=[{"start": 4, "end": 7, "type": "Y"}]),
    ]
    (cut,), left_out = windows(turns)
    first = cut.supervisions[0]
    assert (first.text, first.duration, first.custom["joined"]) == ("one two six", 3, ["t2"]) and not left_out
    assert [first.text[e["start"] : e["end"]] for e in first.custom["entities"]] == ["one", "six"]


def test_joined_turns_have_no_labels_that_one_of_them_lacks():
    paris = [{"start": 0, "end": 5, "type": "X"}]
    for here, there in (({"entities": paris, "written": "Paris"}, {}), ({}, {"entities": paris, "written": "Paris"})):
        (cut,), _ = windows([turn(0, "a", 0, 2, "paris", **here), turn(1, "a", 1.5, 3, "paris", **there)])
        assert cut.supervisions[0].text == "paris paris"
        assert not {"entities", "written"} & cut.supervisions[0].custom.keys()


def test_windows_end_at_long_silences_and_at_the_limit():
    turns = [turn(i, "ab"[i % 2], 4 * i, 4 * i + 3.5, f"w{i}") for i in range(6)] + [turn(9, "a", 60, 61, "late")]
    assert [len(cut.supervisions) for cut in windows(turns, max_seconds=12.5)[0]] == [3, 3, 1]
    assert [len(cut.supervisions) for cut in windows(turns, max_gap=0.4)[0]] == [1] * 7
    (cut, *_), _ = windows(turns, max_seconds=12.5)
    assert (cut.start, cut.end) == (0.0, 11.7)  # 0.2 s of the 0.5 s of silence


def test_what_cannot_be_in_a_window_is_listed():
    turns = [turn(0, "a", 0, 2, "one"), turn(1, "b", 1, 3, "?"), turn(2, "a", 5, 5.5, "."), turn(3, "a", 6, 40, "long")]
    turns += [turn(4, "b", 38, 42, "over"), turn(5, "b", 50, 51, "good"), turn(6, "b", 199, 201, "out")]
    cuts, left_out = windows(turns)
    assert [sup.id for cut in cuts for sup in cut.supervisions] == ["t5"]
    assert left_out == {
        "t0": "it overlaps a turn whose words are not known",
        "t1": "its words are not known",
        "t2": "no words are left of its text",
        "t3": "speech without a place to cut is longer than a window",
        "t4": "speech without a place to cut is longer than a window",
        "t6": "it does not lie inside its recording",
    }


def test_no_window_has_the_speech_of_a_turn_that_reaches_beyond_the_recording():
    turns = [turn(0, "a", 190, 192, "one"), turn(1, "b", 197, 205, "two"), turn(2, "a", 198, 199, "three")]
    cuts, left_out = windows(turns)
    assert [cut.supervisions[0].text for cut in cuts] == ["one"]
    assert left_out == {"t1": OUTSIDE, "t2": BESIDE_UNKNOWN}


def test_a_turn_that_was_joined_to_one_beyond_the_recording_is_listed_so():
    for first, second in (("one", "two"), ("?", "two"), ("one", "?")):
        assert windows([turn(0, "a", 190, 198, first), turn(1, "a", 197, 205, second)]) == (
            [],
            {"t0": OUTSIDE, "t1": OUTSIDE},
        )


def test_a_laugh_beyond_the_recording_takes_no_other_turn_along():
    cuts, left_out = windows([turn(0, "b", 198.5, 199.5, "one"), turn(1, "a", 199, 202, ".")])
    assert [cut.supervisions[0].text for cut in cuts] == ["one"] and left_out == {"t1": NO_WORDS}


def test_turn_without_a_speaker_is_refused():
    with pytest.raises(UserError, match="supervision t0, field 'speaker'"):
        windows([turn(0, None, 0, 1, "one")])


STEP = st.integers(0, 40).map(lambda n: n / 10)


@st.composite
def conversations(draw):
    turns, time = [], 0.0
    for number in range(draw(st.integers(1, 15))):
        start = max(0.0, round(time + draw(STEP) - 1.5, 1))
        end = round(start + 0.1 + draw(STEP) * 2, 1)
        text = draw(st.sampled_from(["one", "two.", "three,", "?", ".", "four five"]))
        turns.append(turn(number, draw(st.sampled_from("abc")), start, end, text))
        time = end
    return turns


@given(
    conversations(), st.sampled_from([5.0, 12.0, 30.0]), st.sampled_from(["keep", "drop"]), st.sampled_from([0.0, 0.2])
)
def test_every_turn_is_in_one_valid_window_or_listed(turns, max_seconds, overlaps, margin):
    cuts, left_out = windows(turns, max_seconds=max_seconds, overlaps=overlaps, margin=margin)
    found = [name for c in cuts for sup in c.supervisions for name in [sup.id, *(sup.custom or {}).get("joined", [])]]
    assert sorted([*found, *left_out]) == sorted(t.id for t in turns)
    by_id = {t.id: t for t in turns}
    for cut in cuts:
        assert check_cut(cut) == []
        assert cut.duration <= max_seconds + 1e-6
        inside = {name for sup in cut.supervisions for name in [sup.id, *sup.custom.get("joined", [])]}
        for sup in cut.supervisions:
            assert cut.start + sup.start == pytest.approx(by_id[sup.id].start)
        # The audio of a window holds no speech that is not in its text, but for what has no words.
        for other in turns:
            if other.id not in inside and words_of(other).text != "":
                assert min(other.end, cut.end) - max(other.start, cut.start) <= 0.0011
    for before, after in zip(cuts, cuts[1:]):
        assert after.start >= before.end - 0.0021


@pytest.fixture
def call(tmp_path):
    """A recording on disk with three turns."""
    path = tmp_path / "r.wav"
    soundfile.write(path, np.zeros(16000 * 10, np.float32), 16000)
    turns = [turn(0, "a", 0.5, 1.5, "hello bob ."), turn(1, "b", 2, 3, "yes ,"), turn(2, "b", 4, 5, "now")]
    return Recording.from_file(path, recording_id="r"), turns


def run(*args):
    return command_line("manifest", "conversations", *args)


def test_command_on_supervisions_on_one_long_cut_and_on_a_cut_a_turn(call, tmp_path):
    audio, turns = call
    RecordingSet.from_recordings([audio]).to_file(tmp_path / "rec.jsonl.gz")
    SupervisionSet.from_segments(turns).to_file(tmp_path / "sup.jsonl.gz")
    CutSet.from_cuts([MonoCut("long", 0, 10, 0, turns, None, audio)]).to_file(tmp_path / "long.jsonl.gz")
    single = [
        MonoCut(t.id, t.start, t.duration, 0, [SupervisionSegment(**{**t.to_dict(), "start": 0.0})], None, audio)
        for t in turns
    ]
    CutSet.from_cuts(single).to_file(tmp_path / "single.jsonl.gz")
    made = []
    for source, more in (("sup", ["--recordings", tmp_path / "rec.jsonl.gz"]), ("long", []), ("single", [])):
        out = tmp_path / f"{source}_out.jsonl.gz"
        result = run(tmp_path / f"{source}.jsonl.gz", out, "--normaliser", "words", "--max-gap", 0.9, *more)
        assert result.exit_code == 0, result.stderr
        made.append([cut.to_dict() for cut in CutSet.from_file(out)])
        assert (tmp_path / f"{source}_out.left_out.jsonl").read_text() == ""
    assert made[0] == made[1] == made[2]
    first, second = made[0]
    assert [s["text"] for s in first["supervisions"]] == ["hello bob", "yes"]
    assert [s["custom"]["endpoint"] for s in first["supervisions"]] == [True, False]
    assert second["supervisions"][0]["custom"]["endpoint"] is True
    assert first["custom"]["tasks"] == ["asr", "scd", "endp"]


def test_command_refuses_what_it_cannot_honour(call, tmp_path):
    audio, turns = call
    out = tmp_path / "out.jsonl.gz"
    named = [turn(0, "a", 0, 1, "Bob", entities=[{"start": 0, "end": 3, "type": "X"}])]
    other = Recording("q", audio.sources, 16000, audio.num_samples, audio.duration)
    whole = MonoCut("1", 0, 10, 0, turns, None, audio)
    second = tmp_path / "again" / "r.wav"
    second.parent.mkdir()
    soundfile.write(second, np.zeros(16000 * 10, np.float32), 16000)
    cases = {
        "do not follow one another": [
            MonoCut("1", 0, 5, 0, turns[:1], None, audio),
            MonoCut("2", 0, 5, 0, [], None, other),
            MonoCut("3", 0, 5, 0, turns[1:], None, audio),
        ],
        "cut 2: its recording 'r' differs from the recording of that id": [
            MonoCut("1", 0, 10, 0, turns[:1], None, audio),
            MonoCut("2", 0, 10, 0, turns[1:], None, Recording.from_file(second, recording_id="r")),
        ],
        "two supervisions have the id t0": [MonoCut("1", 0, 10, 0, [turns[0], turns[0]], None, audio)],
        "would move its entities": [MonoCut("1", 0, 10, 0, named, None, audio)],
        "expected one channel of one recording": [whole.append(MonoCut("2", 0, 1, 0, [], None, audio))],
        "no cut is left": [MonoCut("1", 0, 10, 0, [], None, audio)],
    }
    for said, cuts in cases.items():
        CutSet.from_cuts(cuts).to_file(tmp_path / "in.jsonl.gz")
        result = run(tmp_path / "in.jsonl.gz", out, "--normaliser", "words")
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, (said, result.stderr)
    twice = [audio, Recording.from_file(second, recording_id="r")]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(item.to_dict()) + "\n" for item in twice))
    SupervisionSet.from_segments(turns).to_file(tmp_path / "turns.jsonl")
    result = run(tmp_path / "turns.jsonl", out, "--recordings", tmp_path / "twice.jsonl")
    assert result.exit_code == 2 and "two recordings have the id r" in result.stderr, result.stderr
    for options, said in (
        (["--tasks", "asr,sing"], "unknown task 'sing'"),
        (["--tasks", ""], "--tasks: names no task"),
        (["--max-seconds", 0.3], "--max-seconds 0.3"),
        (["--recordings", tmp_path / "in.jsonl.gz"], "expected a RecordingSet, found a CutSet"),
        (["--recordings", tmp_path / "none.jsonl.gz"], "no such file"),
    ):
        result = run(tmp_path / "in.jsonl.gz", out, *options)
        assert result.exit_code == 2 and said in result.stderr, result.stderr
    for name in ("out.parquet", "out.txt"):  # which no command would read
        result = run(tmp_path / "in.jsonl.gz", tmp_path / name)
        assert result.exit_code == 2 and "named .jsonl or .jsonl.gz" in result.stderr, result.stderr
    assert not list(tmp_path.glob("*out*"))


def test_a_turn_without_a_text_is_not_silence(call, tmp_path):
    audio, _ = call
    turns = [turn(0, "a", 0, 2, "one"), turn(1, "b", 2.2, 3.6, None), turn(2, "a", 3.8, 5, "two")]
    turns.append(turn(3, "b", 5, 6, ""))
    CutSet.from_cuts([MonoCut("1", 0, 10, 0, turns, None, audio)]).to_file(tmp_path / "in.jsonl")
    result = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.stderr
    assert [cut.supervisions[0].text for cut in CutSet.from_file(tmp_path / "out.jsonl")] == ["one", "two"]
    found = [json.loads(line) for line in (tmp_path / "out.left_out.jsonl").read_text().splitlines()]
    assert {item["id"]: item["reason"] for item in found} == {"t1": UNKNOWN_WORDS, "t3": NO_WORDS}


def test_command_lists_what_is_in_no_cut_and_keeps_entities(call, tmp_path):
    audio, _ = call
    named = [
        turn(0, "a", 0, 1, "bob", entities=[{"start": 0, "end": 3, "type": "X"}]),
        turn(1, "b", 2, 3, "", entities=[]),
    ]
    custom = {"tasks": ["asr", "ner"], "corpus": "mine", "label_source": {"ner": "people"}}
    CutSet.from_cuts([MonoCut("1", 0, 10, 0, named, None, audio, custom)]).to_file(tmp_path / "in.jsonl.gz")
    result = run(tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl.gz", "--tasks", "asr,scd,endp,ner")
    assert result.exit_code == 0 and "1 turns (0.00 h) left out: no words" in result.stdout
    (item,) = [json.loads(line) for line in (tmp_path / "out.left_out.jsonl").read_text().splitlines()]
    assert item == {"part": "out", "id": "t1", "seconds": 1.0, "reason": "no words are left of its text"}
    (cut,) = CutSet.from_file(tmp_path / "out.jsonl.gz")
    assert cut.supervisions[0].custom["entities"] == named[0].custom["entities"]
    assert cut.custom["corpus"] == "mine" and cut.custom["tasks"] == ["asr", "scd", "endp", "ner"]
    assert cut.custom["label_source"] == {"ner": "people", "endp": "machine:pause"}
    assert "leaves out" not in result.stdout
    result = run(tmp_path / "in.jsonl.gz", tmp_path / "less.jsonl.gz")
    assert f"{tmp_path / 'in.jsonl.gz'}: labelled for ner too, which --tasks leaves out" in result.stdout
