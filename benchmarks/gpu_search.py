"""The sections of benchmarks/gpu.py about the search: with a stateless predictor, and with an LSTM as Parakeet's."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Dict, List, Sequence, Tuple, Union
from unittest import mock

import torch
from gpu_run import GpuRun, Record, timed
from search_cases import Case, mixed_codes

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.recognizer import search_frames
from tokenverse_pp.models.predictor import LstmPredictor
from tokenverse_pp.models.transducer import Joiner

# Name -> options, and the symbols that greedy search writes at most at a frame.
METHODS = {"greedy": (SearchOptions("greedy"), 1), "beam 4": (SearchOptions("beam", 4), 1)}
LSTM_METHODS = {**METHODS, "greedy, 10 symbols": (SearchOptions("greedy"), 10)}
Best = List[Tuple[int, ...]]


class LstmCase:
    """Frames that say which symbols they hold, and a model of Parakeet's form: embedding, LSTM layers, ReLU joiner.

    As with `Case`, a frame is the code of a symbol mixed with up to 50% of another's, and noise. The LSTM's output is
    mostly that of the last token, and the joiner takes that token's code off the frame: it is not written again, and
    the second symbol of a frame may be. So greedy search with several symbols a frame has frames of none, one and two,
    as with a trained model. The LSTM's random weights make the output depend on earlier tokens too.

    Args:
        frames, utterances: T and N.
        vocab_size: V.
        encoder_dim, dim: of the encoder, and of predictor and joiner.
        seed: of everything random.
    """

    LAYERS = 2

    def __init__(self, frames: int, utterances: int, vocab_size: int, encoder_dim: int, dim: int, seed: int):
        torch.manual_seed(seed)
        self.predictor = LstmPredictor(vocab_size, dim, self.LAYERS)
        self.joiner = Joiner(encoder_dim, dim, dim, vocab_size, "relu")
        codes = torch.randn(vocab_size, dim)
        codes[0] /= 2  # a blank is weaker than any symbol that is there
        with torch.no_grad():
            self.predictor.embedding.weight.copy_(codes)
            for layer in range(self.LAYERS):
                # The order of the gates: input, forget, cell, output. Open, mostly closed, the layer's input, open.
                weight, bias = (getattr(self.predictor.lstm, f"{name}_ih_l{layer}") for name in ("weight", "bias"))
                weight[2 * dim : 3 * dim] += torch.eye(dim)
                bias.copy_(torch.tensor([4.0, -2.0, 0.0, 4.0]).repeat_interleave(dim))
            self.joiner.encoder_proj.weight.copy_(torch.eye(dim, encoder_dim))
            self.joiner.predictor_proj.weight.copy_(-2 * torch.eye(dim))
            self.joiner.output.weight.copy_(codes * 30 / dim)
            self.joiner.output.bias[0] += 4
        self.encoder_out = torch.randn(utterances, frames, encoder_dim)
        self.encoder_out[..., :dim] = mixed_codes(codes, utterances, frames)

    lens = Case.lens


def search(run: GpuRun) -> None:
    """Greedy search and beam 4 on the CPU and on the GPU, and the share of utterances with the same hypothesis."""
    case = Case(*((20, 2, 20, 16) if run.dry else (500, 64, 500, 512)), seed=1)
    compared(run, "search", case, METHODS)
    for vocab in (20,) if run.dry else (500, 5000):
        greedy_ways(run, Case(*((20, 2, vocab, 16) if run.dry else (500, 64, vocab, 512)), seed=1))


def greedy_ways(run: GpuRun, case: Case) -> None:
    """Greedy search by one kernel, and frame by frame with the kernels of a beam of 1: which is faster at a size."""
    predictor, joiner = copy.deepcopy(case.predictor).to(run.device), copy.deepcopy(case.joiner).to(run.device)
    frames, vocab = case.encoder_out.to(run.device), joiner.output.out_features
    batch, options, found = len(frames), SearchOptions("greedy"), []

    def measure(largest_layer: int) -> Record:
        def once() -> None:
            nbest = search_frames(predictor, joiner, frames, case.lens(batch), options)
            found.append([hypotheses[0].tokens for hypotheses in nbest])

        with mock.patch("tokenverse_pp.decoding.greedy_kernel.LARGEST_LAYER", largest_layer):
            times = timed(once, run.device, 5)
        utterances = round(1000 * batch / times["ms"], 1)
        return {**times, "utt_per_s": utterances, "agreement": agreement(found[-1], found[0])}

    for way, largest_layer in (("one kernel", 2**40), ("a beam of 1", 0)):
        method = f"greedy, V {vocab}, {way}"
        about = {"device": run.device.type, "method": method, "batch": batch, "frames": frames.size(1)}
        run.case("search", method, partial(measure, largest_layer), optional=True, **about)


def lstm(run: GpuRun) -> None:
    """The same with an LSTM and ReLU, of the size of Parakeet 0.6B: 15 s, 640 x 2 layers, vocabulary 1030."""
    case = LstmCase(*((20, 2, 20, 24, 16) if run.dry else (188, 64, 1030, 1024, 640)), seed=1)
    compared(run, "lstm", case, LSTM_METHODS)


def compared(
    run: GpuRun, section: str, case: Union[Case, LstmCase], methods: Dict[str, Tuple[SearchOptions, int]]
) -> None:
    """Record the methods on CPU and GPU; the CPU first, which says what hypotheses are expected."""
    expected: Dict[Tuple[str, int], Best] = {}
    for device in (torch.device("cpu"), run.device):
        predictor, joiner = copy.deepcopy(case.predictor).to(device), copy.deepcopy(case.joiner).to(device)
        frames, repeats = case.encoder_out.to(device), 1 if device.type == "cpu" else 5

        def measure(method: str, batch: int) -> Record:
            options, predictor.symbols_per_frame = methods[method]  # noqa: B023 (called at once)
            found: List[Best] = []

            def once() -> None:
                inputs = frames[:batch], case.lens(batch)  # noqa: B023
                nbest = search_frames(predictor, joiner, *inputs, options)  # noqa: B023
                found.append([tuple(hypotheses[0].tokens) for hypotheses in nbest])

            times = timed(once, device, repeats)  # noqa: B023
            wanted = expected.setdefault((method, batch), found[-1])
            record = {
                **times,
                "utt_per_s": round(1000 * batch / times["ms"], 1),
                "agreement": agreement(found[-1], wanted),
                "tokens": round(sum(map(len, found[-1])) / batch, 1),
            }
            if device.type == "cuda" and isinstance(predictor, LstmPredictor):  # noqa: B023
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 is cuDNN's default for an LSTM
                    once()
                record["agreement_float32"] = agreement(found[-1], wanted)
            return record

        for batch in (1, 2) if run.dry else (1, 16, 64):
            for method in methods:
                about = {"device": device.type, "method": method, "batch": batch, "frames": frames.size(1)}
                name = f"{method}, batch {batch}, {device.type}"
                run.case(section, name, partial(measure, method, batch), **about)


def agreement(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The share of utterances with the same tokens."""
    return sum(a == b for a, b in zip(found, expected)) / len(expected)
