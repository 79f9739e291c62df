"""Grids: reading them, what defines a run, and what is made of finished runs."""

import json

import click.testing
import pytest
import yaml
from experiment_grids import ROOT, SCRIPT, finish, place_of, write_grid
from grid.grid import Derivation, claim_tasks, derive, flatten, load_grid, nested
from grid.runs import as_options
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut
from scripts import load_script
from toy_runs import read_cuts

from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.labels import validate_cuts
from tokenverse_pp.data.manifests import read_cuts as read_manifest
from tokenverse_pp.tasks import transcript_of

GRID = ROOT / "recipes" / "human_speech" / "experiments" / "grid.yaml"


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT, "experiments_script")


@pytest.fixture
def place(tiny_corpus, tmp_path):
    return place_of(write_grid(tiny_corpus, tmp_path / "grid.yaml"), tiny_corpus, tmp_path / "exp")


def perfect(corpus, tasks, names=None):
    """Hypotheses that are right in all tasks (or those named)."""
    active = tasks.subset(names or tasks.names)
    return [
        {"id": cut.id, "text": active.render(transcript_of(cut, tasks)), "tasks": list(active.names)}
        for cut in read_cuts(corpus, "test")
    ]


def invoke(script, place, tmp_path, *words):
    options = ["--grid", tmp_path / "grid.yaml", "--data", place.data, "--exp-dir", place.exp_dir]
    return click.testing.CliRunner().invoke(script.cli, [str(word) for word in (*options, *words)])


def test_the_grid_of_the_recipe_can_be_read():
    grid = load_grid(GRID, ROOT, {"training.max_steps": 7})
    assert grid.runs["asr"].settings["tasks.names"] == ["asr"]
    assert grid.runs["asr"].settings["model.encoder.name"] == "data/whisper-base"  # of base.yaml
    assert {run.settings.get("training.max_steps") for run in grid.runs.values() if not run.hyps} == {7}
    assert [run.name for run in grid.chosen(["share_*"])][-4:] == ["share_5", "share_10", "share_25", "share_50"]
    assert len(grid.runs["task_sets"].decodings) == 16
    # What a run needs comes before it, even if only the run is named; what others wrote is not run.
    names = [run.name for run in grid.chosen(["dial_ner"])]
    assert names.index("tokenverse_pp") < names.index("dial_ner")
    assert "cascade" not in [run.name for run in grid.chosen([])] and "cascade" in grid.runs


def test_files_then_settings_define_a_run(place):
    run = place.grid.runs["asr"]
    assert run.settings["data.min_seconds"] == 0.2  # of the file
    assert run.settings["model.predictor_dim"] == 32  # common settings have won over the file
    assert run.settings["tasks.names"] == ["asr"]  # and the run's own over those
    folder = place.folder(run, 1)
    config = load_config(folder.write_config())
    assert config.training.seed == 1 and config.tasks.names == ["asr"] and config.data.min_seconds == 0.2
    assert config.tokenizer.model == str(place.tokenizer())


def test_the_folder_goes_by_what_defines_the_run(place, tiny_corpus, tmp_path):
    def path(**changes):
        grid = load_grid(write_grid(tiny_corpus, tmp_path / "other.yaml"), ROOT, changes)
        place.grid = grid
        return place.folder(grid.runs["pp"], 1).path

    same = path()
    assert path() == same != path(**{"optim.lr": 0.5})
    assert path(**{"training.threads": 3, "data.num_workers": 2, "training.save_every": 9}) == same
    assert place.folder(place.grid.runs["pp"], 2).path != same
    assert place.folder(place.grid.runs["sets"], 1).path == same  # it decodes this very model


def test_other_options_of_decoding_make_it_unfinished(place, tiny_corpus, toy_tasks, tmp_path):
    finish(place.folder(place.grid.runs["pp"], 1), perfect(tiny_corpus, toy_tasks))
    assert place.folder(place.grid.runs["pp"], 1).finished
    grid = yaml.safe_load((tmp_path / "grid.yaml").read_text())
    grid["common"]["decode"]["beam"] = 8
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    other = place_of(tmp_path / "grid.yaml", tiny_corpus, place.exp_dir)
    folder = other.folder(other.grid.runs["pp"], 1)
    assert folder.trained and not folder.finished and [d.name for d in folder.left()] == ["test"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"runs": {"a": {"train": "nowhere"}}}, "run a: no manifest 'nowhere'"),
        ({"runs": {"a": {"of": "b"}}}, "run a: needs a run 'b'"),
        ({"runs": {"a": {"color": 1}}}, "run a: unknown key 'color'"),
        ({"manifests": {"all": {"keep": 1}}}, "unknown key 'keep'"),
        ({"runs": {"a": {"configs": ["no.yaml"]}}}, "no.yaml: no such file"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tiny_corpus, tmp_path, changes, said):
    path = write_grid(tiny_corpus, tmp_path / "grid.yaml", **changes)
    with pytest.raises(UserError, match=said) as error:
        load_grid(path, ROOT)
    assert str(path) in str(error.value)


@given(st.dictionaries(st.sampled_from(["a.x", "a.y", "b", "c.d.e"]), st.integers() | st.lists(st.text()), min_size=1))
def test_nested_and_flat_settings_say_the_same(settings):
    assert flatten(nested(settings)) == settings


def test_options_for_a_command_line():
    assert as_options({"beam": 4, "stored-features": True, "force-language": False, "tasks": ""}) == [
        "--beam", "4", "--stored-features", "--no-force-language",
    ]  # fmt: skip


