import json

import pytest
import yaml
from command_lines import run, run_ok
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet

from tokenverse_pp.base.config_files import parse_config
from tokenverse_pp.data.editing import mix as mixing
from tokenverse_pp.data.editing.mix import (
    MixCounts,
    count_each,
    mix_table,
    mixed_rows,
    shares_by_hours,
    shares_by_language,
    shares_of,
    shuffle_manifest,
    weights_for,
)


def corpus(path, count, seconds, language, tasks, **custom):
    turns = [{"text": "oui", "language": language, "speaker": "s"}]
    cuts = (make_cut(f"{path.name[0]}{i}", turns, tasks, seconds, **custom) for i in range(count))
    CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.fixture
def corpora(tmp_path):
    """10 h of long French cuts, 1 h of short Dutch ones, 4 h of French: (labelled for) scd, lid, nothing but asr."""
    return [
        corpus(tmp_path / "ami.jsonl.gz", 360, 100.0, "fr", ["asr", "scd"]),
        corpus(tmp_path / "cv.jsonl.gz", 720, 5.0, "nl", ["asr", "lid"]),
        corpus(tmp_path / "web.jsonl.gz", 288, 50.0, "fr", ["asr"]),
    ]


def test_shares_by_hours(corpora):
    counts = count_each(corpora)
    assert shares_by_hours(counts, 1.0) == pytest.approx([10 / 15, 1 / 15, 4 / 15])
    assert shares_by_hours(counts, 0.0) == pytest.approx([1 / 3] * 3)
    root = [10**0.5, 1, 2]
    assert shares_by_hours(counts, 0.5) == pytest.approx([part / sum(root) for part in root])


def test_shares_by_language(corpora):
    counts = count_each(corpora)
    assert shares_by_language(counts, 0.0) == pytest.approx([0.5 * 10 / 14, 0.5, 0.5 * 4 / 14])
    assert shares_by_language(counts, 1.0) == pytest.approx([10 / 15, 1 / 15, 4 / 15])


def test_weights_count_cuts(corpora):
    counts = count_each(corpora)
    weights = weights_for([1 / 3] * 3, counts)
    assert [weight / weights[0] for weight in weights] == pytest.approx([1, 20, 2])  # cuts of 100, 5 and 50 s


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 1e4), st.floats(0.01, 1.0)), min_size=1, max_size=5))
def test_shares_and_weights_are_inverse(corpora):
    counts = [MixCounts(cuts, hours, {}, {}) for cuts, hours, _ in corpora]
    total = sum(share for *_, share in corpora)
    shares = [share / total for *_, share in corpora]
    assert shares_of(weights_for(shares, counts), counts) == pytest.approx(shares)


def test_table_says_who_gives_what(corpora):
    counts = count_each(corpora)
    rows = [
        line.split()
        for line in mix_table(["ami", "cv", "web"], weights_for([0.5, 0.2, 0.3], counts), counts).split("\n")
    ]
    assert rows[0][:3] == ["corpus", "cuts", "hours"]
    assert rows[1] == ["ami", "360", "10.00", *rows[1][3:4], "50.0", "%", "50.0", "%", "100.0", "%", "-", "-", "-", "-"]
    assert rows[2][4:] == ["20.0", "%", "20.0", "%", "-", "-", "-", "100.0", "%", "-"]
    assert rows[4] == ["labelled", "100.0", "%", "50.0", "%", "0.0", "%", "0.0", "%", "20.0", "%", "0.0", "%"]


def test_yaml_is_a_configuration(corpora, tmp_path):
    output = tmp_path / "mix.yaml"
    result = run_ok("manifest", "mix", *corpora, output, "--temperature", 0)
    assert "33.3 %" in result.stdout and "66.7 %" in result.stdout  # of hours: a third each, two are French
    data = yaml.safe_load(output.read_text())["data"]
    assert data["train"] == [str(path) for path in corpora]
    config = parse_config(["--config", str(output)])
    assert config.data.weights == pytest.approx(data["weights"]) and sum(data["weights"]) == pytest.approx(1, abs=1e-5)


def test_weights_as_given(corpora, tmp_path):
    assert run("manifest", "mix", *corpora, tmp_path / "m.yaml", "--weights", "2,1,0.5").exit_code == 0
    assert yaml.safe_load((tmp_path / "m.yaml").read_text())["data"]["weights"] == [2.0, 1.0, 0.5]
    for options, said in (
        (["--weights", "2,1"], "expected one for each of the 3 manifests, got 2"),
        (["--weights", "2,1,0"], "positive"),
        (["--weights", "2,1,x"], "expected numbers"),
        (["--weights", "2,1,1", "--by", "hours"], "together"),
        (["--prefix"], "OUTPUT of cuts"),
    ):
        result = run("manifest", "mix", *corpora, tmp_path / "no.yaml", *options)
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "no.yaml").exists()


