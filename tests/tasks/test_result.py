"""From pieces to words, marks and transcripts; transcripts as JSON and as lines of hyps.jsonl."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spoken import TASKS, spoken, transcripts

import tokenverse_pp
from tokenverse_pp import Transcript
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.tasks import build_tasks, parse
from tokenverse_pp.tasks.base import RANK_END, PositionTask, TaskSet
from tokenverse_pp.tasks.result import transcript_of_words
from tokenverse_pp.tasks.transcript import Word, split_marks, word_spans

TOKENS = ["[FR]", "[SCD]", "[/NE]"]
pieces_of_words = st.lists(st.text("abé", min_size=1, max_size=5) | st.sampled_from(TOKENS), max_size=8)


@given(pieces_of_words, st.data())
def test_pieces_join_to_the_words_however_they_are_cut(words, data):
    pieces, spans = [], []
    for word in words:
        at = data.draw(st.integers(0, len(word)))  # 0: the space sign stands alone
        parts = [word] if word in TOKENS else [part for part in ("▁" + word[:at], word[at:]) if part]
        spans.append((word, len(pieces), len(pieces) + len(parts)))
        pieces += parts
    assert word_spans(pieces) == spans


@pytest.mark.parametrize(
    ("pieces", "spans"),
    [
        (["▁", "[SCD]", "▁"], [("[SCD]", 1, 3)]),  # a space sign alone is no word
        (["[FR]", "ou", "i", "[SCD]", "non"], [("[FR]", 0, 1), ("oui", 1, 3), ("[SCD]", 3, 4), ("non", 4, 5)]),
    ],
)
def test_odd_pieces(pieces, spans):
    assert word_spans(pieces) == spans


def test_marks_carry_positions_and_times():
    plain, marks = split_marks(["[FR]", "a", "[ENDP]", "[SCD]", "b"], [0.0, 0.1, 0.2, 0.3, 0.4])
    assert plain == ("a", "b")
    assert [(m.position, m.token, m.time) for m in marks] == [(0, "[FR]", 0.0), (1, "[ENDP]", 0.2), (1, "[SCD]", 0.3)]


FOUND = Hypothesis(
    tokens=(3, 10, 11, 5, 12),
    frames=(0, 4, 6, 7, 20),
    log_probs=(0.0, math.log(0.5), math.log(0.125), -0.1, -1.0),
    log_prob=-9.0,
    score=-9.0 / 7,
)
PIECES = ["[FR]", "▁bon", "jour", "[ENDP]", "▁oui"]


def test_words_have_times_and_confidences():
    words = FOUND.words(PIECES, frame_shift=0.02)
    assert [w.text for w in words] == ["[FR]", "bonjour", "[ENDP]", "oui"]
    assert [w.is_task_token for w in words] == [True, False, True, False]
    assert [w.start for w in words] == pytest.approx([0, 0.08, 0.14, 0.4])
    assert [w.end for w in words] == pytest.approx([0.02, 0.14, 0.16, 0.42])
    assert [w.confidence for w in words] == pytest.approx([1, 0.25, math.exp(-0.1), math.exp(-1)])
    assert FOUND.times(0.02) == pytest.approx([0, 0.08, 0.12, 0.14, 0.4])


def test_words_never_overlap_and_a_lone_space_sign_is_no_word():
    words = FOUND.words(["[FR]", "▁", "[ENDP]", "▁a", "▁"], frame_shift=1.0)
    assert [w.text for w in words] == ["[FR]", "[ENDP]", "a"]
    assert all(a.end <= b.start for a, b in zip(words, words[1:]))


def test_pieces_must_be_those_of_the_tokens():
    assert Hypothesis((), (), (), -1.0, -0.5).words([], 0.02) == []
    with pytest.raises(ValueError, match="5 tokens, but 1 pieces"):
        FOUND.words(["▁a"], 0.02)


@given(spoken(), st.sets(st.sampled_from(TASKS.names)))
def test_it_says_what_parse_says(words, names):
    active = TASKS.subset(sorted(names))
    heard = transcript_of_words(words, active.names, 1e6, tasks=TASKS)
    raw = " ".join(word.text for word in words)
    expected = parse(raw, active)
    assert heard.raw == raw and heard.text == str(heard)
    assert heard.text.split() == [word for word in raw.split() if not word.startswith("[")]
    assert heard.language == expected.language
    assert [(turn.first, turn.stop) for turn in heard.turns] == (expected.turns if "scd" in active else [])
    assert [(e.first, e.stop, e.type) for e in heard.entities] == [(e.start, e.end, e.type) for e in expected.entities]
    assert [e.text for e in heard.entities] == [expected.phrase(e) for e in expected.entities]
    assert len(heard.endpoints) == len(expected.endpoints)
    times = {(m.text, m.time) for m in heard.marks}
    assert all(("[ENDP]", time) in times for time in heard.endpoints)


@given(transcripts())
def test_json_round_trip(heard):
    data = heard.to_dict()
    assert Transcript.from_json(heard.to_json()) == heard
    assert Transcript.from_dict(json.loads(heard.to_json(indent=1))) == heard
    for task, key in (("scd", "turns"), ("ner", "entities"), ("endp", "endpoints"), ("lid", "language")):
        assert (key in data) == (task in heard.tasks)


def test_times_stay_within_the_audio():
    words = [Word("a", 0.96, 1.0, 0.5), Word("b", 1.0, 1.04, 0.5)]
    heard = transcript_of_words(words, ["asr"], 0.99)
    assert [(word.start, word.end) for word in heard.words] == [(0.96, 0.99), (0.99, 0.99)]


def test_the_confidence_of_an_entity_is_that_of_its_tokens():
    said = [("[NE]", 0.2), ("x", 0.9), ("[NE]", 0.8), ("a", 0.1), ("b", 0.3), ("[/NE]", 0.6), ("c", 0.9)]
    words = [Word(text, float(i), i + 0.5, confidence) for i, (text, confidence) in enumerate(said)]
    (entity,) = transcript_of_words(words, ["asr", "ner"], 10.0).entities
    assert (entity.text, entity.confidence, entity.start, entity.end) == ("a b", 0.6, 3.0, 4.5)


def test_an_outside_task_speaks_for_itself():
    """What `Transcript` has no field for is what the task's own ``record`` says."""

    @dataclass(frozen=True)
    class Laughter(PositionTask):
        name = "laugh"
        token = "[HAHA]"
        rank = RANK_END

        check = from_cut = intervals = lambda self, cut: ()

        def stands_at(self, position, num_words):
            return position > 0

    tasks = TaskSet((*build_tasks(["asr"]).tasks, Laughter()))
    words = [Word("a", 0.0, 0.1, 0.5), Word("[HAHA]", 0.5, 0.6, 0.7)]
    heard = transcript_of_words(words, tasks.names, 1.0, tasks=tasks)
    assert heard.others == {"laugh": [{"token": "[HAHA]", "time": 0.5}]}
    assert Transcript.from_json(heard.to_json()) == heard


