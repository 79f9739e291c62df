"""recipes/train.py with `data.validate=false`: what is wrong with a cut is still one line."""

import gzip

import pytest
from lhotse import CutSet
from toy_runs import assert_one_line, call, read_cuts, toy_options


def wrong(folder, corpus, kind):
    """A manifest whose third cut is wrong -> (path, what the message must name)."""
    cuts = read_cuts(corpus)[:4]
    if kind == "entities":
        cuts[2].supervisions[0].custom["entities"] = [{"start": 0, "end": 10_000, "type": "PER"}]
    elif kind == "text":
        cuts[2].supervisions[0].text = 7
    elif kind == "custom":
        cuts[2].supervisions[0].custom = "none"
    path = folder / "cuts.jsonl"
    CutSet.from_cuts(cuts).to_file(path)
    if kind == "line":
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], lines[2][:100], lines[3]]))
        return path, [f"{path}, line 3: not JSON"]
    if kind == "gzip":
        packed = gzip.compress(path.read_bytes() * 500)
        path = path.with_suffix(".jsonl.gz")
        path.write_bytes(packed[: len(packed) // 2])
        return path, [f"{path}: cannot be read after line"]
    if kind == "custom":  # lhotse itself refuses it
        return path, [f"{path}, line 3: not a lhotse cut"]
    return path, [f"cut {cuts[2].id}: ", "field 'text'" if kind == "text" else "labels that cannot be read"]


@pytest.mark.parametrize("kind", ["entities", "text", "custom", "line", "gzip"])
def test_wrong_cut_is_one_line(train_script, tiny_corpus, tmp_path, kind):
    path, said = wrong(tmp_path, tiny_corpus, kind)
    options = toy_options(tiny_corpus, tmp_path / "exp", data__train=[path], data__valid=[], data__validate="false")
    failure = call(train_script.main, *options)
    lines = [line for line in failure.stderr.splitlines() if not line.startswith("tasks ")]
    assert_one_line(failure._replace(stderr="\n".join(lines) + "\n"), *said)
    assert not (tmp_path / "exp" / "model").exists()