def test_interleaved_is_what_lhotse_gives(corpora, tmp_path):
    output = tmp_path / "mixed.jsonl.gz"
    assert run("manifest", "mix", *corpora, output, "--weights", "1,2,1", "--seed", 3).exit_code == 0
    expected = CutSet.mux(*map(CutSet.from_file, corpora), weights=[1, 2, 1], seed=3)
    found = CutSet.from_file(output)
    assert [cut.id for cut in found] == [cut.id for cut in expected]
    assert sum(cut.duration for cut in found) == pytest.approx(15 * 3600)
    first = output.read_bytes()
    run("manifest", "mix", *corpora, output, "--weights", "1,2,1", "--seed", 3, "--overwrite")
    assert output.read_bytes() == first
    run("manifest", "mix", *corpora, output, "--weights", "1,2,1", "--seed", 4, "--overwrite")
    assert output.read_bytes() != first


def test_ids_stay_apart(corpora, tmp_path):
    twin = corpus(tmp_path / "also.jsonl", 2, 1.0, "fr", ["asr"])
    output = tmp_path / "mixed.jsonl"
    result = run("manifest", "mix", corpora[0], twin, output)
    assert result.exit_code == 2 and not output.exists()
    assert "cut a" in result.stderr and "another cut has this id already; --prefix" in result.stderr
    assert run("manifest", "mix", corpora[0], twin, output, "--prefix").exit_code == 0
    ids = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert len(set(ids)) == 362 and {"ami-a0", "also-a0"} < set(ids)
    [cut] = [cut for cut in CutSet.from_file(output) if cut.id == "also-a0"]
    assert cut.supervisions[0].id == "also-a0-0"


@pytest.mark.parametrize("forgotten", [False, True])
def test_an_output_that_exists_is_kept(corpora, tmp_path, forgotten):
    if not forgotten:
        corpora.append(tmp_path / "mix.yaml")
        corpora[-1].write_text("mine")
    before = corpora[-1].read_bytes()
    result = run("manifest", "mix", *corpora)
    said = "exists already; --overwrite replaces it (the last name is OUTPUT)"
    assert result.exit_code == 2 and result.stderr == f"error: {corpora[-1]}: {said}\n"
    assert corpora[-1].read_bytes() == before
    assert run("manifest", "mix", *corpora, "--overwrite").exit_code == 0 and corpora[-1].read_bytes() != before


def test_one_manifest_is_left_in_order(corpora):
    assert [row.id for row in mixed_rows(corpora[2:], [1.0], seed=0)] == [f"w{i}" for i in range(288)]


def test_manifest_without_cuts(corpora, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    result = run("manifest", "mix", corpora[0], empty, tmp_path / "m.yaml")
    assert result.exit_code == 2 and "empty.jsonl: expected cuts, found none" in result.stderr


def ids_of(path):
    return [json.loads(line)["id"] for line in open(path)]


@given(st.integers(0, 30), st.integers(1, 7), st.integers())
def test_shuffled_manifest_has_each_line_once_in_an_order_of_the_seed(tmp_path_factory, count, parts, seed):
    folder = tmp_path_factory.mktemp("shuffled")
    lines = [
        json.dumps({"id": f"c{i}", "type": "MonoCut", "text": "é\u2028"}, ensure_ascii=i % 2 == 0) for i in range(count)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "PART_BYTES", max(1, (folder / "a.jsonl").stat().st_size // parts))
        assert shuffle_manifest(folder / "a.jsonl", folder / "b.jsonl", seed) == count
        shuffle_manifest(folder / "a.jsonl", folder / "c.jsonl", seed)
        shuffle_manifest(folder / "a.jsonl", folder / "a.jsonl", seed)  # in place
    found = (folder / "b.jsonl").read_text(encoding="utf-8").split("\n")
    assert sorted(found[:-1]) == sorted(lines) and found[-1] == ""
    assert (folder / "b.jsonl").read_bytes() == (folder / "c.jsonl").read_bytes() == (folder / "a.jsonl").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_every_order_is_equally_likely(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": name, "type": "MonoCut"}) + "\n" for name in "abc"))
    monkeypatch.setattr(mixing, "PART_BYTES", 40)  # three parts
    found = {}
    for seed in range(600):
        shuffle_manifest(tmp_path / "a.jsonl", tmp_path / "b.jsonl", seed)
        order = "".join(ids_of(tmp_path / "b.jsonl"))
        found[order] = found.get(order, 0) + 1
    assert len(found) == 6 and all(70 < count < 130 for count in found.values()), found  # 100 expected, s.d. 9


def test_shuffle_command(tmp_path, corpora):
    result = run("manifest", "shuffle", corpora[1], tmp_path / "out.jsonl.gz", "--seed", 3)
    assert result.exit_code == 0 and result.stdout == f"720 cuts: {tmp_path / 'out.jsonl.gz'}\n"
    before, after = (list(CutSet.from_file(path)) for path in (corpora[1], tmp_path / "out.jsonl.gz"))
    assert before != after and sorted(before, key=lambda c: c.id) == sorted(after, key=lambda c: c.id)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a", "type": "MonoCut"}\n{"id": 7}\n')
    for source, target, said in (
        (bad, tmp_path / "no.jsonl", "bad.jsonl, line 2"),
        (tmp_path / "none.jsonl", tmp_path / "no.jsonl", "no such file"),
        (corpora[1], tmp_path / "no.txt", ".jsonl or .jsonl.gz"),
    ):
        result = run("manifest", "shuffle", source, target)
        assert result.exit_code == 2 and said in result.stderr and not target.exists()
    assert not list(tmp_path.glob(".*"))
