import pytest
from labelled_cuts import make_cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.tasks import EntitySpan, build_tasks, register, render, task_options, transcript_of
from tokenverse_pp.tasks.registry import REGISTRY
from tokenverse_pp.tasks.scd import SpeakerChange

ALL = ["asr", "scd", "endp", "ner", "lid"]
TURNS = [
    {"text": "bonjour amélie", "speaker": "a", "language": "fr", "endpoint": True},
    {"text": "oui", "speaker": "b", "language": "fr", "endpoint": False, "entities": []},
    {"text": "je vous écoute", "speaker": "b", "language": "fr", "endpoint": True, "entities": []},
]
TURNS[0]["entities"] = [{"start": 8, "end": 14, "type": "PER"}]
TASKS = build_tasks(ALL, {"lid": {"languages": ["fr"]}})


def test_all_labels():
    transcript = transcript_of(make_cut("c", TURNS, ALL), TASKS)
    assert transcript.text == "bonjour amélie oui je vous écoute"
    assert transcript.answers == {"scd": (2,), "endp": (2, 6), "ner": (EntitySpan(1, 2, "PER"),), "lid": "fr"}
    assert render(transcript, TASKS) == ("[FR] bonjour [NE] amélie [/NE] [ENDP] [SCD] oui je vous écoute [ENDP]")
    assert transcript.turns == [(0, 2), (2, 6)]
    assert transcript.phrase(transcript.entities[0]) == "amélie"


def test_missing_is_not_empty():
    """Nobody annotated entities, against: somebody did, and found none."""
    turns = [{"text": "oui", "speaker": "a", "entities": []}]
    missing = transcript_of(make_cut("c", turns, ["asr"]), TASKS)
    empty = transcript_of(make_cut("c", turns, ["asr", "ner"]), TASKS)
    assert "ner" not in missing.answers
    assert empty.answers == {"ner": ()}
    assert missing != empty
    assert missing.entities == empty.entities == ()


def test_order_is_that_of_time_not_of_the_list():
    turns = [
        {"text": "zwei", "speaker": "b", "start": 1.5, "entities": [{"start": 0, "end": 4, "type": "NUM"}]},
        {"text": "eins", "speaker": "a", "start": 0.0, "entities": []},
    ]
    transcript = transcript_of(make_cut("c", turns, ["asr", "scd", "ner"]), TASKS)
    assert transcript.text == "eins zwei"
    assert transcript.entities == (EntitySpan(1, 2, "NUM"),)


def test_turn_without_words_changes_no_speaker():
    turns = [{"text": "a", "speaker": "x"}, {"text": "", "speaker": "y"}, {"text": "b", "speaker": "x"}]
    assert transcript_of(make_cut("c", turns, ["asr", "scd"]), TASKS).speaker_changes == ()


def test_only_known_tasks_are_answered():
    transcript = transcript_of(make_cut("c", TURNS, ALL), build_tasks(["scd"]))
    assert transcript.answers == {"scd": (2,)}


def test_typed_entities():
    typed = build_tasks(["ner"], {"ner": {"types": ["PER"]}})
    assert render(transcript_of(make_cut("c", TURNS, ALL), typed), typed).startswith("bonjour [NE:PER] amélie [/NE]")
    other = build_tasks(["ner"], {"ner": {"types": ["NUM"]}})
    assert "[NE" not in render(transcript_of(make_cut("c", TURNS, ALL), other), other)


def test_intervals_of_events():
    turns = [*TURNS[:2], {**TURNS[2], "start": 2.2}]  # the third begins 0.3 s before the second ends
    cut = make_cut("c", turns, ALL, duration=4.0)
    assert TASKS["scd"].intervals(cut) == [(1.0, 1.5)]
    assert TASKS["endp"].intervals(cut) == [pytest.approx((1.0, 1.5)), pytest.approx((3.2, 4.0))]
    overlapping = make_cut("o", [TURNS[0], {**TURNS[1], "start": 0.8}], ALL)
    assert TASKS["scd"].intervals(overlapping) == [pytest.approx((0.8, 1.0))]


def test_registry_builds_the_same_tasks_again():
    tasks = build_tasks(["ner", "lid"], {"lid": {"languages": ["fr", "ne"]}, "ner": {"types": ["NUM"]}})
    assert build_tasks(tasks.names, task_options(tasks)) == tasks
    assert tasks.names == ("asr", "ner", "lid")
    assert tasks.symbols == ("[NE:NUM]", "[/NE]", "[FR]", "[NEP]")
    assert tasks.mask(["lid"]) == [True, False, True]
    assert tasks.subset(["lid"]).names == ("asr", "lid")


def test_unknown_task_is_named():
    with pytest.raises(UserError, match=r"unknown task 'emotion': expected some of asr, scd"):
        build_tasks(["emotion"])


def test_a_task_from_outside_is_one_class(monkeypatch):
    """Its token is not taken for a language, and its labels, text and score are there."""
    from tokenverse_pp.tasks import parse

    for name in list(REGISTRY):
        monkeypatch.setitem(REGISTRY, name, REGISTRY[name])  # so that the registry is put back

    class Laughter(SpeakerChange):
        name = "laughter"
        token = "[HA]"

    monkeypatch.setitem(REGISTRY, "laughter", Laughter)
    assert register(Laughter) is Laughter
    transcript = parse("a [HA] b")
    assert (transcript.answers["laughter"], transcript.language) == ((1,), None)
    cut = make_cut("c", [{"text": "a", "speaker": "x"}, {"text": "b", "speaker": "y"}], ["asr", "laughter"])
    tasks = build_tasks(["laughter"])
    assert render(transcript_of(cut, tasks), tasks) == "a [HA] b"
