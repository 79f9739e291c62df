"""One line of hyps.jsonl: what each task said, where and when; nothing for a task that was not decoded."""

import json

import pytest

from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.result import Transcript

TASKS = build_tasks(["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["fr", "nl"]}})
SHIFT = 0.04


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["bonjour amélie oui je vous écoute"] * 2, TASKS, 30)


def record(tokenizer, text, tasks=TASKS, frames=None):
    ids = tokenizer.encode(text)
    frames = tuple(range(0, 2 * len(ids), 2)) if frames is None else frames
    log_probs = [-0.1] * len(ids)
    record = tasks.reader.read_tokens(
        tokenizer.pieces(ids), frames, log_probs, SHIFT, None, -0.5, 1.0, "c1"
    ).to_record()
    assert Transcript.from_record(record, TASKS).to_record() == record
    return record


def test_all_tasks(tokenizer):
    text = "[FR] bonjour [NE] amélie [/NE] [ENDP] [SCD] oui je vous [ENDP]"
    found = record(tokenizer, text)
    assert json.loads(json.dumps(found)) == found
    assert (found["id"], found["text"], found["score"], found["language"]) == ("c1", text, -0.5, "fr")
    assert found["tasks"] == list(TASKS.names)
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
    found = record(tokenizer, "bonjour oui", TASKS.subset(names))
    keys = {"scd": {"turns", "speaker_changes"}, "endp": {"endpoints"}, "ner": {"entities"}, "lid": {"language"}}
    assert set(found) - {"id", "text", "tokens", "times", "words", "score", "tasks"} == {
        key for name in names for key in keys[name]
    }
    # Decoded and nothing found is empty, not absent.
    assert all(not found[key] for key in ("speaker_changes", "endpoints", "entities", "language") if key in found)


def test_nothing_said(tokenizer):
    found = record(tokenizer, "")
    assert (found["text"], found["tokens"], found["times"], found["turns"]) == ("", [], [], [])


@pytest.mark.parametrize("text", ["[NE] oui", "[/NE] oui", "[SCD] oui", "[FR] [NL] oui", "[ENDP]", "oui [SCD] [SCD]"])
def test_malformed_output_is_no_error(tokenizer, text):
    found = record(tokenizer, text)
    assert found["text"] == text and len(found["times"]) == len(found["tokens"])
