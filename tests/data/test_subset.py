import json

import pytest
from command_lines import run
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.split import Wanted, write_subset
from tokenverse_pp.data.labels import validate_cuts


@pytest.fixture
def manifest(tmp_path):
    """40 cuts of 36 s; every second is French, every fourth labelled for entities, the first ten are of corpus a."""
    cuts = []
    for i in range(40):
        turn = {"text": "oui", "language": "fr" if i % 2 == 0 else "nl", "entities": []}
        tasks = ["asr", "lid", "ner"] if i % 4 == 0 else ["asr"]
        cuts.append(make_cut(f"c{i:02}", [turn], tasks, 36.0, corpus="a" if i < 10 else "b"))
    CutSet.from_cuts(cuts).to_file(tmp_path / "all.jsonl.gz")
    return tmp_path / "all.jsonl.gz"


def ids(manifest, **wanted):
    output = manifest.with_name("part.jsonl")
    report = write_subset(manifest, output, Wanted(**wanted))
    found = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert len(found) == report.cuts and report.hours == pytest.approx(0.01 * report.cuts)
    assert found == sorted(found)  # the order of the manifest
    return found


def test_filters(manifest):
    assert ids(manifest, languages=frozenset(["fr"])) == [f"c{i:02}" for i in range(0, 40, 2)]
    assert ids(manifest, corpora=frozenset(["a"]), tasks=frozenset(["ner", "lid"])) == ["c00", "c04", "c08"]
    assert ids(manifest, ids=frozenset(["c07", "c03"])) == ["c03", "c07"]
    assert len(ids(manifest, languages=frozenset(["fr", "nl"]))) == 40


def test_without_task_is_the_rest_of_task(manifest):
    labelled, rest = manifest.with_name("with.jsonl"), manifest.with_name("without.jsonl")
    for option, output in (("--task", labelled), ("--without-task", rest)):
        assert run("manifest", "subset", manifest, output, option, "ner").exit_code == 0
    found = [{json.loads(line)["id"] for line in path.read_text().splitlines()} for path in (labelled, rest)]
    assert found[0] == {f"c{i:02}" for i in range(0, 40, 4)}
    assert found[1] == {f"c{i:02}" for i in range(40)} - found[0]
    assert ids(manifest, without_tasks=frozenset(["ner"]), cuts=2) == ["c01", "c02"]


def test_first_and_random(manifest):
    assert ids(manifest, cuts=3) == ["c00", "c01", "c02"]
    assert ids(manifest, hours=0.05) == ["c00", "c01", "c02", "c03", "c04"]
    assert ids(manifest, hours=0.0599, languages=frozenset(["nl"])) == ["c01", "c03", "c05", "c07", "c09"]
    drawn = ids(manifest, cuts=10, at_random=True)
    assert len(drawn) == 10 and drawn == ids(manifest, cuts=10, at_random=True)
    assert drawn != ids(manifest, cuts=10, at_random=True, seed=1)
    assert len(ids(manifest, hours=0.1, at_random=True)) == 10
    assert set(ids(manifest, cuts=5, at_random=True)) < set(drawn)  # a larger subset holds the smaller one


def test_keep_labels(manifest, tmp_path):
    output = tmp_path / "partly.jsonl.gz"
    result = run("manifest", "subset", manifest, output, "--keep-labels", "ner=0.3", "--keep-labels", "lid=0")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[1:] == [
        "ner: kept on 3 cuts, dropped from 7",
        "lid: kept on 0 cuts, dropped from 10",
    ]
    validate_cuts(output)
    cuts = list(CutSet.from_file(output))
    labelled = [cut for cut in cuts if "ner" in cut.custom["tasks"]]
    assert len(cuts) == 40 and len(labelled) == 3
    lost = [cut for i, cut in enumerate(cuts) if i % 4 == 0 and cut not in labelled]
    assert all("entities" not in cut.supervisions[0].custom for cut in lost)
    assert all(cut.supervisions[0].language for cut in cuts)  # serves others as well


def test_keep_labels_is_a_share_of_what_is_taken(manifest):
    report = write_subset(manifest, manifest.with_name("x.jsonl"), Wanted(cuts=16, keep_labels={"ner": 0.5}))
    assert report.kept == {"ner": 2} and report.lost == {"ner": 2}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"ids": frozenset(["c00", "no", "nor"])}, r"no cut 'no', which --ids asks for \(and 1 more\)"),
        ({"languages": frozenset(["cs"])}, "no cut to write: 0 fit"),
        ({"hours": 0.001}, "no cut to write: 40 fit"),
        ({"without_tasks": frozenset(["asr"])}, "no cut to write: 0 fit"),
    ],
)
def test_nothing_to_write(manifest, wanted, said):
    with pytest.raises(UserError, match=said):
        ids(manifest, **wanted)
    assert [path.name for path in manifest.parent.iterdir()] == ["all.jsonl.gz"]


def test_wrong_options(manifest, tmp_path):
    for options in (
        ["--keep-labels", "ner"],
        ["--keep-labels", "ner=2"],
        ["--keep-labels", "asr=1"],
        ["--task", "sing"],
        ["--without-task", "sing"],
    ):
        result = run("manifest", "subset", manifest, tmp_path / "x.jsonl", *options)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
    (tmp_path / "ids").write_text("\n")
    result = run("manifest", "subset", manifest, tmp_path / "x.jsonl", "--ids", tmp_path / "ids")
    assert result.exit_code == 2 and "expected an id in every line" in result.stderr
