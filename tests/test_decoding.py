"""Cuts to hypotheses: chosen tasks, barred tokens, and results that do not depend on the batches."""

import pytest
import torch
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.decoding import choose_tasks, decode
from tokenverse_pp.errors import UserError
from tokenverse_pp.search import SearchOptions
from tokenverse_pp.training.setup import Loaded
from tokenverse_pp.training.steps import forward

# An untrained model says little but blanks; the penalty has it say all kinds of things.
TALKATIVE = SearchOptions("greedy", blank_penalty=2.0)


def load(corpus, **changes):
    """An untrained model whose task vectors matter."""
    parts = toy_parts(corpus, **changes)
    torch.manual_seed(3)
    for vectors in (parts.model.feature_vectors, parts.model.encoder_vectors):
        if vectors is not None:
            torch.nn.init.normal_(vectors.table, std=0.5)
    # What it says changes with what it said, and task tokens are among it.
    torch.nn.init.normal_(parts.model.joiner.output.weight, std=0.1)
    torch.nn.init.normal_(parts.model.predictor.embedding.weight, std=2.0)
    with torch.no_grad():
        parts.model.predictor.embedding.weight[0] = 0.0
        parts.model.joiner.output.bias[[parts.tokenizer.id_of(symbol) for symbol in parts.tasks.symbols]] += 1.5
    return Loaded(parts.config, parts.tasks, parts.tokenizer, parts.model.eval())


@pytest.fixture(scope="module")
def loaded(tiny_corpus):
    return load(tiny_corpus, model__vectors__placement="both")


def run(loaded, cuts, names=(), options=TALKATIVE, **more):
    batches = decode(loaded, cuts, choose_tasks(loaded.tasks, names), options, **more)
    return {record["id"]: record for batch in batches for record in batch}


def test_tasks_are_chosen_by_name(loaded):
    assert choose_tasks(loaded.tasks, []).names == loaded.tasks.names
    assert choose_tasks(loaded.tasks, ["lid"]).names == ("asr", "lid")
    with pytest.raises(UserError, match=r"--tasks: 'sing' is not a task of this model, which knows asr, scd"):
        choose_tasks(loaded.tasks, ["asr", "sing"])


@pytest.mark.parametrize("names", [["asr"], ["lid"], ["scd", "ner"], ["asr", "scd", "endp", "ner", "lid"]])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_tokens_of_other_tasks_are_barred(tiny_corpus, loaded, names, method):
    found = run(loaded, read_cuts(tiny_corpus)[:6], names, SearchOptions(method, blank_penalty=2.0))
    said = {token for record in found.values() for token in record["tokens"] if token.startswith("[")}
    assert said <= set(loaded.tasks.subset(names).symbols)
    assert all(record["tasks"] == list(loaded.tasks.subset(names).names) for record in found.values())
    if len(names) == 5:
        assert len(said) >= 3  # so there was something to bar
    assert sum(len(record["tokens"]) for record in found.values()) > 30


def test_results_depend_neither_on_batches_nor_on_order(tiny_corpus, loaded):
    cuts = read_cuts(tiny_corpus)[:6]
    alone = run(loaded, cuts, max_duration=0.1)
    for order, seconds in ((cuts[::-1], 100.0), (cuts[3:] + cuts[:3], 7.0)):
        found = run(loaded, order, max_duration=seconds)
        assert found.keys() == alone.keys()
        for cut_id, record in alone.items():
            assert found[cut_id]["tokens"] == record["tokens"] and found[cut_id]["times"] == record["times"]
            assert found[cut_id]["score"] == pytest.approx(record["score"], rel=1e-3)


def test_active_tasks_reach_the_model(tiny_corpus, loaded):
    cuts = read_cuts(tiny_corpus)[:4]
    scores = [
        [record["score"] for record in run(loaded, cuts, names, SearchOptions("greedy")).values()]
        for names in (["asr"], ["asr", "lid"])
    ]
    # Blanks only, in both cases: what differs is the vectors.
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)


def test_languages_can_be_narrowed(tiny_corpus, loaded):
    options = SearchOptions("greedy", blank_penalty=2.0, languages=("qab",), force_language=True)
    found = run(loaded, read_cuts(tiny_corpus)[:4], [], options)
    assert {record["tokens"][0] for record in found.values()} == {"[QAB]"}
    assert {record["language"] for record in found.values()} == {"qab"}


def test_combination_that_was_never_trained_is_refused(tiny_corpus):
    loaded = load(tiny_corpus, model__vectors__strategy="combination")
    cuts = read_cuts(tiny_corpus)[:2]
    batch = toy_parts(tiny_corpus).dataset[cuts]
    loaded.model.train()
    forward(loaded.model, batch, stored=False)
    loaded.model.eval()
    assert len(run(loaded, cuts)) == 2
    with pytest.raises(UserError, match="never active in training"):
        run(loaded, cuts, ["asr"])


def test_nothing_to_decode(loaded):
    assert run(loaded, []) == {}


def test_output_that_is_no_number_names_the_cut(tiny_corpus):
    broken = load(tiny_corpus)
    with torch.no_grad():
        next(broken.model.encoder.parameters()).fill_(float("nan"))
    cut = read_cuts(tiny_corpus)[0]
    with pytest.raises(UserError, match=f"cut {cut.id}: .*NaN"):
        run(broken, [cut])
