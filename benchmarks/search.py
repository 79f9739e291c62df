"""Speed of the search alone, on made-up encoder output of a known difficulty.

    OMP_NUM_THREADS=1 python benchmarks/search.py --json search.json

One JSON record a line: peer, method, beam, batch, dtype, utt_per_s, rtf (seconds of search a second of audio),
search_share (of encoder + search; null here, there is no encoder), and the sizes. The size is that of FACTS: 500 frames
(10 s) an utterance, vocabulary 500, dimensions 512, about 140 tokens an utterance.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from tokenverse_pp.model.joiner import Joiner
from tokenverse_pp.model.predictor import StatelessPredictor
from tokenverse_pp.search import SearchOptions, search_frames

TOKENS_A_FRAME = 0.28


class Case:
    """Frames that say which symbol they hold, more or less clearly, and a joiner that reads them.

    Each symbol has a random code. A frame is the code of a symbol (mostly the blank's), mixed with up to 50% of another
    symbol's, and noise. So there are clear frames and doubtful ones, a beam holds hypotheses that compete for real,
    and symbols come again in neighbouring frames, as with a trained model.
    """

    def __init__(self, frames: int, batch: int, vocab_size: int, dim: int, seed: int):
        torch.manual_seed(seed)
        self.predictor = StatelessPredictor(vocab_size, dim)
        self.joiner = Joiner(dim, dim, dim, vocab_size)
        codes = torch.randn(vocab_size, dim)
        with torch.no_grad():
            self.joiner.encoder_proj.weight.copy_(torch.eye(dim))
            self.joiner.output.weight.copy_(codes * 30 / dim)
        first = self._symbols(batch, frames, vocab_size, TOKENS_A_FRAME)
        second = self._symbols(batch, frames, vocab_size, 0.5)
        mixed = torch.rand(batch, frames, 1) / 2
        clean = (1 - mixed) * codes[first] + mixed * codes[second]
        self.encoder_out = 0.7 * (clean + torch.randn_like(clean))
        self.lens = torch.full((batch,), frames)

    @staticmethod
    def _symbols(batch: int, frames: int, vocab_size: int, share: float) -> Tensor:
        symbols = torch.randint(1, vocab_size, (batch, frames))
        return symbols * (torch.rand(batch, frames) < share)

    def run(self, batch: int, options: SearchOptions) -> float:
        """Decode the first utterances; -> tokens an utterance."""
        inputs: Sequence[Tensor] = (self.encoder_out[:batch], self.lens[:batch])
        found = search_frames(self.predictor, self.joiner, *inputs, options)
        return sum(len(best.tokens) for best, *_ in found) / batch


def measure(case: Case, batch: int, options: SearchOptions, repeats: int, frame_shift: float) -> Dict[str, Any]:
    """The best of some runs, after one to warm up."""
    seconds: List[float] = []
    tokens = case.run(batch, options)
    for _ in range(repeats):
        start = time.perf_counter()
        case.run(batch, options)
        seconds.append(time.perf_counter() - start)
    frames = case.encoder_out.size(1)
    return {
        "peer": "tokenverse_pp",
        "method": options.method,
        "beam": options.width,
        "batch": batch,
        "dtype": options.joiner_dtype,
        "utt_per_s": batch / min(seconds),
        "rtf": min(seconds) / (batch * frames * frame_shift),
        "search_share": None,
        "seconds": min(seconds),
        "tokens": tokens,
        "frames": frames,
        "vocab_size": case.joiner.output.out_features,
        "dim": case.joiner.output.in_features,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the records here, one a line (default: standard output)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--beam", type=int, nargs="+", default=[1, 4, 8], help="of the beam search")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="of the joiner's products")
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--frame-shift", type=float, default=0.02, help="seconds")
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    case = Case(args.frames, max(args.batch), args.vocab_size, args.dim, args.seed)
    methods = [("greedy", 1), *(("beam", beam) for beam in args.beam)]
    records = []
    for dtype, batch, (method, beam) in itertools.product(args.dtype, args.batch, methods):
        options = SearchOptions(method=method, beam=beam, joiner_dtype=dtype)
        record = measure(case, batch, options, args.repeats, args.frame_shift)
        records.append(record)
        speed = f"{record['utt_per_s']:8.1f} utt/s  rtf {record['rtf']:.4f}"
        print(f"{method:6} beam {beam} batch {batch:2} {dtype:8} {speed}", file=sys.stderr)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(lines)
    else:
        sys.stdout.write(lines)


if __name__ == "__main__":
    main()
