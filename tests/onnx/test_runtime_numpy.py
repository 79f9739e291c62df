"""Search and log-mel in NumPy, beside those in torch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.recognizer import search_frames
from tokenverse_pp.models.encoders.whisper import LogMel
from tokenverse_pp.models.predictor import LstmPredictor, StatelessPredictor
from tokenverse_pp.models.transducer import Joiner
from tokenverse_pp.onnx.inputs import NumpyLogMel
from tokenverse_pp.onnx.search import AllTokens, LastTokens, Search
from tokenverse_pp.tasks import build_tasks

TASKS = build_tasks(
    ["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["fr", "nl"]}, "ner": {"types": ["PER"]}}
)
PIECES = ["<blk>", "<unk>", *TASKS.symbols, "▁", "▁a", "▁b", "c"]


VOCABULARY = SimpleNamespace(vocab_size=len(PIECES), id_of=PIECES.index, pieces=lambda: PIECES)


class Model:
    """A sharp random model in torch, and as the runtime sees it; its context is that of an LSTM with None."""

    def __init__(self, seed, context, symbols=1):
        torch.manual_seed(seed)
        self.context, self.symbols = context, symbols
        self.predictor = StatelessPredictor(len(PIECES), 8, context) if context else LstmPredictor(len(PIECES), 8, 2)
        self.predictor.symbols_per_frame = symbols
        self.joiner = Joiner(6, 8, 16, len(PIECES))
        with torch.no_grad():
            self.joiner.output.weight.mul_(4)
            self.joiner.output.bias[0] += 1

    @torch.no_grad()
    def project(self, frames):
        return self.joiner.encoder_proj(frames).numpy()

    @torch.no_grad()
    def predict(self, contexts):
        return self.joiner.predictor_proj(self.predictor.step(torch.from_numpy(contexts))).numpy()

    @torch.no_grad()
    def read(self, tokens, *states):
        before = torch.stack([torch.from_numpy(state) for state in states]).transpose(1, 2)
        out, after = self.predictor.step(torch.from_numpy(tokens), before)
        return (self.joiner.predictor_proj(out).numpy(), *after.transpose(1, 2).numpy())

    @torch.no_grad()
    def join(self, frames, states):
        return self.joiner(torch.from_numpy(frames), torch.from_numpy(states)).numpy()

    def search(self, active, options):
        constraints = constraints_for(TASKS, active, VOCABULARY, options.languages, options.force_language)
        contexts = LastTokens(self.predict, self.context) if self.context else AllTokens(self.read, 2, 8)
        return Search(contexts, self.join, constraints, options, symbols=self.symbols)

    def reference(self, frames, active, options):
        constraints = constraints_for(TASKS, active, VOCABULARY, options.languages, options.force_language)
        lens = torch.tensor([len(frames)])
        return search_frames(self.predictor, self.joiner, frames[None], lens, options, constraints)[0]


def all_options(draw):
    method, beam = draw(st.sampled_from([("greedy", 1), ("beam", 1), ("beam", 3), ("beam", 5)]))
    return SearchOptions(
        method,
        beam,
        nbest=1 if method == "greedy" else draw(st.integers(1, beam)),
        temperature=draw(st.sampled_from([1.0, 1.7])),
        blank_penalty=draw(st.sampled_from([0.0, 0.8])),
        length_norm=draw(st.booleans()),
        languages=draw(st.sampled_from([None, ("nl",)])),
        force_language=draw(st.booleans()),
    )


@settings(max_examples=120)
@given(st.data())
def test_hypotheses_are_those_of_torch(data):
    context, symbols = data.draw(st.sampled_from([1, 2, 3, None])), data.draw(st.sampled_from([1, 1, 2, 5]))
    model = Model(data.draw(st.integers(0, 999)), context, symbols)
    options = all_options(data.draw)
    active = ["lid", *data.draw(st.lists(st.sampled_from(["scd", "endp", "ner"]), unique=True))]
    frames = 2 * torch.randn(data.draw(st.integers(1, 40)), 6)
    search = model.search(active, options)
    assert search.best()[0].tokens == ()
    for piece in np.split(model.project(frames), sorted(data.draw(st.lists(st.integers(0, len(frames)), max_size=4)))):
        search.advance(piece)
    found, expected = search.best(), model.reference(frames, active, options)
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    for ours, theirs in zip(found, expected):
        assert ours.frames == theirs.frames
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)
        assert (ours.log_prob, ours.score) == pytest.approx((theirs.log_prob, theirs.score), abs=1e-3, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (SearchOptions("full_beam"), "method"),
        (SearchOptions(hotwords=("bonjour",)), "hotwords"),
        (SearchOptions(length_bonus=0.5), "length_bonus"),
        (SearchOptions(lm_scale=0.3), "lm_scale"),
        (SearchOptions(lm_bonus=0.0), "lm_bonus"),
        (SearchOptions(joiner_dtype="bfloat16"), "joiner_dtype"),
    ],
)
def test_what_the_runtime_does_not_have_is_refused(options, named):
    with pytest.raises(UserError, match=f"search option '{named}': the runtime has"):
        Model(0, 2).search(["asr"], options)


def log_mels(audio):
    """Of the runtime, and of torch."""
    torch_mel = LogMel(80)
    expected, lens = torch_mel(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    found = NumpyLogMel(torch_mel.filters.numpy(), torch_mel.n_fft, torch_mel.hop)(audio)
    return found, expected[0, :, : int(lens)].numpy()


@settings(max_examples=30)
@given(st.integers(1, 40000), st.integers(0, 99), st.floats(1e-4, 1.0))
@example(1, 0, 0.1)
@example(160, 0, 0.1)
@example(161, 0, 0.1)
@example(200, 0, 0.1)
@example(5000, 0, 0.0)
def test_log_mel_of_any_length(size, seed, level):
    found, expected = log_mels((level * np.random.default_rng(seed).standard_normal(size)).astype(np.float32))
    assert found.shape == expected.shape and found.dtype == np.float32
    # The range ends 80 dB below the maximum, where torch's float32 has few digits left.
    np.testing.assert_allclose(found, expected, atol=1e-4 if level else 1e-6)


@pytest.mark.parametrize("size", [479700, 479999, 480000])
def test_log_mel_of_up_to_thirty_seconds(size):
    time = np.arange(size) / 16000
    audio = (0.3 * np.sin(2 * np.pi * 440 * time) * np.exp(-time / 9)).astype(np.float32)
    np.testing.assert_allclose(*log_mels(audio), atol=1e-4)
