"""A row of a corpus' transcripts that cannot be read is listed, and the others become cuts."""

import gzip
import json
from pathlib import Path

import pytest
from mini_corpora import make_commonvoice, make_librispeech, make_mls, make_voxpopuli
from mini_runs import cuts_of, run

from tokenverse_pp.data.corpora.common import Form, check_table


def lines_of(path):
    data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    return data.rstrip(b"\n").split(b"\n")


def rewrite(path, lines):
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


CASES = [
    ("mls", make_mls, "mls_german/train/transcripts.txt", "train_de", 1, b"\t"),
    ("librispeech", make_librispeech, "train-clean-100/19/198/19-198.trans.txt", "train_clean_100", 1, b" "),
    ("voxpopuli", make_voxpopuli, "asr_en.tsv.gz", "train_en", 3, b"|"),
    ("commonvoice", make_commonvoice, "fr/train.tsv", "train_fr", 2, b"\t"),
]


@pytest.mark.parametrize(("name", "make", "file", "part", "at", "delimiter"), CASES)
def test_a_broken_row_costs_no_other(tmp_path, threads_for_commonvoice, name, make, file, part, at, delimiter):
    corpus = make(tmp_path / "corpus")
    result = run("manifest", "prepare", name, corpus, tmp_path / "whole")
    assert result.exit_code == 0, result.output
    path = corpus / file
    lines = lines_of(path)
    lines[at] = lines[at][:-3] + b"\r" + lines[at][-3:]
    # White space of Unicode within a text is none of the recipe's line ends; a byte order mark is no column's name.
    lines[at + 1] = lines[at + 1].replace(b"e ", "e\u2028".encode())
    lines[0] = b"\xef\xbb\xbf" + lines[0]
    rewrite(path, lines)
    result = run("manifest", "prepare", name, corpus, tmp_path / "out")
    assert result.exit_code == 0, result.output
    left_out = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text("utf-8").splitlines()]
    named = {"part": part, "id": f"{path}, line {at + 1}", "seconds": 0.0}
    assert [item for item in left_out if "line" in item["id"]] == [
        {**named, "reason": "holds a carriage return (U+000D)"}
    ]
    before = [cut.supervisions[0].text for cut in cuts_of(tmp_path / "whole", part)]
    after = [cut.supervisions[0].text for cut in cuts_of(tmp_path / "out", part)]
    assert len(after) == len(before) - 1 and set(after) < set(before)
    for cut in cuts_of(tmp_path / "out", part):
        assert Path(cut.recording.sources[0].source).is_file()


def test_what_is_wrong_with_a_row(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes(b'a|start\nx|1\nx\nx|1|2\n\nx|1_0\n"x|1\n"x""y"|2\n' + b"\xff|1\n" + b"x\0|1\n")
    table = check_table(path, Form(delimiter="|", quoting=True, numbers=("start",)))
    assert table.bad == {
        3: "expected 2 cells, found 1",
        4: "expected 2 cells, found 3",
        6: "column start: expected a number, found '1_0'",
        7: "broken quoting",
        9: "not UTF-8",
        10: "holds a NUL byte (U+0000)",
    }
    table.write(tmp_path / "clean.tsv")
    assert (tmp_path / "clean.tsv").read_text() == 'a|start\nx|1\n\n"x""y"|2\n'
