import json

import pytest
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.data.editing.stats import first_problems, manifest_problems
from tokenverse_pp.data.labels import PlainCut, check_cut, is_plain, labelled_cut
from tokenverse_pp.data.manifests import read_rows, row_bytes

GOOD = {"text": "bon jour", "speaker": "a", "language": "fr", "endpoint": True, "entities": []}
ALL = ["asr", "scd", "endp", "ner", "lid"]


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
    assert list(first_problems(tmp_path / "no.jsonl", 1)) == [
        f"{tmp_path}/no.jsonl: no such file; expected a cut manifest"
    ]
    path = write(tmp_path / "empty.jsonl")
    assert list(first_problems(path, 1)) == [f"{path}: expected cuts, found none"]
    whole = tmp_path / "c.jsonl.gz"
    CutSet.from_cuts([make_cut(f"c{i}", [GOOD], ALL) for i in range(300)]).to_file(whole)
    whole.write_bytes(whole.read_bytes()[:-40])
    [problem] = first_problems(whole, 5)
    assert "cannot be read after line" in problem


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
    CutSet.from_cuts([make_cut("c", [{**GOOD, "text": "[x"}], ALL)]).to_file(path)
    [problem] = manifest_problems(path)
    assert problem.startswith(f"{path}, cut number 1: cut c: supervision 0, field 'text'")
