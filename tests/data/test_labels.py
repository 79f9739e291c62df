"""The label schema on cuts and on rows, and the validation of manifests."""

import json

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import check_audio
from tokenverse_pp.data.editing.stats import first_problems, manifest_problems
from tokenverse_pp.data.labels import (
    PlainCut,
    check_cut,
    find_problems,
    is_plain,
    labelled_cut,
    labelled_tasks,
    validate_cuts,
)
from tokenverse_pp.data.manifests import read_rows, row_bytes
from tokenverse_pp.tasks import build_tasks

ALL = ["asr", "scd", "endp", "ner", "lid"]
GOOD = {"text": "bon jour", "speaker": "a", "language": "fr", "endpoint": True, "entities": []}


def problems_with(tasks=ALL, **fields):
    return check_cut(make_cut("c", [{**GOOD, **fields}], tasks))


def test_valid_cuts_have_no_problem():
    assert problems_with() == []
    assert problems_with(entities=[{"start": 4, "end": 8, "type": "X"}, {"start": 0, "end": 3, "type": "X"}]) == []
    assert check_cut(make_cut("c", [{"text": "only words"}], ["asr"])) == []
    two_at_once = [{**GOOD}, {**GOOD, "start": 0.5, "speaker": "b"}]
    assert check_cut(make_cut("c", two_at_once, ALL)) == []


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"text": 3}, "text", "expected a string, found 3"),
        ({"text": ""}, "text", "found nothing"),
        ({"text": "a  b"}, "text", "single spaces"),
        ({"text": "a [SCD] b"}, "text", "brackets"),
        ({"text": "▁a b▁c"}, "text", "space sign"),
        ({"speaker": None}, "speaker", "expected a name"),
        ({"speaker": ["a"]}, "speaker", "expected a string"),
        ({"language": "French"}, "language", "'French'"),
        ({"language": None}, "language", "None"),
        ({"endpoint": "yes"}, "custom.endpoint", "'yes'"),
        ({"endpoint": 1}, "custom.endpoint", "true or false"),
        ({"entities": {"a": 1}}, "custom.entities", "expected a list"),
        ({"entities": None}, "custom.entities", "None"),
        ({"entities": ["bon"]}, "custom.entities", "'bon'"),
        ({"entities": [{"start": 0}]}, "custom.entities", "{'start': 0}"),
        ({"entities": [{"start": 0, "end": "3", "type": "X"}]}, "custom.entities", "'3'"),
        ({"entities": [{"start": 0, "end": True, "type": "X"}]}, "custom.entities", "True"),
        ({"entities": [{"start": 0, "end": 3, "type": 7}]}, "custom.entities", "7"),
        ({"entities": [{"start": 1, "end": 3, "type": "X"}]}, "custom.entities", "word boundaries"),
        ({"entities": [{"start": 0, "end": 8}, {"start": 4, "end": 8}]}, "custom.entities", "overlaps"),
        ({"start": "0"}, "start", "expected seconds, found '0'"),
        ({"duration": float("nan")}, "duration", "expected seconds"),
        ({"duration": 0.0}, "duration", "> 0"),
        ({"start": -1.0}, "start", "not inside its cut"),
        ({"duration": 9.0}, "start", "not inside its cut of 1.500 s"),
        ({"custom": {"x": 1}, "text": None}, "text", "found nothing"),
    ],
)
def test_each_problem_names_its_field(fields, field, said):
    [problem] = problems_with(**fields)
    assert problem.startswith(f"supervision 0, field '{field}'")
    assert said in problem


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (None, "found nothing"),
        ("asr", "found 'asr'"),
        ({"asr": True}, "expected a list"),
        ([], "expected 'asr' among them"),
        (["asr", "lib"], "unknown task 'lib', expected some of asr, scd, endp, ner, lid"),
        (["asr", ["lid"]], "unknown task ['lid']"),
        (["lid"], "expected 'asr' among them"),
        (["asr", "lid", "lid"], "listed twice"),
    ],
)
def test_list_of_tasks(tasks, said):
    cut = make_cut("c", [GOOD], None)
    if tasks is not None:
        cut.custom["tasks"] = tasks
    [problem] = check_cut(cut)
    assert problem.startswith("field 'custom.tasks'") and said in problem
    with pytest.raises(UserError, match=r"cut c: field 'custom\.tasks'"):
        labelled_tasks(cut)