def test_missing_labels_claimed_empty_write_no_token(toy_tasks):
    turns = [{"text": text, "speaker": who, "language": "qaa"} for text, who in (("een", "a"), ("twee", "b"))]
    data = make_cut("c", turns, ["asr", "lid"]).to_dict()
    claim_tasks(data, ("scd", "endp", "ner", "lid"))
    cut = make_cut("c", turns, ["asr"]).from_dict(data)
    validate_cuts([cut])
    assert cut.custom["tasks"] == ["asr", "scd", "endp", "ner", "lid"]
    assert toy_tasks.render(transcript_of(cut, toy_tasks)) == "[QAA] een twee"
    with pytest.raises(UserError, match="cut c: not labelled for lid, and nothing can stand for that label"):
        claim_tasks(make_cut("c", turns, ["asr"]).to_dict(), ("lid",))


def test_derived_manifests_keep_drop_and_claim(tiny_corpus, tmp_path):
    source, output = tiny_corpus / "cuts_train.jsonl.gz", tmp_path / "out.jsonl.gz"
    derive(source, output, Derivation(keep_labels={"ner": 0.25}, claim=("ner",)), seed=1)
    whole, cuts = list(read_manifest(source)), list(read_manifest(output))
    validate_cuts(cuts)
    with_entities = lambda found: sum(any(s.custom["entities"] for s in cut.supervisions) for cut in found)
    assert len(cuts) == len(whole) == 16 and all("ner" in cut.custom["tasks"] for cut in cuts)
    assert 0 < with_entities(cuts) <= 4 < with_entities(whole)
    derive(source, output, Derivation(only=("lid",)), seed=1)
    assert {tuple(cut.custom["tasks"]) for cut in read_manifest(output)} == {("asr", "lid")}
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.gz"]
    with pytest.raises(UserError):
        derive(source, tmp_path / "none.jsonl.gz", Derivation(corpora=("nowhere",)), seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.gz"]


def test_labels_are_drawn_anew_for_each_seed(place):
    assert place.manifest("half", 1) != place.manifest("half", 2)
    assert place.manifest("all", 1) == place.manifest("all", 2) == place.corpus("train")


def test_gather_tables_claims_and_plots(script, place, tiny_corpus, toy_tasks, tmp_path):
    right = perfect(tiny_corpus, toy_tasks)
    words = [{**hyp, "text": hyp["text"].split()[0]} for hyp in right]
    for seed, hyps in ((1, right), (2, words)):
        finish(place.folder(place.grid.runs["pp"], seed), hyps)
    finish(place.folder(place.grid.runs["asr"], 1), perfect(tiny_corpus, toy_tasks, ["asr"]))
    finish(place.folder(place.grid.runs["sets"], 1), right)
    (tmp_path / "claims.yaml").write_text(
        "claims:\n- {id: a, says: words, run: asr, is: better, than: pp, metric: wer}\n"
        "- {id: b, says: entities, run: asr, is: better, than: pp, metric: ner exact}\n"
        "- {id: c, says: half, run: pp, is: reaches, value: 0.9, metric: lid accuracy}\n"
    )
    results = tmp_path / "results.json"
    words = ["--claims", tmp_path / "claims.yaml", "gather", "--results", results, "--resamples", 300]
    done = invoke(script, place, tmp_path, *words)
    assert done.exit_code == 0, done.output
    found = json.loads(results.read_text())
    scores = found["runs"]["pp"]["scores"]["all"]
    assert scores["wer"]["seeds"][0] == 0 < scores["wer"]["seeds"][1] <= 1
    assert scores["wer"]["mean"] == pytest.approx(sum(scores["wer"]["seeds"]) / 2, abs=1e-4)
    assert scores["lid accuracy"]["interval"] == [1, 1] and scores["ner exact"]["seeds"][0] == 1
    assert [seed["commit"] for seed in found["runs"]["pp"]["seeds"]] == ["c0ffee"] * 2
    assert list(found["runs"]["asr"]["scores"]["all"]) == ["wer"]
    assert [claim["verdict"] for claim in found["claims"]] == ["supported", "not run", "supported"]

    document = tmp_path / "doc.md"
    before = "# Kept\n\n<!-- table: runs p* | wer, ner exact -->\n\ntext\n\n<!-- table: claims -->\nend\n"
    document.write_text(before)
    tables = ["tables", "--results", results, "--document", document]
    for _ in range(2):  # the second time changes nothing
        assert invoke(script, place, tmp_path, *tables).exit_code == 0
        text = document.read_text()
        assert text.count("| `pp` | all of it | 2 |") == text.count("| words (WER; `asr` / `pp`) |") == 1
        assert text.startswith("# Kept\n") and "\ntext\n" in text and text.endswith("end\n")
    document.write_text("<!-- table: songs -->\n")
    refused = invoke(script, place, tmp_path, *tables)
    assert refused.exit_code == 2 and "table 'songs'" in refused.output

    drawn = invoke(script, place, tmp_path, "plots", "--results", results, "--output-dir", tmp_path)
    assert drawn.exit_code == 0 and (tmp_path / "sets.png").read_bytes().startswith(b"\x89PNG")
    listed = invoke(script, place, tmp_path, "list")
    assert [line.split()[-1] for line in listed.output.splitlines()[1:]] == ["1,2", "1", "1"]


def test_what_is_not_there_is_said(script, place, tmp_path):
    for words, said in (
        (["gather"], "no run of the grid is finished"),
        (["run", "nobody"], "no run 'nobody' in the grid"),
        (["tables", "--results", tmp_path / "none.json", "--document", tmp_path / "grid.yaml"], "gather` writes it"),
        (["worst", "pp"], "run pp: not finished"),
    ):
        done = invoke(script, place, tmp_path, *words)
        assert done.exit_code == 2 and said in done.output, done.output
