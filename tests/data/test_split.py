"""Disjoint sets that share nothing, and subsets by criteria, number, hours and labels."""

import gzip
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from command_lines import run, run_ok
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.split import KeyRule, Wanted, assign, split_manifest, write_subset
from tokenverse_pp.data.labels import validate_cuts
from tokenverse_pp.data.manifests import ManifestRow, row_bytes

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def write(folder, cuts):
    path = Path(folder) / "cuts.jsonl"
    CutSet.from_cuts(cuts).to_file(path)
    return path


def split(path, by, seed=0, shares=SHARES, **options):
    """The cuts of each set, and the counts."""
    outputs = {name: path.parent / f"{name}.jsonl" for name in shares}
    counts = split_manifest(path, outputs, shares, KeyRule(by, **options), seed)
    return {name: [json.loads(line) for line in out.read_text().splitlines()] for name, out in outputs.items()}, counts


def values(cut, kind):
    if kind == "recording":
        return {sup["recording_id"] for sup in cut["supervisions"]}
    if kind == "session":
        return {cut["custom"]["session"]}
    return {sup[kind].lower() for sup in cut["supervisions"]}


texts = st.sampled_from(["Oui", "oui", "non", "un", "deux", "trois"])
turns = st.lists(
    st.fixed_dictionaries({"speaker": st.sampled_from("abcdefghijkl"), "text": texts}), min_size=1, max_size=2
)
examples = st.lists(
    st.tuples(turns, st.floats(0.5, 30.0), st.sampled_from(["x", "y", "z", "v", "w"])), min_size=3, max_size=40
)


@settings(max_examples=80, deadline=None)
@given(examples, st.sets(st.sampled_from(["speaker", "text", "recording", "session"]), min_size=1), st.integers(0, 9))
def test_nothing_leaks_and_nothing_is_lost(examples, kinds, seed):
    cuts = [make_cut(f"c{i}", t, duration=9 * d, session=s) for i, (t, d, s) in enumerate(examples)]
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, cuts)
        try:
            sets, counts = split(path, tuple(sorted(kinds)), seed)
        except UserError as error:
            assert "try fewer --by" in str(error) and list(Path(folder).iterdir()) == [path]
            return
        again, _ = split(path, tuple(sorted(kinds)), seed)
    assert sets == again
    assert sorted(cut["id"] for part in sets.values() for cut in part) == sorted(cut.id for cut in cuts)
    assert all(sets.values()) and {name: len(part) for name, part in sets.items()} == {
        name: count["cuts"] for name, count in counts.items()
    }
    for kind in kinds:
        owners = defaultdict(set)
        for name, part in sets.items():
            for cut in part:
                for value in values(cut, kind):
                    owners[value].add(name)
        assert all(len(names) == 1 for names in owners.values())


@given(st.lists(st.floats(0.01, 1.0), min_size=60, max_size=200), st.integers(0, 99))
def test_shares_are_near(hours, seed):
    """No set is off by more than the largest group."""
    chosen = assign(dict(enumerate(hours)), [0.8, 0.1, 0.1], seed)
    for number, share in enumerate([0.8, 0.1, 0.1]):
        got = sum(hours[group] for group, owner in chosen.items() if owner == number)
        assert abs(got - share * sum(hours)) <= max(hours) * (1 + 1e-9)


def test_no_set_stays_empty():
    assert sorted(assign({0: 1.0, 1: 1.0, 2: 1.0}, [0.8, 0.1, 0.1], seed=0).values()) == [0, 1, 2]
    assert assign({0: 9.0, 1: 1.0}, [0.5, 0.5], seed=0) == {0: 0, 1: 1}
    with pytest.raises(UserError, match="2 groups for 3 sets"):
        assign({0: 9.0, 1: 1.0}, [0.8, 0.1, 0.1], seed=0)