def test_turns_in_time_order_and_one_at_a_time_for_a_speaker():
    def said_of(*turns):
        return check_cut(make_cut("c", [{**GOOD, **turn} for turn in turns], ALL, duration=9.0))

    [problem] = said_of({"start": 2.0}, {"start": 0.0, "speaker": "b"})
    assert "time order" in problem
    [problem] = said_of({"start": 0.0, "duration": 5.0}, {"start": 1.0, "speaker": "b"}, {"start": 3.0})
    assert problem.startswith("supervision 2") and "still in an earlier turn" in problem
    assert check_cut(make_cut("c", [], ALL, duration=1.0)) == [
        "field 'supervisions': expected at least one turn, found none"
    ]
    [problem] = said_of({}, {"language": "nl"})
    assert "one cut, one language; found fr, nl" in problem


def test_only_listed_tasks_are_checked():
    assert problems_with(["asr"], speaker=None, language=None, endpoint="?", entities=3) == []


def test_options_of_a_model_narrow_what_is_allowed():
    cut = make_cut("c", [{**GOOD, "entities": [{"start": 0, "end": 3, "type": "PER"}]}], ALL)
    assert check_cut(cut, build_tasks(ALL, {"lid": {"languages": ["fr"]}, "ner": {"types": ["PER"]}})) == []
    problems = check_cut(cut, build_tasks(ALL, {"lid": {"languages": ["nl"]}, "ner": {"types": ["NUM"]}}))
    assert [("type 'PER'" in p, "'fr' is not one of nl" in p) for p in problems] == [(True, False), (False, True)]


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["start", "end", "type", "a"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=400)
@given(
    st.dictionaries(st.sampled_from(["text", "speaker", "language", "start", "duration", "custom"]), junk), st.data()
)
def test_wrong_types_anywhere_never_fail(fields, data):
    if "custom" not in fields:
        fields["custom"] = {"endpoint": data.draw(junk), "entities": data.draw(junk)}
    values = {"start": 0.0, "duration": 1.0, "text": "a b", "speaker": "s", "language": "fr", **fields}
    supervision = SupervisionSegment("s", "r", **values)
    for custom in (data.draw(junk), {"tasks": data.draw(junk)}, {"tasks": ALL}):
        cut = MonoCut("c", 0.0, 2.0, 0, supervisions=[supervision], custom=custom)
        assert all(isinstance(problem, str) for problem in check_cut(cut))


def test_message_names_file_cut_and_field(tmp_path):
    bad = make_cut("bad", [{**GOOD, "endpoint": "yes"}], ALL)
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([make_cut("good", [GOOD], ALL), bad, make_cut("worse", [{}], ALL)]).to_file(path)
    with pytest.raises(UserError) as caught:
        validate_cuts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: cut bad: supervision 0, field 'custom.endpoint'")
    assert message.endswith("(and 5 more)") and "\n" not in message


def test_ids_that_occur_twice():
    cuts = [make_cut("a", [GOOD]), make_cut("b", [GOOD]), make_cut("a", [GOOD])]
    assert list(find_problems(cuts)) == [("a", "field 'id': another cut has it already")]
    with pytest.raises(UserError, match=r"^cut a: field 'id'"):
        validate_cuts(CutSet.from_cuts(cuts))


def test_audio_that_is_missing(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(24000), 16000)
    cut = make_cut("c", [GOOD], ALL)
    cut.recording = Recording.from_file(path)
    assert check_audio(cut) == []
    path.unlink()
    assert check_audio(cut) == [f"field 'recording': {path}: no such file"]
    assert list(find_problems([cut])) == []
    assert check_audio(make_cut("c", [GOOD], ALL)) == ["field 'recording': expected a recording, found none"]


def write(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else row_bytes(line.to_dict()) for line in lines))
    return path


def test_every_problem_has_its_line(tmp_path):
    good, bad = make_cut("good", [GOOD], ALL), make_cut("bad", [{**GOOD, "text": "[SCD]", "speaker": None}], ALL)
    lines = [good, b"\n", b"{oops\n", b"[]\n", b"\xff\n", bad, good, b'{"type": "MonoCut", "id": 3}\n']
    path = write(tmp_path / "c.jsonl", *lines)
    problems = [problem[len(f"{path}, line ") :] for problem in manifest_problems(path)]
    assert [problem.split(":")[0] for problem in problems] == ["3", "4", "5", "6", "6", "7", "8"]
    for problem, said in zip(problems, ("not JSON", "expected a cut", "not UTF-8", "field 'text'", "field 'speaker'")):
        assert said in problem
    assert "cut good: field 'id': another cut has it already" in problems[5] and "field 'id'" in problems[6]
    assert list(first_problems(path, 2)) == [f"{path}, line {problems[0]}", f"{path}, line {problems[1]} (and 5 more)"]
    assert len(list(first_problems(path, 99))) == 7


