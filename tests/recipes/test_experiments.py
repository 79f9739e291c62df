"""Grids: reading them, what defines a run, and what is made of finished runs."""

import dataclasses
import json

import click.testing
import pytest
import yaml
from experiment_grids import ROOT, SCRIPT, finish, place_of, write_grid
from grid import results as of_runs
from grid.claims import Claim, judge, read_claims, verdict_of
from grid.grid import Derivation, claim_tasks, derive, divided, flatten, load_grid, nested
from grid.plots import read_panels
from grid.runs import as_options
from grid.tables import claims_table, fill
from grid.worst import Utterance, cause, repeated, without_texts, worst
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut
from scripts import load_script
from toy_runs import read_cuts

from tokenverse_pp.base.config_files import check_activation, check_config, from_dict, load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.labels import validate_cuts
from tokenverse_pp.data.manifests import ManifestRow
from tokenverse_pp.data.manifests import read_cuts as read_manifest
from tokenverse_pp.evaluation.comparison import Counted, count_utterances
from tokenverse_pp.metrics.bootstrap import RatioCounts
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


def test_kept_counts_are_of_these_labels_and_this_scorer(place, tiny_corpus, toy_tasks, tmp_path, monkeypatch):
    path = tmp_path / "hyps.jsonl"
    path.write_text("".join(json.dumps(hyp) + "\n" for hyp in perfect(tiny_corpus, toy_tasks)))
    run = dataclasses.replace(place.grid.runs["asr"], hyps=str(path), seeds=())

    def errors(tests):
        (counted,) = of_runs.decoded_by(place, run, tests)
        return sum(above for above, _ in counted.metrics["wer"].values())

    tests = of_runs.TestSet(read_cuts(tiny_corpus, "test"), "a")
    with monkeypatch.context() as patched:
        patched.setattr(of_runs, "count_utterances", lambda cuts, hyps: Counted({"wer": {"cut": (7, 9)}}))
        assert errors(tests) == 7
        patched.setattr(of_runs, "scoring_code", lambda: ["another"])
        patched.setattr(of_runs, "count_utterances", count_utterances)
        assert errors(tests) == 0
        patched.setattr(of_runs, "count_utterances", None)  # kept, not counted
        assert errors(tests) == 0
    tests.cuts[0].supervisions[0].text = "others altogether"
    assert errors(dataclasses.replace(tests, sha256="b")) > 0


def test_a_line_of_a_plot_is_of_one_stage():
    def run(mean, **more):
        return {"scores": {"all": {"wer": {"mean": mean, "interval": [mean, mean]}}}, **more}

    panels = [{"title": "t", "x": "x", "lines": {name: {"metric": "wer", "runs": runs} for name, runs in (
        ("share", {"half": 50, "pp": 100}), ("main", {"pp": 100})
    )}}]  # fmt: skip
    results = {"runs": {"pp": run(0.2), "half": run(0.5, before="†")}}
    older = {"stage": {"name": "at first", "mark": "†"}, "runs": {"pp": run(0.4), "half": run(0.5)}}
    (panel,) = read_panels(panels, results, [older])
    found = {name: [(x, y) for x, y, _, _ in points] for name, points in panel["lines"].items()}
    assert found == {"share †": [(50, 50), (100, 40)], "main": [(100, 20)]}


def test_what_is_not_there_is_said(script, place, tmp_path):
    for words, said in (
        (["gather"], "no run of the grid is finished"),
        (["run", "nobody"], "no run 'nobody' in the grid"),
        (["tables", "--results", tmp_path / "none.json", "--document", tmp_path / "grid.yaml"], "gather` writes it"),
        (["worst", "pp"], "run pp: not finished"),
    ):
        done = invoke(script, place, tmp_path, *words)
        assert done.exit_code == 2 and said in done.output, done.output


# Verdicts on made-up counts, and causes of made-up errors.
HALF = RatioCounts.of([[(i % 2, 1) for i in range(200)]])
MORE = RatioCounts.of([[(int(i % 4 > 0), 1) for i in range(200)]])  # 3 in 4
SAME = RatioCounts.of([[(int(i % 2 == 0), 1) for i in range(200)]])  # a half too, but others


