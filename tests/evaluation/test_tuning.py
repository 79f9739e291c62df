"""Tuning of the search: which value is chosen, that scores are those of decode.py, and the command line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from toy_runs import call, read_cuts

from tokenverse_pp.api.folders import save_with_biases
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.cli.tune import tune as tune_command
from tokenverse_pp.evaluation import tuning
from tokenverse_pp.evaluation.tuning import HeldOut, best_value, measure_of, tokens_to_tune, tune, with_value
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.models.checkpoint import WEIGHTS


@pytest.fixture(scope="module")
def held_out(finished_run, tiny_corpus):
    return HeldOut(load_model(finished_run), read_cuts(tiny_corpus, "test"), DecodeOptions())


def test_longer_cuts_than_the_window_are_refused(held_out, tiny_corpus):
    with pytest.raises(UserError, match=r"cut toy-.*at most the window, 0.9 s"):
        HeldOut(held_out.loaded, read_cuts(tiny_corpus, "test"), DecodeOptions(window=0.9, overlap=0.2))


def test_scores_are_those_of_decode(held_out, finished_run, tiny_corpus, decode_script, tmp_path):
    given_ = ["--model", finished_run, "--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--no-report", "--threads", 1]
    changes = ["--blank-penalty", 0.5, "--token-bias", "[SCD]=-1"]
    assert call(decode_script.main, *given_, "--output-dir", tmp_path, *changes).code == 0
    expected = json.loads((tmp_path / "scores.json").read_text())
    found = held_out.scores(SearchOptions(blank_penalty=0.5, token_bias=(("[SCD]", -1.0),)))
    for name in ("wer", "scd", "endp", "ner", "lid"):
        assert json.loads(json.dumps(found[name])) == expected[name], name
    assert measure_of("blank_penalty", found) == 1 - expected["wer"]["all"]["wer"]
    assert measure_of("[SCD]", found) == expected["scd"]["text"]["f1"]


def test_numbers_are_fitted_one_after_the_other(held_out, monkeypatch):
    """Made-up measures with their tops at a blank_penalty of 1.1 and a bias of -0.8 of [SCD]."""

    def scores(self, search):
        bias = dict(search.token_bias).get("[SCD]", 0.0)
        wer = 0.1 + (search.blank_penalty - 1.1) ** 2
        f1 = 0.9 - (bias + 0.8) ** 2 - (search.blank_penalty - 0.75) ** 2
        return {"wer": {"all": {"wer": wer}}, "scd": {"text": {"f1": f1, "tp": 3, "fn": 1}}}

    monkeypatch.setattr(HeldOut, "scores", scores)
    tried = []
    start = SearchOptions(beam=3, blank_penalty=9.0, token_bias=(("[ENDP]", 4.0),))
    found = tune(held_out, start, tell=tried.append)
    assert found == SearchOptions(beam=3, blank_penalty=1.0, token_bias=(("[SCD]", -0.75),))
    assert [(t.name, t.value) for t in tried] == [(n, v) for n in ("blank_penalty", "[SCD]") for v in tuning.VALUES]
    table = tuning.table_of(tried, held_out.scores(found))
    assert len(table.splitlines()) == 2 + len(tried) and table.splitlines()[-1].split() == [
        "all",
        "found",
        "11.0",
        "83.5",
    ]


@pytest.mark.parametrize("top, highest", [(1.25, 2.0), (2.0, 2.5), (3.1, 3.5), (9.0, 5.0), (None, 2.0)])
def test_values_above_are_tried_while_scores_rise(held_out, monkeypatch, top, highest):
    """A token that training hardly taught, such as a mark of punctuation, needs more than 2 nats. None: no effect."""

    def scores(self, search):
        bias = dict(search.token_bias).get("[SCD]", 0.0)
        f1 = 0.5 if top is None else 0.9 - 0.01 * (bias - top) ** 2
        return {"wer": {"all": {"wer": 0.1}}, "scd": {"text": {"f1": f1, "tp": 3, "fn": 1}}}

    monkeypatch.setattr(HeldOut, "scores", scores)
    tried = []
    tune(held_out, SearchOptions(), ["[SCD]"], tried.append)
    assert max(t.value for t in tried if t.name == "[SCD]") == highest
    assert [t.value for t in tried if t.name == "blank_penalty"] == list(tuning.VALUES)


def test_a_single_lucky_value_is_not_chosen():
    values = [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    assert best_value(values, [0.1, 0.99, 0.1, 0.7, 0.8, 0.7, 0.1]) == 1.0
    assert best_value(values, [0.5] * 7) == 0.0
    assert best_value(values, [0.1, 0.1, 0.1, 0.7, 0.8, 0.81, 0.8]) == 1.0  # nearly as much as 1.5
    assert best_value(values, [0.0, 0.0, 0.0, 0.45, 0.5, 0.6, 0.6]) == 1.5  # 1.0 has 80% of the gain, 8 points less


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_value_has_most_of_the_best_gain(measures):
    found = best_value([-1, 0, 1], measures)
    rating = {-1: sum(measures[:2]) / 2, 0: sum(measures) / 3, 1: sum(measures[1:]) / 2}
    assert rating[found] - rating[0] >= 0.75 * (max(rating.values()) - rating[0]) - 1e-8


def test_tokens_are_those_with_references(held_out):
    scores = {"scd": {"text": {"tp": 0, "fn": 2}}, "endp": {"text": {"tp": 0, "fn": 0, "fp": 5}}}
    assert tokens_to_tune(held_out.tasks.symbols, scores, ()) == ["[SCD]"]
    assert tokens_to_tune(["[ENDP]"], scores, ()) == []
    for token in ("[ENDP]", "[XY]"):
        with pytest.raises(UserError, match=r"--token: .*have references of \[SCD\]"):
            tokens_to_tune(held_out.tasks.symbols, scores, (token,))


def test_values_of_0_are_left_out():
    search = with_value(with_value(SearchOptions(), "[SCD]", 1.0), "[ENDP]", -1.0)
    assert dict(search.token_bias) == {"[SCD]": 1.0, "[ENDP]": -1.0}
    assert with_value(search, "[SCD]", 0.0).token_bias == (("[ENDP]", -1.0),)


def test_the_command_prints_options_for_decode(finished_run, tiny_corpus, monkeypatch):
    monkeypatch.setattr(tuning, "VALUES", (-99.0, 0.0, 0.25))
    monkeypatch.setattr(tuning, "MOST", 0.25)
    cuts = tiny_corpus / "cuts_test.jsonl.gz"
    arguments = ["--model", finished_run, "--cuts", cuts, "--token", "[SCD]", "--threads", 1, "--device", "cpu"]
    done = CliRunner().invoke(tune_command, list(map(str, [*arguments, "--first", 4])))
    assert done.exit_code == 0, done
    lines = done.stdout.splitlines()
    assert sum(line.startswith("[SCD]") for line in lines) == 3 and lines[-1].startswith("options: ")
    failure = call(tune_command.main, *arguments, "--token", "[XY]")
    assert failure.code == 2 and "error: --token: '[XY]': these cuts have references of [SCD]" in failure.stderr


def test_a_saved_model_decodes_without_options_as_with_them(held_out, tiny_corpus, monkeypatch, tmp_path):
    folder, cuts = held_out.loaded.folder, tiny_corpus / "cuts_test.jsonl.gz"
    monkeypatch.setattr(tuning, "tune", lambda *_: SearchOptions(blank_penalty=0.5, token_bias=(("[SCD]", 1.25),)))
    arguments = ["--model", folder, "--cuts", cuts, "--threads", 1, "--device", "cpu", "--output-dir", tmp_path / "out"]
    done = CliRunner().invoke(tune_command, list(map(str, arguments)))
    assert done.exit_code == 0, done
    assert done.stdout.splitlines()[-1] == (
        f"model: {tmp_path / 'out'}, with these biases in its joiner; decode it with --blank-penalty 0.5"
    )
    saved = load_model(tmp_path / "out")
    expected = held_out.scores(SearchOptions(token_bias=(("[SCD]", 1.25),)))
    assert HeldOut(saved, read_cuts(tiny_corpus, "test"), DecodeOptions()).scores(SearchOptions()) == expected
    old, new = (load_file(path / WEIGHTS) for path in (folder, tmp_path / "out"))
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed == ["joiner.output.bias"] and (old[changed[0]] != new[changed[0]]).sum() == 1
    again = call(tune_command.main, *arguments)
    assert again.code == 2 and "expected a new or empty folder" in again.stderr


def test_links_in_a_models_own_encoder_are_not_followed(held_out, tmp_path):
    """A folder from elsewhere must not bring files of this machine into the copy."""
    shutil.copytree(held_out.loaded.folder, tmp_path / "model", ignore=shutil.ignore_patterns("encoder"))
    (tmp_path / "model" / "encoder").mkdir()
    (tmp_path / "secret").write_text("of this machine")
    (tmp_path / "model" / "encoder" / "config.json").symlink_to(tmp_path / "secret")
    loaded = replace(held_out.loaded, folder=tmp_path / "model")
    with pytest.raises(UserError, match="link"):
        save_with_biases(loaded, tmp_path / "out", SearchOptions(token_bias=(("[SCD]", 1.0),)))
    assert not (tmp_path / "out").exists()


def test_a_cut_shorter_than_a_frame_says_nothing(held_out, tiny_corpus):
    cuts = read_cuts(tiny_corpus, "test")[:2]
    short = cuts[0].truncate(duration=0.001).with_id("short")
    found = HeldOut(held_out.loaded, [short, cuts[1]], DecodeOptions())
    assert [cut.id for cut in found.silent] == ["short"]
    assert found.scores(SearchOptions())["utterances"] == 2