def test_files_that_cannot_be_read(tmp_path):
    missing, other, path = tmp_path / "no.jsonl", tmp_path / "cuts.txt", write(tmp_path / "empty.jsonl")
    assert list(first_problems(missing, 1)) == [f"{missing}: no such file; expected a cut manifest"]
    assert list(first_problems(path, 1)) == [f"{path}: expected cuts, found none"]
    for name, said in ((missing, "no such file"), (other, r"expected a cut manifest \(.jsonl")):
        with pytest.raises(UserError, match=said):
            validate_cuts(name)
    torn = tmp_path / "c.jsonl.gz"
    CutSet.from_cuts([make_cut(f"c{i}", [GOOD], ALL) for i in range(300)]).to_file(torn)
    torn.write_bytes(torn.read_bytes()[:-40])
    [problem] = first_problems(torn, 5)
    assert "cannot be read after line" in problem
    with pytest.raises(UserError, match=r"cannot be read|not JSON"):
        validate_cuts(torn)


def strange_rows():
    """Rows that lhotse refuses or reads otherwise than as they stand."""
    data = make_cut("c", [GOOD], ALL).to_dict()
    source = {"type": "file", "channels": [0], "source": "a.wav"}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 24000, "duration": 1.5}
    supervision = data["supervisions"][0]
    yield {**data, "surprise": 1}
    yield {key: value for key, value in data.items() if key != "start"}
    yield {**data, "supervisions": {"a": 1}}
    yield {**data, "supervisions": [{**supervision, "surprise": 1}]}
    yield {**data, "supervisions": [{**supervision, "custom": [1]}]}
    yield {**data, "supervisions": ["no"]}
    yield {**data, "custom": {**data["custom"], "recording2": {"id": "r", "sources": 3, "sampling_rate": 1}}}
    yield {**data, "recording": "a.wav"}
    yield {**data, "recording": {**recording, "sources": [{}]}}
    yield {**data, "recording": {**recording, "sources": [3], "channel_ids": [0]}}
    yield {**data, "recording": {**recording, "sources": [{**source, "channels": None}]}}
    yield {**data, "type": "MultiCut", "recording": {**recording, "transforms": 3}}
    yield {**data, "type": "NoCut"}


@pytest.mark.parametrize("data", strange_rows())
def test_strange_rows_go_through_lhotse(tmp_path, data):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(data) + "\n")
    [row] = read_rows(path)
    assert not is_plain(row.data)
    [problem] = manifest_problems(path)
    assert "line 1: not a lhotse cut" in problem
    with pytest.raises(UserError, match="line 1: not a lhotse cut"):
        validate_cuts(path)


def test_plain_rows_say_what_lhotse_says(tmp_path):
    """The short way and lhotse's own find the same problems."""
    turns = [GOOD, {**GOOD, "start": 0.5, "speaker": "b"}]
    cuts = [make_cut("a", turns, ALL), make_cut("b", [{**turns[1], **{"language": "nl"}}, turns[0]], ALL)]
    cuts.append(make_cut("c", [{**GOOD, "duration": 9.0, "entities": [{"start": 1, "end": 2}]}], ALL))
    CutSet.from_cuts(cuts).to_file(tmp_path / "c.jsonl")
    for row, cut in zip(read_rows(tmp_path / "c.jsonl"), cuts):
        plain = labelled_cut(row)
        assert isinstance(plain, PlainCut) and check_cut(plain) == check_cut(cut)


def test_whole_files(tmp_path):
    path = tmp_path / "c.json"
    CutSet.from_cuts([make_cut("good", [GOOD], ALL)]).to_file(path)
    validate_cuts(path)
    CutSet.from_cuts([make_cut("c", [{**GOOD, "text": "[x"}], ALL)]).to_file(path)
    [problem] = manifest_problems(path)
    assert problem.startswith(f"{path}, cut number 1: cut c: supervision 0, field 'text'")
    path.write_text("nonsense")
    with pytest.raises(UserError, match="not a lhotse manifest"):
        validate_cuts(path)
