"""The search on a GPU gives the hypotheses of the search on a CPU, and reads nothing back before the last frame."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from tiny_transducers import Tiny
from vocabulary import ALL, Vocabulary, know

pytest.importorskip("triton")

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding import beam, context_graph
from tokenverse_pp.decoding.constraints import NEG_INF, Constraints, constraints_for
from tokenverse_pp.decoding.context_graph import ContextGraph, FusedScorers
from tokenverse_pp.decoding.greedy import GreedySearch
from tokenverse_pp.decoding.language_models import LanguageModel
from tokenverse_pp.decoding.ngram import ngrams_of_words, read_arpa
from tokenverse_pp.decoding.ngram_tables import NgramTables, ngram_gains_kernel
from tokenverse_pp.decoding.recognizer import search_frames
from tokenverse_pp.decoding.scorer import ConstraintTable, Scorer
from tokenverse_pp.losses.devices import use_kernels
from tokenverse_pp.models.predictor import StatelessPredictor
from tokenverse_pp.models.transducer import Joiner

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TASKS = know(*ALL)
VOCABULARY = Vocabulary(TASKS)


@pytest.fixture(autouse=True)
def quiet_interpreter():
    """NumPy warns of what kernels do on purpose: -inf minus -inf, products of hashes that wrap around."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def on_device(model, *arguments):
    """`search_frames` by the kernels."""
    predictor, joiner, encoder_out, lens = (copy.deepcopy(x).to(DEVICE) for x in model)
    with use_kernels("triton"):
        return search_frames(predictor, joiner, encoder_out, lens, *arguments)


def assert_same(found, expected, tolerance=1e-4):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert [(h.tokens, h.frames) for h in ours] == [(h.tokens, h.frames) for h in theirs]
        for a, b in zip(ours, theirs):
            assert a.score == pytest.approx(b.score, abs=tolerance)
            assert a.log_probs == pytest.approx(b.log_probs, abs=tolerance)


def bonus(length_bonus=0.0):
    phrases = [([VOCABULARY.id_of(piece) for piece in text.split()], value) for text, value in PHRASES]
    return ContextGraph(phrases, VOCABULARY.all, length_bonus)


PHRASES = (("▁a c", 1.5), ("▁b", 0.5), ("▁a c c ▁b", 2.0))
HOTWORDS = tuple((text.replace(" ", "").replace("▁", " ").strip(), value) for text, value in PHRASES)


def compare(tiny, seed, method="beam", width=4, constrained=False, hotwords=False, language_model=None, **options):
    lens = [(7, 5, 1), (6, 6), (9,), (3, 8, 8, 2)][seed % 4]
    model = tiny(seed, V=VOCABULARY.vocab_size, lens=lens, context=1 + seed % 3, blank_bias=seed % 3)
    search = SearchOptions(
        method=method, beam=width, nbest=1 if method == "greedy" else width, hotwords=HOTWORDS if hotwords else None,
        length_bonus=0.2 if hotwords else 0.0, lm="any.tsv" if language_model else None, **options,
    )  # fmt: skip
    constraints = None
    if constrained:
        active = (ALL, ["asr", "ner"], ["asr"], ["asr", "lid"])
        constraints = [constraints_for(TASKS, active[i % 4], VOCABULARY) for i in range(len(lens))]
    fusion = bonus(0.2) if hotwords else language_model
    if hotwords and language_model:
        fusion = FusedScorers(fusion, language_model)
    arguments = (search, constraints, fusion)
    assert_same(on_device(model, *arguments), search_frames(*model, *arguments))


@pytest.mark.parametrize(
    "kind",
    [
        {"method": "greedy"},
        {"method": "greedy", "constrained": True, "temperature": 1.7, "blank_penalty": 1.5},
        {"constrained": True},
        {"hotwords": True, "width": 3},
        {"width": 2, "temperature": 1.7, "blank_penalty": 1.5},
        pytest.param({"width": 20}, marks=pytest.mark.slow),
    ],
)
def test_hypotheses_are_those_of_the_cpu(tiny, kind):
    compare(tiny, 1, **kind)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(0, 125, 1 if DEVICE == "cuda" else 5))  # 5: prime to all that `compare` varies