def verdict(relation, a, b=None, metric="ner exact", value=None):
    claim = Claim("x", "says", "a", relation, metric, than=None if b is None else "b", value=value)
    return judge(claim, a, b, resamples=1000)["verdict"]


@pytest.mark.parametrize("metric, more", [("ner exact", "supported"), ("wer", "not supported")])
def test_more_is_better_but_for_word_errors(metric, more):
    less = {"supported": "not supported", "not supported": "supported"}[more]
    assert verdict("better", MORE, HALF, metric) == verdict("not worse", MORE, HALF, metric) == more
    assert verdict("better", HALF, MORE, metric) == verdict("not worse", HALF, MORE, metric) == less


def test_what_cannot_be_told_apart():
    assert verdict("better", HALF, SAME) == "undecided"
    assert verdict("not worse", HALF, SAME) == "undecided"  # of 200 utterances: a loss of ten points could hide
    assert verdict("not worse", HALF, HALF) == "supported"
    assert verdict("better", HALF, HALF) == "undecided"
    nothing = RatioCounts.of([[(0, 1) for _ in range(200)]])
    assert verdict("not worse", nothing, nothing) == "undecided"
    assert verdict("not worse", nothing, nothing, "wer") == "supported"
    assert judge(Claim("x", "", "a", "better", "wer", than="b"), HALF, None)["verdict"] == "not run"
    assert judge(Claim("x", "", "a", "better", "wer", than="b"), None, HALF)["verdict"] == "not run"


@pytest.mark.parametrize(
    "low, high, said",
    [
        (-0.009, 0.03, "supported"),
        (-0.011, 0.03, "undecided"),
        (-0.009, -0.001, "not supported"),
        (0.0, 0.0, "supported"),
    ],
)
def test_not_worse_leaves_at_most_a_point(low, high, said):
    record = {"relation": "not worse", "metric": "scd text", "value": None, "a": 0.5, "b": 0.5, "interval": [low, high]}
    assert verdict_of(record) == said
    assert verdict_of({**record, "metric": "wer", "interval": [-high, -low]}) == said


def test_values_are_reached_with_the_whole_interval():
    reached = {value: verdict("reaches", MORE, value=value) for value in (0.5, 0.75, 0.9)}
    assert reached == {0.5: "supported", 0.75: "undecided", 0.9: "not supported"}
    below = {value: verdict("reaches", MORE, value=value, metric="wer") for value in (0.5, 0.75, 0.9)}
    assert below == {0.5: "not supported", 0.75: "undecided", 0.9: "supported"}


def test_numbers_stand_beside_the_verdict():
    record = judge(Claim("x", "more", "a", "better", "ner exact", than="b"), MORE, HALF)
    assert record["difference"] == pytest.approx(0.25) and record["cuts"] == 200
    assert record["interval"][0] < 0.25 < record["interval"][1]
    row = claims_table({"claims": [record]}, (), ())[1]
    assert row[0] == "more (NER F1; `a` / `b`)" and row[1] == "75.0, 50.0" and row[2].startswith("+25.0 (")
    both = RatioCounts.of([[(int(i % n > 0), 1) for i in range(200)] for n in (2, 4)])  # seeds of 50 and 75%
    record = judge(Claim("x", "more", "a", "better", "ner exact", than="b"), both, HALF)
    assert claims_table({"claims": [record]}, (), ())[1][1] == "62.5 ±17.7, 50.0"
    assert fill("<!-- table: claims -->\n", {"claims": []}).count("Nothing has been run yet.") == 1


def test_the_claims_of_the_recipe_name_runs_of_the_grid(tmp_path):
    claims, grid = read_claims(GRID.with_name("claims.yaml")), load_grid(GRID, ROOT)
    assert {name for claim in claims for name in (claim.run, claim.than) if name} <= set(grid.runs)
    assert len({claim.id for claim in claims}) == len(claims)
    for text in ("[{id: a}]", "[{id: a, says: b, run: c, is: nice, metric: wer}]",
                 "[{id: a, says: b, run: c, is: better, metric: wer}]"):  # fmt: skip
        (tmp_path / "claims.yaml").write_text(f"claims: {text}")
        with pytest.raises(UserError, match="claim a: "):
            read_claims(tmp_path / "claims.yaml")


