"""Validation: the loss of all labelled tasks, whatever the batches, and word errors without task tokens."""

import pytest
import torch
from lhotse import CutSet
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.search import Hypothesis
from tokenverse_pp.training import validate
from tokenverse_pp.training.distributed import World
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
        scores = validate.Validator(cuts, parts.dataset, parts.config, World())(parts.model)
        assert scores["loss"] == pytest.approx(sum(losses) / frames, rel=1e-4)
        assert scores["loss_per_token"] == pytest.approx(sum(losses) / tokens, rel=1e-4)
    assert parts.model.training  # as it was


def test_word_errors_are_counted_without_task_tokens(tiny_corpus, parts, monkeypatch):
    cuts = read_cuts(tiny_corpus, "dev")
    # One word too many in each utterance, and none of its task tokens.
    texts = {cut.duration: " ".join(sup.text for sup in cut.supervisions) + " ba" for cut in cuts}
    words = sum(len(text.split()) - 1 for text in texts.values())
    durations = iter(sorted(texts))

    def found(predictor, joiner, out, lens, options):
        ids = [parts.tokenizer.encode(texts[next(durations)]) for _ in lens]
        return [[Hypothesis(tuple(i), tuple(range(len(i))), (0.0,) * len(i), 0.0, 0.0)] for i in ids]

    monkeypatch.setattr(validate, "search_frames", found)
    parts.config.data.max_duration = 8.0
    scores = validate.Validator(cuts, parts.dataset, parts.config, World())(parts.model)
    assert scores["wer"] == pytest.approx(len(cuts) / words)


def test_ranks_share_the_cuts(tiny_corpus, parts):
    cuts = read_cuts(tiny_corpus)
    found = []
    for rank in range(3):
        batches = validate.Validator(cuts, parts.dataset, parts.config, World(rank, 3)).batches
        found += [cut.id for batch in batches for cut in batch]
    assert sorted(found) == sorted(cut.id for cut in cuts)
