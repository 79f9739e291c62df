"""Made-up encoder output of a known difficulty, and timing: what the parts of the search benchmark share."""

from __future__ import annotations

import platform
import time
from typing import Any, Callable, Dict

import torch
from torch import Tensor

from tokenverse_pp.models.predictor import StatelessPredictor
from tokenverse_pp.models.transducer import Joiner

TOKENS_A_FRAME = 0.28


class Case:
    """Frames that say which symbol they hold, more or less clearly, and a joiner that reads them.

    Each symbol has a random code. A frame is the code of a symbol (mostly the blank's), mixed with up to 50% of another
    symbol's, and noise. So there are clear frames and doubtful ones, a beam holds hypotheses that compete for real,
    and symbols come again in neighbouring frames, as with a trained model.
    """

    def __init__(self, frames: int, utterances: int, vocab_size: int, dim: int, seed: int):
        torch.manual_seed(seed)
        self.predictor = StatelessPredictor(vocab_size, dim)
        self.joiner = Joiner(dim, dim, dim, vocab_size)
        codes = torch.randn(vocab_size, dim)
        with torch.no_grad():
            self.joiner.encoder_proj.weight.copy_(torch.eye(dim))
            self.joiner.output.weight.copy_(codes * 30 / dim)
        self.encoder_out = mixed_codes(codes, utterances, frames)

    def lens(self, batch: int) -> Tensor:
        """The frames of each of ``batch`` utterances: all."""
        return torch.full((batch,), self.encoder_out.size(1))

    def state(self) -> Dict[str, Any]:
        """All of it as tensors, for `load`."""
        return {
            "predictor": self.predictor.state_dict(),
            "joiner": self.joiner.state_dict(),
            "encoder_out": self.encoder_out,
        }

    @classmethod
    def load(cls, state: Dict[str, Any]) -> Case:
        """The case whose `state` this was, in whatever version of torch."""
        case = cls.__new__(cls)
        vocab_size, dim = state["predictor"]["embedding.weight"].shape
        case.predictor, case.joiner = StatelessPredictor(vocab_size, dim), Joiner(dim, dim, dim, vocab_size)
        case.predictor.load_state_dict(state["predictor"])
        case.joiner.load_state_dict(state["joiner"])
        case.encoder_out = state["encoder_out"]
        return case


def mixed_codes(codes: Tensor, utterances: int, frames: int) -> Tensor:
    """Frames (N, T, D) of symbols with the codes (V, D), as `Case` describes them."""
    first = random_symbols(utterances, frames, len(codes), TOKENS_A_FRAME)
    second = random_symbols(utterances, frames, len(codes), 0.5)
    mixed = torch.rand(utterances, frames, 1) / 2
    clean = (1 - mixed) * codes[first] + mixed * codes[second]
    return 0.7 * (clean + torch.randn_like(clean))


def random_symbols(utterances: int, frames: int, vocab_size: int, share: float) -> Tensor:
    """(N, T) symbols, blank (0) but for a share of them."""
    symbols = torch.randint(1, vocab_size, (utterances, frames))
    return symbols * (torch.rand(utterances, frames) < share)


def timed(run: Callable[[], Any], repeats: int) -> Dict[str, float]:
    """The best wall and processor times of some runs in seconds, after one to warm up."""
    run()
    wall, cpu = [], []
    for _ in range(repeats):
        started, started_cpu = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    return {"seconds": min(wall), "cpu_seconds": min(cpu)}


def versions() -> Dict[str, Any]:
    """What the speed depends on beside the machine."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
