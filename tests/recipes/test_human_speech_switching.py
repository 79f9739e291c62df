"""recipes/human_speech/switching.py: what a model writes with all task vectors and with that of asr alone."""

import json

import click.testing
import pytest
from scripts import ROOT, load_script
from tiny_models import write_model
from toy_runs import read_cuts

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.models.transducer import SpecAugment
from tokenverse_pp.tasks import transcript_of

OPTIONS = DecodeOptions(SearchOptions("greedy", force_language=False))


@pytest.fixture(scope="module")
def switching():
    return load_script(ROOT / "recipes" / "human_speech" / "switching.py", "human_speech_switching")


@pytest.fixture(scope="module")
def model(tiny_corpus, tmp_path_factory):
    return write_model(tiny_corpus, tmp_path_factory.mktemp("switching") / "model")


def share(counts, metric):
    return sum(n for n, _ in counts[metric].values()) / sum(d for _, d in counts[metric].values())


def test_a_model_that_heeds_its_vectors_and_one_that_does_not(switching, model, tiny_corpus, monkeypatch):
    loaded, cuts = load_model(model), read_cuts(tiny_corpus, "test")
    tasks = loaded.tasks

    def written(obeys):
        def texts(loaded, cuts, active, options):
            names = active if obeys else tasks.names
            return {cut.id: tasks.subset(names).render(transcript_of(cut, tasks)).split() for cut in cuts}

        return texts

    found = {}
    for obeys in (True, False):
        monkeypatch.setattr(switching, "words_and_tokens", written(obeys))
        found[obeys] = switching.count_switching(loaded, cuts, OPTIONS)
        assert share(found[obeys], "switched wer all") == share(found[obeys], "switched wer alone") == 0
        assert share(found[obeys], "switched on lid") == 1 and share(found[obeys], "switched on endp") > 0
    for task in ("scd", "endp", "ner", "lid"):
        assert share(found[True], f"switched off {task}") == 0
        assert found[False][f"switched off {task}"] == found[False][f"switched on {task}"]

    # Cuts that are not labelled for a task do not count for it.
    cuts[0].custom["tasks"] = ["asr", "lid"]
    counts = switching.count_switching(loaded, cuts, OPTIONS)
    assert cuts[0].id not in counts["switched off scd"] and cuts[0].id in counts["switched off lid"]
    rows = {row[0]: row[1:] for row in switching.table(counts)}
    assert rows["switched on lid"] == ["100.0", "4"] and rows["switched off scd"][1] == "3"
    # Without a list of tasks they have no labels at all, no words either.
    cuts[0].custom = None
    counts = switching.count_switching(loaded, cuts, OPTIONS)
    assert {len(ratios) for ratios in counts.values()} == {3} and cuts[0].id not in counts["switched wer all"]


def test_nothing_is_suppressed_and_the_vectors_are_those_of_the_active_tasks(switching, model, tiny_corpus):
    loaded, cuts = load_model(model), read_cuts(tiny_corpus, "test")
    # Without a difference between the vectors, tasks that are off are written as if they were on.
    loaded.model.feature_vectors.requires_grad_(False)
    for weights in loaded.model.feature_vectors.parameters():
        weights.zero_()
    both = [switching.words_and_tokens(loaded, cuts, names, OPTIONS) for names in (loaded.tasks.names, ["asr"])]
    assert both[0] == both[1]
    assert any(word in loaded.tasks.symbols for text in both[1].values() for word in text)
    for weights in loaded.model.feature_vectors.parameters():
        weights.normal_(std=3.0)
    assert switching.words_and_tokens(loaded, cuts, ["asr"], OPTIONS) != both[1]


def test_the_command_writes_counts_of_every_cut(switching, model, tiny_corpus, tmp_path):
    words = ["--model", model, "--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--output-dir", tmp_path, "--threads", 1]
    done = click.testing.CliRunner().invoke(switching.main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    cuts = read_cuts(tiny_corpus, "test")
    counts = json.loads((tmp_path / "switching.json").read_text())["counts"]
    for state in ("on", "off"):
        for task in ("scd", "endp", "ner", "lid"):
            assert set(counts[f"switched {state} {task}"]) == {cut.id for cut in cuts if task in labelled_tasks(cut)}
    assert set(counts["switched wer alone"]) == {cut.id for cut in cuts} and "switched wer alone" in done.output


def test_chunks_are_those_of_the_command_line(switching, model, tiny_corpus, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(switching, "count_switching", lambda loaded, cuts, options: seen.append(options.chunks) or {})
    words = ["--model", model, "--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--output-dir", tmp_path]
    for more in ([], ["--chunk-ms", 320, "--left-chunks", 4, "--sinks", 16]):
        done = click.testing.CliRunner().invoke(switching.main, [str(word) for word in words + more])
        assert done.exit_code == 0, done.output
    assert seen == [None, ChunkOptions(320, 4, 16)]


@pytest.mark.parametrize("words", [[], ["--masked"]])
def test_features_are_masked_on_demand(switching, model, tiny_corpus, tmp_path, monkeypatch, words):
    masks = []
    monkeypatch.setattr(SpecAugment, "forward", lambda self, x, lens: masks.append(self.training) or x)
    words = [*words, "--model", model, "--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--output-dir", tmp_path]
    done = click.testing.CliRunner().invoke(switching.main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0 and set(masks) == {"--masked" in words}


def test_a_model_without_vectors_has_nothing_to_switch(switching, tiny_corpus, tmp_path):
    plain = load_model(write_model(tiny_corpus, tmp_path / "plain", model__vectors__placement="none"))
    with pytest.raises(UserError, match="expected a model with task vectors"):
        switching.count_switching(plain, read_cuts(tiny_corpus, "test"), OPTIONS)