BAD = [
    ([], "expected an object"),
    ({}, "'name'"),
    ({"name": "a", "duration": "long", "tasks": ["asr"], "words": []}, "'duration'"),
    ({"name": "a", "duration": 1, "tasks": "asr", "words": []}, "'tasks'"),
    ({"name": "a", "duration": 1, "tasks": [1], "words": []}, "'tasks'"),
    ({"name": "a", "duration": 1, "tasks": ["asr"], "words": [{"text": "a"}]}, "'words.start'"),
    ({"name": "a", "duration": 1, "tasks": ["asr"], "words": ["a"]}, "'words'"),
    ({"name": "a", "duration": float("nan"), "tasks": ["asr"], "words": []}, "'duration'"),
    ({"name": "a", "duration": 1, "tasks": ["asr", "endp"], "words": [], "marks": []}, "'endpoints'"),
    (
        {
            "name": "a",
            "duration": 1,
            "tasks": ["asr"],
            "words": [],
            "marks": [{"text": "[SCD]", "position": 1, "time": 0, "confidence": 1}],
        },
        "'marks'",
    ),
]


@pytest.mark.parametrize(("data", "said"), BAD)
def test_what_is_no_transcript_is_refused_by_name(data, said):
    with pytest.raises(UserError, match=said):
        Transcript.from_dict(data)