def test_hypotheses_are_those_of_the_cpu_always(tiny, seed):
    """With `compare`'s batches, made-up utterances, each in four ways: more than 300 on a GPU, and in the interpreter,
    which is slow, a fifth of these.
    """
    compare(tiny, seed, method="greedy", constrained=seed % 2 == 1)
    compare(tiny, seed, width=1 + seed % 7)
    compare(tiny, seed, width=4, constrained=True)
    compare(tiny, seed, width=2 + seed % 3, constrained=seed % 2 == 0, hotwords=True)


def wide_model(blank_bias):
    """Sizes that are no multiples of the kernel's blocks, each of which is met several times."""
    torch.manual_seed(3)
    model = Tiny(StatelessPredictor(150, 70, 2), Joiner(6, 70, 45, 150), torch.randn(5, 40, 6) * 2, LENGTHS)
    with torch.no_grad():
        model.joiner.output.weight.mul_(4)
        model.joiner.output.bias[0] += blank_bias
    return model


LENGTHS = torch.tensor([40, 33, 17, 16, 1])


@pytest.mark.parametrize(
    "blank_bias, dtype",
    [(3.0, None), (6.0, None), pytest.param(-20.0, None, marks=pytest.mark.slow), (4.0, "float16")],
)
def test_greedy_search_in_blocks_is_that_of_the_cpu(blank_bias, dtype):
    """With tokens at some frames, hardly any and all, so that blocks end early and late."""
    model, options = wide_model(blank_bias), SearchOptions("greedy", joiner_dtype=dtype)
    found, expected = on_device(model, options), search_frames(*model, options)
    tokens = sum(len(hypotheses[0].tokens) for hypotheses in expected)
    assert tokens == 107 if blank_bias < 0 else 0 < tokens < 80
    assert_same(found, expected, 1e-4 if dtype is None else 0.05)