def row_of(**turn):
    data = make_cut("c", [{"text": "oui", **turn}]).to_dict()
    return ManifestRow("x, line 1", row_bytes(data), data)


def test_missing_keys():
    with pytest.raises(UserError, match="x, line 1: cut c: no speaker, so it is not known what it shares"):
        KeyRule(("speaker",)).keys(row_of())
    assert KeyRule(("speaker",), allow_missing=True).keys(row_of()) == [("id", "c")]
    of_turn = row_of()  # as `manifest import --column custom.session=..` writes it
    of_turn.data["supervisions"][0]["custom"] = {"session": "s1"}
    assert KeyRule(("session",)).keys(of_turn) == [("session", "s1")]
    with pytest.raises(UserError, match="cut c: no session"):
        KeyRule(("session",)).keys(row_of())


def test_no_turn_is_without_a_key():
    data = make_cut("c", [{"text": "oui", "speaker": "a"}, {"text": "non"}]).to_dict()
    row = ManifestRow("x, line 1", row_bytes(data), data)
    with pytest.raises(UserError, match="x, line 1: cut c: no speaker, so it is not known what it shares"):
        KeyRule(("speaker",)).keys(row)
    assert KeyRule(("speaker",), allow_missing=True).keys(row) == [("speaker", "a")]


def test_a_key_is_the_same_in_every_form_of_unicode():
    rule = KeyRule(("speaker",))
    assert rule.keys(row_of(speaker="Jose\u0301")) == rule.keys(row_of(speaker="Jos\u00e9"))


def test_short_texts_may_be_shared():
    assert KeyRule(("text",)).keys(row_of(text="Oui, MERCI")) == [("text", "oui, merci")]
    rule = KeyRule(("text", "speaker"), text_words=2)
    assert rule.keys(row_of(text="oui", speaker="a")) == [("speaker", "a")]
    assert rule.keys(row_of(text="oui non", speaker="a")) == [("speaker", "a"), ("text", "oui non")]


def test_command_line(tmp_path):
    cuts = [make_cut(f"c{i}", [{"text": f"un {i}", "speaker": f"s{i % 20}"}]) for i in range(100)]
    path = write(tmp_path, cuts)
    result = run_ok("manifest", "split", path, tmp_path / "out", "--shares", "train=0.8,dev=0.2", "--by", "speaker")
    assert [line.split() for line in result.stdout.splitlines()][1:] == [
        ["train", "80", "16", "0.03", "80.0", "80.0"],
        ["dev", "20", "4", "0.01", "20.0", "20.0"],
    ]
    sets = [{cut.supervisions[0].speaker for cut in CutSet.from_file(p)} for p in sorted((tmp_path / "out").iterdir())]
    assert [len(part) for part in sets] == [4, 16] and not set.intersection(*sets)
    for shares in ("train", "train=0", "train=1", "a=1,a=2", "../x=1,b=1", "a=nan,b=1"):
        result = run("manifest", "split", path, tmp_path / "no", "--shares", shares)
        assert result.exit_code == 2 and "--shares" in result.stderr
    assert not (tmp_path / "no").exists()


def test_keys_with_commas_and_a_key_that_no_cut_has(tmp_path):
    cuts = [make_cut(f"c{i}", [{"text": f"un {i % 3}", "speaker": f"s{i}"}]) for i in range(12)]
    path, shares = write(tmp_path, cuts), ("--shares", "train=0.5,dev=0.5")
    result = run_ok("manifest", "split", path, tmp_path / "out", *shares, "--by", "speaker, text")
    sets = [{cut.supervisions[0].text for cut in CutSet.from_file(p)} for p in (tmp_path / "out").iterdir()]
    assert not set.intersection(*sets)
    for by in ("speakr", "text,session"):
        result = run("manifest", "split", path, tmp_path / "no", *shares, "--by", by, "--allow-missing")
        assert result.exit_code == 2 and f"no cut has a {by.split(',')[-1]}: expected speaker, text" in result.stderr
        assert not (tmp_path / "no").exists()
    result = run("manifest", "split", write(tmp_path, cuts[:1]), tmp_path / "no", *shares)
    assert result.exit_code == 2 and "1 cuts for 2 sets (train, dev): expected one for each" in result.stderr


