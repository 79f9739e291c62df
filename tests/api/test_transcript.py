"""Transcripts hold what `tasks.parse` reads in the same tokens, and come back from JSON as they were."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spoken import TASKS, spoken, transcripts

from tokenverse_pp import Transcript
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.tasks import build_tasks, parse
from tokenverse_pp.tasks.result import Word, transcript_of_words


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
    from dataclasses import dataclass

    from tokenverse_pp.tasks.base import RANK_END, PositionTask, TaskSet

    @dataclass(frozen=True)
    class Laughter(PositionTask):
        name = "laugh"
        token = "[HAHA]"
        rank = RANK_END

        def stands_at(self, position, num_words):
            return position > 0

        def check(self, cut):
            return []

        def from_cut(self, cut):
            return ()

        def intervals(self, cut):
            return []

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
    import tokenverse_pp

    with pytest.raises(AttributeError, match="no attribute 'Tokenverse'"):
        _ = tokenverse_pp.Tokenverse
