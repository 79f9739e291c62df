"""Text files that users make: a byte order mark, Unicode spaces, other line ends, numbers that are none."""

import gzip
import json

import pytest
from grid.claims import read_claims
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.conversations import read_tracks
from tokenverse_pp.data.editing.entity_finders import read_gazetteer
from tokenverse_pp.data.editing.split import read_ids
from tokenverse_pp.data.hypotheses import read_hypotheses
from tokenverse_pp.data.manifests import read_cuts, read_rows
from tokenverse_pp.data.samplers import WholeSource
from tokenverse_pp.decoding.context_graph import read_hotwords
from tokenverse_pp.decoding.ngram import read_words
from tokenverse_pp.evaluation.report.page import read_beside
from tokenverse_pp.serving.access import read_token

BOM = b"\xef\xbb\xbf"
HYP = {"id": "a", "text": "oui"}


def with_bom(path, text):
    data = BOM + text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def test_a_byte_order_mark_is_passed_over_everywhere(tmp_path):
    assert read_hypotheses(with_bom(tmp_path / "hyps.jsonl", json.dumps(HYP))) == [HYP]
    assert read_hotwords(with_bom(tmp_path / "hotwords.txt", "Zoé\t2\n")) == (("Zoé", 2.0),)
    assert read_words(with_bom(tmp_path / "fr.tsv.gz", "oui\t3\n")) == {"oui": 3.0}
    assert read_ids(with_bom(tmp_path / "ids", "a\n")) == {"a"}
    assert read_gazetteer(with_bom(tmp_path / "places.tsv", "oui\tLOC\n")).find("oui")
    assert read_token(with_bom(tmp_path / "token", "abc\n")) == "abc"
    claim = {"id": "x", "says": "y", "run": "r", "is": "reaches", "metric": "m", "value": 1}
    [found] = read_claims(with_bom(tmp_path / "claims.yaml", json.dumps({"claims": [claim]})))
    assert found.id == "x"
    with_bom(tmp_path / "failures.jsonl", json.dumps({"id": "b", "reason": "c"}))
    with_bom(tmp_path / "scores.json", json.dumps({"speed": {"x": 1}}))
    assert read_beside(tmp_path / "hyps.jsonl") == ([{"id": "b", "reason": "c"}], {"speed": {"x": 1}})


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.json", "c.json.gz", "c.yaml", "c.yaml.gz"])
def test_manifests_with_a_byte_order_mark(tmp_path, name):
    CutSet.from_cuts([make_cut("a", [{"text": "oui"}])]).to_file(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    with_bom(tmp_path / name, (gzip.decompress(data) if name.endswith(".gz") else data).decode())
    assert [cut.id for cut in read_cuts(tmp_path / name)] == ["a"] == [row.id for row in read_rows(tmp_path / name)]
    if ".jsonl" not in name:
        assert [cut.id for cut in WholeSource(str(tmp_path / name)).cuts] == ["a"]


def test_supervisions_with_a_byte_order_mark(tmp_path):
    recording = {"id": "r", "sources": [], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    recording["channel_ids"] = [0]
    turn = {"id": "t", "recording_id": "r", "start": 0.0, "duration": 1.0, "channel": 0, "text": "oui"}
    turns = with_bom(tmp_path / "turns.jsonl", json.dumps(turn) + "\n")
    [track] = read_tracks(turns, with_bom(tmp_path / "recordings.jsonl.gz", json.dumps(recording) + "\n"))
    assert [turn.text for turn in track.turns] == ["oui"]


def test_unicode_spaces_and_separators_are_part_of_a_line(tmp_path):
    path = tmp_path / "x"
    path.write_text("new\u2028york\u00a0city\nzo\u0308e\t1.5\n", encoding="utf-8")
    assert read_hotwords(path) == ("new\u2028york\u00a0city", ("zo\u0308e", 1.5))
    path.write_text("10\u00a0000\t5\n\u3000x\t1\n", encoding="utf-8")
    assert read_words(path) == {"10\u00a0000": 5.0, "\u3000x": 1.0}
    path.write_text("a\u2009b\tignored\nc d\n", encoding="utf-8")
    assert read_ids(path) == {"a\u2009b", "c"}


@pytest.mark.parametrize("number", ["1_0", "\u0661", "nan", "inf", "1e999", "0x1", "１"])
def test_numbers_are_decimal_numbers(tmp_path, number):
    path = tmp_path / "x.tsv"
    for reader, line in ((read_hotwords, "a\t"), (read_words, "a\t"), (read_gazetteer, "a\tLOC\t")):
        path.write_text(f"{line}1\n{line}{number}\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"x\.tsv, line 2"):
            reader(path)


@pytest.mark.parametrize("line", ["bad\rcell\t1", "bad\0cell\t1", "bad\x1fcell\t1", "bad\u0085cell\t1"])
def test_control_characters_are_named(tmp_path, line):
    path = tmp_path / "x.tsv"
    path.write_bytes(f"fine\t1\n{line}\n".encode())
    for reader in (read_hotwords, read_words, read_gazetteer):
        with pytest.raises(UserError, match=r"x\.tsv(: cannot read \w+: |, )line 2"):
            reader(path)


def test_hypotheses_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "hyps.jsonl"
    for data, said in (
        (b"[" * 100_000, "line 1: JSON nested too deeply"),
        (b'{"id": "a", "text": "b"}\n\xff', "cannot read hypotheses: line 2: not UTF-8"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=said):
            read_hypotheses(path)