@pytest.mark.parametrize(
    "layer", [pytest.param(0, marks=pytest.mark.slow), 2**22], ids=["a beam of 1", "greedy_kernel"]
)
def test_greedy_search_continues(layer, monkeypatch):
    """The second half of the frames, after the first one's tokens and states, as the CPU continues."""
    monkeypatch.setattr("tokenverse_pp.decoding.greedy_kernel.LARGEST_LAYER", layer)
    model = wide_model(3.0)
    constraints = ConstraintTable(150, torch.device("cpu")).batch([TWO_STATES] * 2)
    ended = []
    for backend in ("torch", "triton"):
        with use_kernels(backend), torch.inference_mode():
            frames = model.joiner.encoder_proj(model.encoder_out[:2]).transpose(0, 1).contiguous()
            scorer = Scorer(model.predictor, model.joiner, frames[:20].clone(), SearchOptions("greedy"))
            search = GreedySearch(scorer, [20, 20], constraints)
            search.run()
            rest = GreedySearch(scorer.over(frames[20:].clone()), [20, 13], constraints)
            rest.last, rest.state = search.last, search.state
            rest.run()
        log_probs = search.log_probs, rest.log_probs[0], rest.log_probs[1, :13]
        ended.append((search.tokens, rest.tokens, *log_probs, rest.last, rest.state))
    for ours, theirs in zip(*reversed(ended)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ended[0][-1].any()


# In the second state, to which even symbols lead, symbols of more than 100 are forbidden.
TWO_STATES = Constraints(
    np.where(np.arange(150) > 100, [[0.0], [NEG_INF]], 0.0).astype(np.float32),
    np.stack([np.where((np.arange(150) % 2 == 0) & (np.arange(150) > 0), 1, state) for state in (0, 1)]),
)


TEXT = """\\data\\
ngram 1=6
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-0.9\t</s>
-0.7\t▁a\t-0.3
-0.8\tc\t-0.2
-1.5\t▁b
-1.1\t▁

\\2-grams:
-0.2\t<s> ▁a\t-0.4
-0.6\t▁a c\t-0.1
-0.4\tc </s>

\\3-grams:
-0.05\t<s> ▁a c

\\end\\
"""


@pytest.fixture(scope="module")
def language_models(tmp_path_factory):
    """A model of words for one language and of running text for the other; a model of words for all."""
    path = tmp_path_factory.mktemp("lm") / "text.arpa"
    path.write_text(TEXT, encoding="utf-8")
    a, b, c = (VOCABULARY.id_of(piece) for piece in ("▁a", "▁b", "c"))
    words = ngrams_of_words([((a, c), 5.0), ((b,), 3.0), ((a, c, c), 1.0)], VOCABULARY.vocab_size)
    models = {"[FR]": (words, True), "[NL]": (read_arpa(path, VOCABULARY.all), False)}
    return [LanguageModel(x, VOCABULARY.all, 0.7, 0.4) for x in (models, {"": models["[FR]"]})]


@pytest.mark.parametrize("which", [0, 1])
def test_gains_of_ngrams_are_the_rows_of_the_language_model(language_models, which):
    model = language_models[which]
    tables = NgramTables.of(model, torch.device(DEVICE))
    states = torch.arange(model.states, device=DEVICE)
    gains = torch.empty(model.states, model.vocab_size, device=DEVICE)
    ngram_gains_kernel[(model.states, 1)](
        states, gains, torch.zeros((), dtype=torch.int32, device=DEVICE), 0, model.states, model.vocab_size,
        tables.start, tables.contexts, tables.back_off, tables.over, tables.token, tables.log_prob, tables.models,
        tables.lowest, tables.first_row, tables.kinds, SCALE=tables.scale, BONUS=tables.bonus, DEPTH=tables.depth,
        BISECTIONS=tables.bisections, BLOCK=16,
    )  # fmt: skip
    expected = torch.stack([model.row(state) for state in range(model.states)])
    torch.testing.assert_close(gains.cpu(), expected)


@pytest.mark.parametrize(
    "seed, which, hotwords",
    # 12 seeds have every combination of what `compare` and this varies; the interpreter takes 2 s for each.
    [
        (1, 0, True),
        *(pytest.param(s, s % 2, s % 3 == 0, marks=pytest.mark.slow) for s in range(30 if DEVICE == "cuda" else 12)),
    ],
)
def test_searches_with_a_language_model_are_those_of_the_cpu(tiny, language_models, seed, which, hotwords):
    compare(tiny, seed, constrained=which == 0, hotwords=hotwords, language_model=language_models[which])


def test_bonus_without_tables_is_left_to_the_host(tiny, monkeypatch):
    monkeypatch.setattr(context_graph, "TABLE_NUMBERS", 10)
    assert bonus().tables(torch.device("cpu")) is None
    compare(tiny, 2, hotwords=True)


def test_tables_are_the_rows_and_moves_of_the_graph():
    graph = bonus(0.3)
    gains, after = graph.tables(torch.device("cpu"))
    for state in range(graph.states):
        assert torch.allclose(gains[state], graph.row(state), atol=1e-6)
        assert after[state].tolist() == [graph.advance(state, token) for token in range(graph.vocab_size)]


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels launched, none of which runs, and of reads by the host."""
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    launched = []
    for kind in (InterpretedFunction, JITFunction):
        monkeypatch.setattr(kind, "run", lambda self, *args, **kwargs: launched.append(self.fn.__name__))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: launched.append("a read") or self)
    return launched


@pytest.mark.parametrize("lens, width", [([9], 2), ([9, 9, 5, 1], 6)])
def test_nothing_is_read_back_before_the_end(tiny, launched, lens, width):
    """Frames cost a fixed number of launches each, and no copy to the host."""
    from tokenverse_pp.decoding.triton_search import TritonSearch

    model = tiny(1, lens=lens)
    with use_kernels("triton"), torch.inference_mode():
        frames = model.joiner.encoder_proj(model.encoder_out).transpose(0, 1)
        scorer = Scorer(model.predictor, model.joiner, frames, SearchOptions(beam=width))
        memory = beam.BeamMemory.start(scorer, len(lens), width, None)
        search = TritonSearch(scorer, lens, memory, None, None)
        launched.clear()
        search._all_frames()
    assert len(launched) == 4 * 9 and "a read" not in launched
    assert math.isfinite(search.clock.item())


def test_greedy_search_is_one_launch(launched):
    on_device(wide_model(0.0), SearchOptions("greedy"))
    assert launched == ["greedy_kernel", *4 * ["a read"]]