def utterance(ref, hyp, **changes):
    ref, hyp = tuple(ref.split()), tuple(hyp.split())
    plain = Utterance("u", "c", "nl", 2.5, ref, hyp, None, 0.9, (50,) * len(ref))
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    "found, why",
    [
        (utterance("een twee drie", "un deux trois", hyp_language="fr"), "wrong language"),
        (utterance("een twee drie", ""), "nothing written"),
        (utterance("een twee drie vier", "een nee nee nee"), "repetition made up"),
        (utterance("nee nee nee vierentwintig", "nee nee nee zes", hyp_language="nl"), "no rule holds"),
        (utterance("een twee drie vier vijf zes", "een vijf zes"), "run of words left out"),
        (utterance("een twee drie vier", "een twee drie vier en nog"), "no rule holds"),
        (utterance("een twee", "een twee en nog wat"), "words made up"),
        (utterance("een twee", "zes negen", seconds=0.8), "clip under 1 s"),
        (utterance("een twee drie vier", "eentwee drie vier"), "words split or joined"),
        (utterance("eentje twee drie", "eentjes twee dries"), "nearly right in letters"),
        (utterance("een twee drie", "zes acht drie", seen=(0, 2, 9)), "words rare in training"),
        (utterance("a b c d", "x y c d", seen=(0, 9, 9, 9)), "words unseen in training"),
        (utterance("een twee drie vier", "zes acht drie vier", seconds=0.99 + 0.005), "clip under 1 s"),
        (utterance("aa bb cc dd ee", "xx yy cc dd ee", seconds=1.2), "fast speech"),
        (utterance("een twee drie", "zes acht drie", confidence=0.3), "unsure: mean confidence under 0.5"),
    ],
)
def test_causes(found, why):
    assert cause(found) == why


def test_repetitions_and_order():
    assert repeated("a b a b a b".split()) == 3 and repeated(["a"]) == 1 and repeated([]) == 0
    most, half, short = utterance("a b c d", "x y"), utterance("a b c d", "x y c d"), utterance("a", "x y z")
    assert worst([half, short, most], 2) == [most, half]
    assert worst([half, short], 2, min_words=1) == [short, half]
    assert worst([half, utterance("a b c d e f g h i j", "x y z w")], 1, by="errors")[0].errors == 10


def test_failures_are_shown_without_texts():
    right, wrong = utterance("een twee drie", "een twee drie"), utterance("een twee drie", "vier vijf zes")
    found = {"failures": {"pp": without_texts([right] * 30 + [wrong] * 2)}}
    filled = fill("<!-- table: worst pp -->\n<!-- table: causes pp -->\n<!-- table: worst other -->\n", found)
    rows = [line for line in filled.splitlines() if line.startswith("| ")]
    assert len([row for row in rows if row.startswith("| u |")]) == 20 and "100" in rows[2]
    assert "drie" not in filled and "zes" not in filled
    assert rows[-1] == f"| {cause(wrong)} | 2 | 6 |" and filled.count("Nothing has been run yet.") == 1


def fillets(language, number, seconds):
    half = {"text": "een twee", "language": language, "duration": seconds / 2}
    turns = [{**half, "speaker": "a", "endpoint": False, "start": 0.0},
             {**half, "speaker": "b", "endpoint": True, "start": seconds / 2}]  # fmt: skip
    return make_cut(f"{language}-{number}", turns, ["asr", "scd", "endp", "lid"], seconds, corpus="fillets")


@given(st.integers(0, 9), st.integers(2, 3), st.lists(st.floats(1, 30), min_size=1, max_size=20))
def test_parts_are_alike_and_drawn_by_the_seed(seed, parts, lengths):
    cuts = [fillets(language, i, x) for language in ("nl", "cs") for i, x in enumerate(lengths)]
    rows = [ManifestRow("here", b"", cut.to_dict()) for cut in cuts]
    found = divided(rows, parts, seed)
    assert divided(rows[::-1], parts, seed) == found and set(found) == {cut.id for cut in cuts}
    for language in ("nl", "cs"):
        ids = [[cut for cut in cuts if found[cut.id] == n and cut.id.startswith(language)] for n in range(parts)]
        sizes, seconds = [len(part) for part in ids], [sum(cut.duration for cut in part) for part in ids]
        assert max(sizes) - min(sizes) <= 1 and max(seconds) - min(seconds) <= 2 * max(lengths)


