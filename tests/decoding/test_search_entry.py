"""The one entry point: audio or stored features in, hypotheses out; what is no such input is named by its number."""

import numpy as np
import pytest
import torch
from toy_runs import toy_parts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.search import search
from tokenverse_pp.models.bundle import ModelBundle

TALKATIVE = SearchOptions(blank_penalty=2.0, nbest=3)


@pytest.fixture(scope="module")
def loaded(tiny_corpus):
    """An untrained model whose task vectors and task tokens matter."""
    parts = toy_parts(tiny_corpus, model__vectors__placement="features")
    torch.manual_seed(3)
    torch.nn.init.normal_(parts.model.feature_vectors.table, std=0.5)
    torch.nn.init.normal_(parts.model.joiner.output.weight, std=0.1)
    with torch.no_grad():
        parts.model.joiner.output.bias[[parts.tokenizer.id_of(symbol) for symbol in parts.tasks.symbols]] += 1.5
    return ModelBundle(parts.config, parts.tasks, parts.tokenizer, parts.model.eval())


@pytest.fixture(scope="module")
def audio():
    rng = np.random.default_rng(1)
    return [rng.normal(0, 0.1, size).astype(np.float32) for size in (24000, 9000, 16001, 30000)]


@pytest.fixture(scope="module")
def features(loaded, audio):
    with torch.no_grad():
        found = [loaded.model.encoder.extract(torch.tensor(a)[None], torch.tensor([len(a)]))[0][0] for a in audio]
    return found


def same(found, expected):
    assert [[h.tokens for h in hypotheses] for hypotheses in found] == [[h.tokens for h in hs] for hs in expected]
    for a, b in zip(found, expected):
        assert [h.score for h in a] == pytest.approx([h.score for h in b], rel=1e-3)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_batch_gives_what_each_utterance_gives_alone(loaded, audio, method):
    options = SearchOptions(method, blank_penalty=2.0)
    together = search(loaded, audio, None, options)
    assert sum(len(best.tokens) for best, *_ in together) > 20
    same(together, [search(loaded, [a], None, options)[0] for a in audio])


def test_arrays_tensors_lists_of_doubles_and_stored_features_give_the_same(loaded, audio, features):
    expected = search(loaded, audio, ["asr", "lid"], TALKATIVE)
    same(search(loaded, [torch.tensor(a) for a in audio], ["asr", "lid"], TALKATIVE), expected)
    same(search(loaded, [a.astype(np.float64) for a in audio], ["asr", "lid"], TALKATIVE), expected)
    same(search(loaded, features, ["asr", "lid"], TALKATIVE), expected)
    same(search(loaded, [f.numpy() for f in features], ["lid"], TALKATIVE), expected)  # asr is always active


def test_tokens_of_tasks_that_were_not_asked_for_are_barred(loaded, audio):
    for names in (["asr"], ["scd", "ner"], None):
        found = search(loaded, audio, names, TALKATIVE)
        said = {p for h in found for best in h for p in loaded.tokenizer.pieces(best.tokens) if p.startswith("[")}
        allowed = loaded.tasks if names is None else loaded.tasks.subset(names)
        assert said <= set(allowed.symbols)
    assert said  # so there was something to bar


def test_the_task_vectors_follow_the_tasks(loaded, audio):
    scores = [search(loaded, audio[:1], names, SearchOptions("greedy"))[0][0].score for names in (["asr"], ["lid"])]
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)


def test_a_model_in_training_is_searched_in_eval_mode_and_left_as_it_was(loaded, audio):
    expected = search(loaded, audio, None, TALKATIVE)
    loaded.model.train()
    try:
        same(search(loaded, audio, None, TALKATIVE), expected)
        assert loaded.model.training
    finally:
        loaded.model.eval()


def test_nothing_in_nothing_out(loaded):
    assert search(loaded, []) == []


@pytest.mark.parametrize(
    "wrong, said",
    [
        (np.zeros(16000, dtype=np.int16), "input 1: expected floats, 1-D audio .* got int16"),
        (np.zeros((2, 3, 4), dtype=np.float32), r"input 1: expected .* shape \(2, 3, 4\)"),
        (np.full(16000, np.nan, dtype=np.float32), "input 1: holds NaN"),
        (np.zeros(160, dtype=np.float32), "input 1: too short for one frame: it holds 160"),
        (np.zeros((0,), dtype=np.float32), "input 1: too short"),
        (np.zeros((5, 3), dtype=np.float32), "input 1: expected features of .* got 3"),
    ],
)
def test_a_wrong_input_is_named_by_its_number(loaded, audio, wrong, said):
    with pytest.raises(UserError, match=said):
        search(loaded, [audio[0], wrong])


def test_audio_and_features_do_not_mix(loaded, audio, features):
    with pytest.raises(UserError, match="all audio"):
        search(loaded, [audio[0], features[0]])


def test_an_unknown_task_is_named(loaded, audio):
    with pytest.raises(UserError, match="task 'sing': this model knows asr"):
        search(loaded, audio, ["sing"])