def test_text_that_is_no_json_is_refused():
    with pytest.raises(UserError, match="not JSON"):
        Transcript.from_json("{")


def test_the_package_and_its_formats_import_neither_torch_nor_lhotse():
    code = (
        "import sys, tokenverse_pp; from tokenverse_pp import Transcript\n"
        "from tokenverse_pp.api.formats import render; render(Transcript(), 'srt')\n"
        "assert tokenverse_pp.__version__ and 'TokenVerse' in dir(tokenverse_pp)\n"
        "assert not {'torch', 'lhotse', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_attribute_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Tokenverse'"):
        _ = tokenverse_pp.Tokenverse


MODEL = build_tasks(["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["fr", "nl"]}})
SHIFT = 0.04


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["bonjour amélie oui je vous écoute"] * 2, MODEL, 30)


def record(tokenizer, text, tasks=MODEL, frames=None):
    ids = tokenizer.encode(text)
    frames = tuple(range(0, 2 * len(ids), 2)) if frames is None else frames
    log_probs = [-0.1] * len(ids)
    record = tasks.reader.read_tokens(
        tokenizer.pieces(ids), frames, log_probs, SHIFT, None, -0.5, 1.0, "c1"
    ).to_record()
    assert Transcript.from_record(record, MODEL).to_record() == record
    return record


def test_all_tasks(tokenizer):
    text = "[FR] bonjour [NE] amélie [/NE] [ENDP] [SCD] oui je vous [ENDP]"
    found = record(tokenizer, text)
    assert json.loads(json.dumps(found)) == found
    assert (found["id"], found["text"], found["score"], found["language"]) == ("c1", text, -0.5, "fr")
    assert found["tasks"] == list(MODEL.names)
    assert found["tokens"] == tokenizer.pieces(tokenizer.encode(text))
    assert found["times"] == [round(2 * SHIFT * i, 3) for i in range(len(found["tokens"]))]
    at = {token: found["times"][found["tokens"].index(token)] for token in ("[NE]", "[/NE]", "[SCD]", "[ENDP]")}
    assert found["speaker_changes"] == [at["[SCD]"]]
    assert found["endpoints"] == [at["[ENDP]"], found["times"][-1]]
    assert [turn["text"] for turn in found["turns"]] == ["bonjour amélie", "oui je vous"]
    (entity,) = found["entities"]
    assert entity["text"] == "amélie" and entity["type"] is None
    assert at["[NE]"] < entity["start"] < entity["end"] <= at["[/NE]"]
    first, second = found["turns"]
    assert first["start"] < first["end"] <= at["[SCD]"] < second["start"] < second["end"]
    assert [word["text"] for word in found["words"]] == text.split()
    assert all(0 <= word["confidence"] <= 1 and word["start"] < word["end"] for word in found["words"])


@pytest.mark.parametrize("names", [[], ["scd"], ["lid", "ner"], ["endp"]])
def test_task_that_was_not_decoded_has_no_key(tokenizer, names):
    found = record(tokenizer, "bonjour oui", MODEL.subset(names))
    keys = {"scd": {"turns", "speaker_changes"}, "endp": {"endpoints"}, "ner": {"entities"}, "lid": {"language"}}
    assert set(found) - {"id", "text", "tokens", "times", "words", "score", "tasks"} == {
        key for name in names for key in keys[name]
    }
    # Decoded and nothing found is empty, not absent.
    assert all(not found[key] for key in ("speaker_changes", "endpoints", "entities", "language") if key in found)


@pytest.mark.parametrize(
    "text", ["", "[NE] oui", "[/NE] oui", "[SCD] oui", "[FR] [NL] oui", "[ENDP]", "oui [SCD] [SCD]"]
)
def test_malformed_output_is_no_error(tokenizer, text):
    found = record(tokenizer, text)
    assert found["text"] == text and len(found["times"]) == len(found["tokens"])
