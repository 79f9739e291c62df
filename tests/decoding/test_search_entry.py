"""The one entry point: audio or stored features in, hypotheses out; what is no such input is named by its number."""

import numpy as np
import pytest
import torch
from toy_runs import toy_parts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.recognizer import search
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


def test_arrays_tensors_lists_of_doubles_and_stored_features_give_the_same(loaded, audio, features):
    expected = search(loaded, audio, ["asr", "lid"], TALKATIVE)
    same(search(loaded, [torch.tensor(a) for a in audio], ["asr", "lid"], TALKATIVE), expected)
    same(search(loaded, [a.astype(np.float64) for a in audio], ["asr", "lid"], TALKATIVE), expected)
    same(search(loaded, features, ["asr", "lid"], TALKATIVE), expected)
    same(search(loaded, [f.numpy() for f in features], ["lid"], TALKATIVE), expected)  # asr is always active


def test_a_model_in_training_is_searched_in_eval_mode_and_left_as_it_was(loaded, audio):
    expected = search(loaded, audio, None, TALKATIVE)
    loaded.model.train()
    try:
        same(search(loaded, audio, None, TALKATIVE), expected)
        assert loaded.model.training
    finally:
        loaded.model.eval()


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


def test_wrong_calls_are_named(loaded, audio, features):
    assert search(loaded, []) == []
    with pytest.raises(UserError, match="all audio"):
        search(loaded, [audio[0], features[0]])
    with pytest.raises(UserError, match="task 'sing': this model knows asr"):
        search(loaded, audio, ["sing"])