def test_sets_that_exist_are_kept(tmp_path):
    cuts = [make_cut(f"c{i}", [{"text": f"un {i}", "speaker": f"s{i}"}]) for i in range(9)]
    source = tmp_path / "cuts_train.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(source)
    before, dev = source.read_bytes(), tmp_path / "cuts_dev.jsonl.gz"
    options = (source, tmp_path, "--shares", "train=0.8,dev=0.2")
    result = run("manifest", "split", *options)
    assert result.exit_code == 2 and result.stderr == f"error: {source}: exists already; --overwrite replaces it\n"
    assert source.read_bytes() == before and not dev.exists()
    assert run("manifest", "split", *options, "--overwrite").exit_code == 0
    assert sorted(cut.id for path in (source, dev) for cut in CutSet.from_file(path)) == [cut.id for cut in cuts]


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
    result = run_ok("manifest", "subset", manifest, output, "--keep-labels", "ner=0.3", "--keep-labels", "lid=0")
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


def test_ids_may_hold_spaces(manifest, tmp_path):
    rows = [json.loads(line) for line in gzip.decompress(manifest.read_bytes()).splitlines()[:3]]
    for row, name in zip(rows, ("my", "my call-1", "other")):
        row["id"] = name
    (tmp_path / "cuts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for asked, expected in ((" my call-1 \n", ["my call-1"]), ("other and a text\nmy\n", ["my", "other"])):
        (tmp_path / "ids").write_text(asked)
        options = ["--ids", tmp_path / "ids", "--overwrite"]
        run_ok("manifest", "subset", tmp_path / "cuts.jsonl", tmp_path / "x.jsonl", *options)
        found = [json.loads(line)["id"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
        assert found == expected


@pytest.mark.parametrize(
    ("command", "options"),
    [("label", ["--drop", "ner"]), ("subset", ["--cuts", 2]), ("shuffle", []), ("conversations", ["--tasks", "asr"])],
)
def test_an_output_that_exists_is_kept_without_overwrite(manifest, tmp_path, command, options):
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    result = run("manifest", command, manifest, output, *options)
    assert result.stderr == f"error: {output}: exists already; --overwrite replaces it\n" and result.exit_code == 2
    assert output.read_text() == "mine"
    result = run("manifest", command, manifest, output, *options, "--overwrite")
    assert "exists already" not in result.stderr
    assert command == "conversations" or output.read_text() != "mine"  # the cuts of this file are no conversation


def test_an_import_and_stored_features_keep_an_output_too(manifest, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    commands = (["import", output, "--table", manifest], ["store-features", manifest, output, "--config", manifest])
    for words in commands:
        result = run("manifest", *words)
        assert result.stderr == f"error: {output}: exists already; --overwrite replaces it\n" and result.exit_code == 2
        result = run("manifest", *words, "--overwrite")
        assert result.exit_code == 2 and "exists already" not in result.stderr  # the manifest is no table, and no YAML
    assert output.read_text() == "mine"


def test_wrong_options(manifest, tmp_path):
    labels = [["--keep-labels", value] for value in ("ner", "ner=2", "asr=1")]
    labels.append(["--keep-labels", "ner=1", "--keep-labels", "ner=0"])
    for options in [*labels, ["--task", "sing"], ["--without-task", "sing"]]:
        result = run("manifest", "subset", manifest, tmp_path / "x.jsonl", *options)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
    (tmp_path / "ids").write_text("\n")
    result = run("manifest", "subset", manifest, tmp_path / "x.jsonl", "--ids", tmp_path / "ids")
    assert result.exit_code == 2 and "expected an id in every line" in result.stderr
