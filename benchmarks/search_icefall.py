"""The peer of `search.py`: icefall's Python search on the same encoder output and weights, out of the user's checkout.

`search.py --icefall` runs this script, in the interpreter that has k2; there is no need to run it by hand. Nothing of
icefall is part of this repository. Its own requirements (among them pypinyin and six) must be importable.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from search_cases import Case, timed, versions
from torch import Tensor, nn

RECIPE = Path("egs/librispeech/ASR/pruned_transducer_stateless2")
Result = Tuple[List[int], Optional[float]]  # tokens, and what the search says of their log-probability


class Decoder(nn.Module):
    """Our predictor with the interface of icefall's stateless ``Decoder``."""

    def __init__(self, case: Case):
        super().__init__()
        self.predictor = case.predictor
        self.blank_id, self.context_size = case.predictor.blank_id, case.predictor.context_size
        self.vocab_size = case.predictor.embedding.num_embeddings

    def forward(self, y: Tensor, need_pad: bool = False) -> Tensor:
        """y (N, context_size), -1 where there is no token yet -> (N, 1, D)."""
        embedded = self.predictor.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)
        return torch.relu(self.predictor.conv(embedded.permute(0, 2, 1)).permute(0, 2, 1))


class Joiner(nn.Module):
    """Our joiner with the interface of icefall's ``Joiner``."""

    def __init__(self, case: Case):
        super().__init__()
        self.encoder_proj, self.decoder_proj = case.joiner.encoder_proj, case.joiner.predictor_proj
        self.output_linear = case.joiner.output

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = False) -> Tensor:
        """Both (.., J), projected -> logits (.., V)."""
        return self.output_linear(torch.tanh(encoder_out + decoder_out))


class Transducer(nn.Module):
    """What icefall's searches want of a model."""

    def __init__(self, case: Case):
        super().__init__()
        self.decoder, self.joiner = Decoder(case), Joiner(case)


class Icefall:
    """The searches of a checkout."""

    def __init__(self, checkout: Path, case: Case):
        sys.path[:0] = [str(checkout), str(checkout / RECIPE)]
        import beam_search

        self.module, self.case = beam_search, case
        self.model = Transducer(case).eval()

    @torch.no_grad()
    def run(self, method: str, beam: int, first: int, end: int) -> List[Result]:
        """Decode some utterances of the case."""
        out = self.case.encoder_out[first:end]
        lens = self.case.lens(end - first)
        if method == "greedy":
            return [(tokens, None) for tokens in self.module.greedy_search_batch(self.model, out, lens)]
        best: List[float] = []
        original = self.module.HypothesisList.get_most_probable

        def remember(hypotheses: Any, length_norm: bool = False) -> Any:
            found = original(hypotheses, length_norm)
            best.append(float(found.log_prob))
            return found

        self.module.HypothesisList.get_most_probable = remember
        try:
            tokens = self.module.modified_beam_search(self.model, out, lens, beam=beam)
        finally:
            self.module.HypothesisList.get_most_probable = original
        return list(zip(tokens, best))  # all utterances are of one length, so that icefall does not reorder them


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run what `search.py` asks for, and write it as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--icefall", type=Path, required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", required=True)
    parser.add_argument("--beam", type=int, nargs="+", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--compare", type=int, required=True)
    args = parser.parse_args(arguments)
    icefall = Icefall(args.icefall, Case.load(torch.load(args.case)))
    runs: List[Dict[str, Any]] = []
    for batch in args.batch:
        for method, beam in [("greedy", 1), *(("beam", beam) for beam in args.beam)]:
            run = {"method": method, "beam": beam, "batch": batch, **versions()}
            run.update(timed(lambda: icefall.run(method, beam, 0, batch), args.repeats))  # noqa: B023 (called at once)
            runs.append({**run, "found": icefall.run(method, beam, 0, batch)})
    size = max(args.batch)
    compared = [
        result
        for first in range(0, args.compare, size)
        for result in icefall.run("beam", 4, first, min(first + size, args.compare))
    ]
    args.output.write_text(json.dumps({"runs": runs, "compared": compared}), encoding="utf-8")


if __name__ == "__main__":
    main()