def test_halves_lose_the_labels_of_the_other_half(tmp_path):
    cuts = [fillets(language, i, 2.0 + i) for language in ("nl", "cs") for i in range(8)]
    cuts.append(make_cut("other", [{"text": "tres", "language": "es"}], ["asr", "lid"], corpus="asterisk"))
    source, output = tmp_path / "cuts.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts))
    how = load_grid(GRID, ROOT).manifests["halves"]
    drawn = {}
    for seed in (1, 2):
        derive(source, output, how, seed)
        found = list(read_manifest(output))
        validate_cuts(found)
        drawn[seed] = {cut.id: tuple(cut.custom["tasks"]) for cut in found}
        assert sorted(drawn[seed].values()) == [("asr", "endp", "lid")] * 8 + [("asr", "scd", "lid")] * 8
        with_endpoint = {cut.id for cut in found if any("endpoint" in turn.custom for turn in cut.supervisions)}
        assert with_endpoint == {name for name, tasks in drawn[seed].items() if "endp" in tasks}
    assert drawn[1] != drawn[2] and how.is_drawn

    # Claimed empty: the same halves, and what a cut lost is said not to be there.
    derive(source, output, load_grid(GRID, ROOT).manifests["halves_claimed"], 2)
    for cut in read_manifest(output):
        assert cut.custom["tasks"] == ["asr", "scd", "endp", "lid"]
        speakers, ends = (
            {turn.speaker for turn in cut.supervisions},
            [turn.custom["endpoint"] for turn in cut.supervisions],
        )
        assert (speakers, ends) == (
            ({"a", "b"}, [False] * 2) if "scd" in drawn[2][cut.id] else ({"unknown"}, [False, True])
        )
    with pytest.raises(UserError, match="only and divide"):
        Derivation.of({"only": ["scd"], "divide": [["scd"], ["endp"]]})


def test_parts_are_planned_in_order_and_each_run_once(place, tiny_corpus, tmp_path):
    grid = load_grid(GRID, ROOT)
    parts = [[run.name for run in part] for part in grid.plan(())]
    assert parts[0][:2] == ["start", "tokenverse_pp"] and "halves_claimed" in parts[1] and "tokenverse" not in parts[1]
    names = [name for part in parts for name in part]
    assert len(set(names)) == len(names) and set(names) == {name for name, run in grid.runs.items() if not run.hyps}
    assert [run.name for run in grid.plan(["forms"])[0]][:3] == ["start", "form_masks_first", "form_centred"]
    with pytest.raises(UserError, match="no run 'nobody'"):
        load_grid(write_grid(tiny_corpus, tmp_path / "other.yaml", parts={"main": ["nobody"]}), ROOT)


def test_a_dry_run_says_what_would_be_done(script, place, tiny_corpus, toy_tasks, tmp_path):
    write_grid(tiny_corpus, tmp_path / "grid.yaml", parts={"main": ["asr"]})
    finish(place.folder(place.grid.runs["pp"], 1), perfect(tiny_corpus, toy_tasks))
    before = sorted(place.exp_dir.rglob("*"))
    said = invoke(script, place, tmp_path, "run", "--dry-run")
    rows = [line.split() for line in said.output.splitlines()]
    assert [row[:2] for row in rows[1:]] == [["asr", "1"], ["pp", "1"], ["sets", "1"], ["pp", "2"]]
    assert rows[2][2] == "finished" and rows[2][-3:-1] == ["0.0", "0.0"] and rows[3][2] == "trained"
    hours = [float(row[-1]) for row in rows[1:]]
    assert hours == sorted(hours) and hours[0] == hours[1] > 0
    said = invoke(script, place, tmp_path, "run", "--dry-run", "--hours", (hours[1] + hours[2]) / 2)
    assert "not within" in said.output and "sets seed 1 and what follows" in said.output and "pp   2" not in said.output
    # Nothing fits, so nothing is started.
    said = invoke(script, place, tmp_path, "run", "--hours", 0)
    assert said.exit_code == 0 and "asr seed 1: would not be finished within 0 h" in said.output
    assert sorted(place.exp_dir.rglob("*")) == before


