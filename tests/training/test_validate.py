"""Validation: the loss of all labelled tasks, whatever the batches, and word errors without task tokens."""

import math

import numpy as np
import pytest
import torch
from lhotse import CutSet
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data import dataset
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.training import validation as validate
from tokenverse_pp.training.steps import forward


@pytest.fixture(scope="module")
def parts(tiny_corpus):
    return toy_parts(tiny_corpus, tasks__activation="subset")


def test_loss_is_that_of_all_labelled_tasks_in_any_batches(tiny_corpus, parts):
    cuts = read_cuts(tiny_corpus, "dev")
    losses, frames, tokens = [], 0, 0
    for cut in cuts:
        parts.dataset.activation.mode = "labelled"
        batch = parts.dataset[CutSet.from_cuts([cut])]
        parts.dataset.activation.mode = "subset"
        with torch.no_grad():
            found = forward(parts.model.eval(), batch, stored=False)
        losses.append(float(found.pruned))
        frames += int(found.frames)
        tokens += int(batch["token_lens"])
    parts.model.train()
    for seconds in (1.0, 8.0, 100.0):
        parts.config.data.max_duration = seconds
        scores = validate.Validator(cuts, parts.dataset, parts.config, DistributedContext())(parts.model)
        assert scores["loss"] == pytest.approx(sum(losses) / frames, rel=1e-4)
        assert scores["loss_per_token"] == pytest.approx(sum(losses) / tokens, rel=1e-4)
    assert parts.model.training  # as it was


def test_combination_that_training_has_not_had_is_scored(tiny_corpus):
    """It may come after the first validation; only users are refused what was never trained."""
    parts = toy_parts(tiny_corpus, model__vectors__strategy="combination", model__vectors__placement="both")
    cuts = read_cuts(tiny_corpus, "dev")[:1]
    forward(parts.model.train(), parts.dataset[CutSet.from_cuts([cuts[0].with_custom("tasks", ["asr", "lid"])])], False)
    assert parts.model.feature_vectors.trained.sum() == 1
    scores = validate.Validator(cuts, parts.dataset, parts.config, DistributedContext())(parts.model)
    assert math.isfinite(scores["loss"])


def test_scores_are_those_of_each_cuts_labelled_tasks(tiny_corpus, parts, monkeypatch):
    cuts = read_cuts(tiny_corpus, "dev")
    unlabelled = cuts[0].with_custom("tasks", ["asr", "lid"])
    cuts = [unlabelled, *cuts[1:]]
    targets = {cut.duration: parts.dataset.target(cut, cut.custom["tasks"]).tolist() for cut in cuts}
    word = parts.tokenizer.encode("ba")
    durations = iter(sorted(targets))
    asked = []

    def found(predictor, joiner, out, lens, options, constraints, bonus):
        # The reference itself, and one word too many.
        ids = [targets[next(durations)] + word for _ in lens]
        asked.extend(constraints)
        return [[Hypothesis(tuple(i), tuple(range(len(i))), (0.0,) * len(i), 0.0, 0.0)] for i in ids]

    monkeypatch.setattr("tokenverse_pp.decoding.recognizer.search_frames", found)
    parts.config.data.max_duration = 8.0
    scores = validate.Validator(cuts, parts.dataset, parts.config, DistributedContext())(parts.model)
    words = sum(len(sup.text.split()) for cut in cuts for sup in cut.supervisions)
    assert scores["wer"] == pytest.approx(len(cuts) / words)
    assert scores["lid_accuracy"] == 1.0 and scores["ner_f1"] == 1.0 and scores["scd_f1"] == 1.0
    # The tokens of what a cut is not labelled for are suppressed there, and there only.
    scd = parts.tokenizer.id_of("[SCD]")
    at = sorted(cuts, key=lambda cut: cut.duration).index(unlabelled)
    suppressed = [np.isinf(constraints.weights[:, scd]).all() for constraints in asked]
    assert suppressed == [i == at for i in range(len(cuts))]
    # As in decode.py, a language token comes first.
    front = {parts.tokenizer.id_of(symbol) for symbol in parts.tasks["lid"].symbols}
    for constraints in asked:
        assert set(np.flatnonzero(constraints.weights[0] == 0)) - {0} == front


def test_log_probabilities_are_split_by_task(tiny_corpus, parts, monkeypatch):
    cuts = read_cuts(tiny_corpus, "dev")
    ids = {name: {parts.tokenizer.id_of(s) for s in parts.tasks[name].symbols} for name in parts.tasks.names}
    value = {name: -float(i + 1) for i, name in enumerate(parts.tasks.names)}

    def log_probs(out, lens, tokens, token_lens):
        names = [[next((n for n in ids if int(t) in ids[n]), "asr") for t in row] for row in tokens]
        return torch.tensor([[value[n] for n in row] for row in names])

    monkeypatch.setattr(parts.model, "token_log_probs", log_probs)
    scores = validate.Validator(cuts, parts.dataset, parts.config, DistributedContext())(parts.model)
    found = {name: scores[f"log_prob_{name}"] for name in parts.tasks.names}
    assert found == pytest.approx(value)


def test_log_probabilities_of_a_real_model(tiny_corpus, parts):
    cuts = read_cuts(tiny_corpus, "dev")
    scores = validate.Validator(cuts, parts.dataset, parts.config, DistributedContext())(parts.model)
    # An untrained model is about as sure as a uniform guess.
    assert scores["log_prob_asr"] == pytest.approx(-math.log(parts.tokenizer.vocab_size), abs=1.5)
    assert "valid loss" in validate.describe(scores) and "scd_f1" in validate.describe(scores)


def test_ranks_share_the_cuts(tiny_corpus, parts):
    cuts = read_cuts(tiny_corpus)
    found = []
    for rank in range(3):
        batches = validate.Validator(cuts, parts.dataset, parts.config, DistributedContext(rank, 3)).batches
        found += [cut.id for batch in batches for cut in batch]
    assert sorted(found) == sorted(cut.id for cut in cuts)


def test_cuts_with_samples_of_nan_are_named_and_left_out(tiny_corpus, parts, caplog, monkeypatch):
    """The scores are those of the other cuts, in a batch with them or in one of its own."""
    cuts, load = read_cuts(tiny_corpus, "dev")[:3], dataset.load_inputs
    bad = set()

    def loaded(cut, *args, **options):
        samples = load(cut, *args, **options)
        return samples.fill_(math.nan) if cut.id in bad else samples

    monkeypatch.setattr(dataset, "load_inputs", loaded)
    for seconds in (1.0, 100.0):
        parts.config.data.max_duration = seconds
        bad.clear()
        expected = validate.Validator(cuts[1:], parts.dataset, parts.config, DistributedContext())(parts.model)
        bad.add(cuts[0].id)
        validator = validate.Validator(cuts, parts.dataset, parts.config, DistributedContext())
        for _ in range(2):
            assert validator(parts.model) == pytest.approx(expected, rel=1e-4)
        assert [r.message for r in caplog.records] == [
            f"data.valid: cut {cuts[0].id} is left out: it has samples of NaN or infinity"
        ]
        caplog.clear()
    bad.update(cut.id for cut in cuts)
    with pytest.raises(UserError, match=r"--data\.valid: no cut is left"):
        validate.Validator(cuts, parts.dataset, parts.config, DistributedContext())(parts.model)
