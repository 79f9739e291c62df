"""Results of sherpa-onnx as transcripts, without sherpa-onnx and without torch."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.api.formats.text import to_ctm, to_html
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.hypotheses import check_hypothesis
from tokenverse_pp.onnx import from_sherpa
from tokenverse_pp.tasks.result import Transcript, transcript_of_words, words_of_tokens

PIECES = st.sampled_from(["▁a", "▁bé", "c", "▁", "d", "[SCD]", "[ENDP]", "[NE]", "[/NE]", "[FR]", "[PT-BR]"])
RESULT = {
    "text": "[FR] ab[SCD] c",
    "tokens": ["[FR]", " a", "b", "[SCD]", " c"],
    "timestamps": [0.0, 0.2, 0.28, 0.6, 1.0],
}


@given(st.lists(st.tuples(PIECES, st.integers(0, 9), st.floats(-9, 0))), st.floats(0, 100), st.booleans())
def test_sherpa_results_are_read_as_our_own(written, start, has_probabilities):
    frames = [sum(gap for _, gap, _ in written[: i + 1]) for i in range(len(written))]
    pieces, log_probs = [piece for piece, _, _ in written], [log_prob for _, _, log_prob in written]
    start = round(start / 0.04) * 0.04
    result = {
        "tokens": [p.replace("▁", " ") for p in pieces],
        "timestamps": [0.04 * f for f in frames],
        "start_time": start,
    }
    if has_probabilities:
        result["ys_probs"] = log_probs
    shifted = [frame + round(start / 0.04) for frame in frames]
    words = [word.rounded() for word in words_of_tokens(pieces, shifted, log_probs, 0.04)]
    tasks, duration = ("asr", "scd", "endp", "ner", "lid"), max((word.end for word in words), default=0.0)
    expected = transcript_of_words(words, tasks, duration, "call")
    for form in (result, json.dumps(result), SimpleNamespace(**result)):
        heard = from_sherpa(form, name="call")
        for part in ("tasks", "raw", "text", "turns", "endpoints", "language", "duration"):
            assert getattr(heard, part) == getattr(expected, part)
        assert (heard == expected) == (has_probabilities or not expected.written)


def test_sherpa_gives_no_confidences_and_none_are_made_up():
    heard = from_sherpa(RESULT, duration=1.2)
    assert (heard.text, heard.language, heard.confidence) == ("ab c", "fr", None)
    assert [(turn.text, turn.start) for turn in heard.turns] == [("ab", 0.2), ("c", 1.0)]
    assert Transcript.from_json(heard.to_json()) == heard
    record = heard.to_record()  # a line of hyps.jsonl, which score and report read
    assert check_hypothesis(record) == "" and Transcript.from_record(record).words == heard.words
    assert to_ctm(heard) == "audio 1 0.200 0.120 ab\naudio 1 1.000 0.040 c\n"
    assert "confidence" not in to_html(heard) and "confidence 0.50" in to_html(
        from_sherpa({**RESULT, "ys_probs": [-0.6931472] * 5})
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "[1]",
        "{",
        {},
        5,
        {**RESULT, "timestamps": [0.0]},
        {**RESULT, "tokens": [1] * 5},
        {**RESULT, "start_time": "now"},
    ],
)
def test_sherpa_results_that_are_none(wrong):
    with pytest.raises(UserError, match="result of sherpa-onnx"):
        from_sherpa(wrong)


def test_sherpa_results_name_the_tasks_of_their_set(tmp_path):
    described = {
        "format": 1,
        "sherpa": {"form": "ctc", "sets": {"a": ["asr"], "b": ["asr", "scd"]}},
        "files": {"a": {}, "b": {}},
    }
    described.update({"tasks": ["asr", "scd", "lid"], "task_options": {"lid": {"languages": ["fr"]}}, "input": "audio"})
    numbers = ("vocab_size", "blank", "context_size", "joiner_dim", "min_samples")
    described.update({"tokenverse_pp": "0.1.0", "symbols": ["[SCD]", "[FR]"], "max_samples": None})
    described.update({"frame_shift": 0.02, "normalise": True, "vectors": {}, "precision": "float32"})
    described.update(dict.fromkeys(numbers, 1))
    (tmp_path / "export.json").write_text(json.dumps(described))
    heard = from_sherpa(RESULT, tmp_path, ["scd"])
    assert (heard.tasks, heard.raw, heard.words[-1].end) == (("asr", "scd"), "ab [SCD] c", 1.02)
    assert from_sherpa(RESULT, tmp_path, ["asr"]).raw == "ab c"
    with pytest.raises(UserError, match="say which was decoded: tasks=asr or asr,scd"):
        from_sherpa(RESULT, tmp_path)
    with pytest.raises(UserError, match="has no set of the tasks lid, but asr; asr, scd"):
        from_sherpa(RESULT, tmp_path, ["lid"])
    with pytest.raises(UserError, match="no exported model"):
        from_sherpa(RESULT, tmp_path / "elsewhere")


def test_sherpa_results_are_read_without_torch():
    code = (
        "import sys; from tokenverse_pp.onnx import from_sherpa; print(from_sherpa(sys.argv[1]).to_json());"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(RESULT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, modules = done.stdout.splitlines()
    assert json.loads(found)["language"] == "fr"
    assert not {"torch", "lhotse", "transformers", "click", "yaml", "sherpa_onnx", "onnxruntime"} & {*modules.split()}