def test_results_from_before_are_kept_until_there_are_new_ones(script, place, tiny_corpus, toy_tasks, tmp_path):
    finish(place.folder(place.grid.runs["pp"], 1), perfect(tiny_corpus, toy_tasks))
    finish(place.folder(place.grid.runs["asr"], 1), perfect(tiny_corpus, toy_tasks, ["asr"]))
    (tmp_path / "claims.yaml").write_text(
        "claims: [{id: w, says: words, run: pp, is: better, than: asr, metric: wer}, "
        "{id: n, says: names, run: pp, is: reaches, value: 0.9, metric: ner exact}]"
    )
    oldest, old, new, document = (tmp_path / name for name in ("oldest.json", "old.json", "new.json", "page.md"))
    document.write_text(
        "<!-- table: runs pp asr | wer -->\n<!-- table: claims -->\n<!-- table: stages asr pp gone | wer -->\n"
    )

    def page(results, *older):
        claims = ["--claims", tmp_path / "claims.yaml"]
        given = ["--results", results, *(part for path in older for part in ("--older", path))]
        done = [
            invoke(script, place, tmp_path, *claims, "gather", "--resamples", 100, *given),
            invoke(script, place, tmp_path, "tables", *given, "--document", document),
        ]
        assert [x.exit_code for x in done] == [0, 0], [x.output for x in done]
        return document.read_text().splitlines()

    gone = {"about": "left the grid", "seeds": [], "scores": {}}
    oldest.write_text(json.dumps({"stage": {"name": "at first", "mark": "‡"}, "runs": {"gone": gone}}))
    rows = page(old, oldest)
    assert not any("†" in row or "‡" in row or "`gone`" in row for row in rows)
    found = json.loads(old.read_text())
    oldest.write_text(json.dumps({**json.loads(oldest.read_text()), "runs": {"pp": found["runs"]["pp"]}}))
    # Run again, pp alone is finished: asr is that of before, and so is the claim about both, by the rule of now.
    found["claims"][0]["verdict"] = "supported"
    old.write_text(json.dumps(found))
    place.folder(place.grid.runs["asr"], 1).output(place.grid.runs["asr"].decodings[0]).rename(tmp_path / "gone")
    rows = page(new, oldest, old)
    found = json.loads(new.read_text())
    assert found["runs"]["asr"]["before"] == "†" and "before" not in found["runs"]["pp"]
    assert [claim.get("before") for claim in found["claims"]] == ["†", None]
    assert found["claims"][0]["verdict"] == "undecided"  # 0 and 0
    assert any(row.startswith("| `asr` † |") for row in rows) and any(row.startswith("| `pp` | all") for row in rows)
    # asr was not run again, and no other stage has it: nothing to compare.
    compared = [row.split(" | ") for row in rows if row.startswith(("| `asr` | ", "| `pp` | "))]
    assert [row[1] for row in compared if row[1] != "all of it"] == ["at first", "before", "now"]


def test_fewer_tokens_of_tasks_switched_off_are_better():
    assert (
        verdict("better", HALF, MORE, "switched off scd")
        == verdict("better", MORE, HALF, "switched on scd")
        == "supported"
    )
    assert verdict("not worse", MORE, HALF, "switched wer alone") == "not supported"
    nothing = RatioCounts.of([[(0, 1) for _ in range(200)]])
    assert verdict("not worse", nothing, nothing, "switched off scd") == "supported"


def test_every_run_of_the_recipe_has_settings_that_training_takes():
    for run in load_grid(GRID, ROOT).runs.values():
        if not run.hyps and not run.of:
            config = check_config(from_dict(nested(run.settings)))
            check_activation(config)
            assert config.model.vectors.masked is (run.name != "form_masks_first"), run.name
