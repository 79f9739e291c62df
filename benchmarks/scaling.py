#!/usr/bin/env python3
"""Operations of a training step, counted on XLSR-53's real shape, and the time of the recipes by what was measured.

    python benchmarks/scaling.py --counts benchmarks/results/scaling.md --times benchmarks/results/training_time.md

Operations are counted by torch's FlopCounterMode in one forward pass of 20 s through XLSR-53 with random weights; a
backward pass is taken as twice the forward pass of what is trained. Times are those of `tokenverse-pp estimate`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode
from train_step_worker import XLSR

from tokenverse_pp.base.config import EncoderConfig
from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.models.encoders import build_encoder
from tokenverse_pp.training.estimate import estimate

SECONDS = 20.0  # of audio in the counted pass: about the mean of MLS
RATE = 16000
ROOT = Path(__file__).resolve().parent.parent
RECIPES = {"mls": 8, "commonvoice": 8, "ami": 8, "own_data": 8, "callhome": 1}  # and the GPUs of their commands
CARDS = ("h200", "a100")


def flop_count(function: Any, *inputs: Any) -> float:
    """Operations (a multiplication and an addition are two) of a call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return float(counter.get_total_flops())


def encoder_flop() -> Dict[str, float]:
    """Operations of one forward pass a second of audio: the convolutions, and everything above them."""
    from transformers import Wav2Vec2Config

    with tempfile.TemporaryDirectory() as folder:
        Wav2Vec2Config(**XLSR).save_pretrained(folder)
        encoder = build_encoder(EncoderConfig(name=folder, random_init=True)).eval()
    audio, lens = torch.zeros(1, round(SECONDS * RATE)), torch.tensor([round(SECONDS * RATE)])
    with torch.no_grad():
        features, _ = encoder.extract(audio[:, :RATE], torch.tensor([RATE]))
        convolutions = flop_count(encoder.extract, audio[:, :RATE], torch.tensor([RATE]))
        frames = int(encoder.feature_lens(lens))
        features = features.new_zeros(1, frames, features.shape[-1])
        transformer = flop_count(encoder.contextualise, features, torch.tensor([frames]))
    parameters = sum(p.numel() for p in encoder.parameters())
    return {"convolutions": convolutions, "transformer": transformer / SECONDS, "parameters": float(parameters)}


def loss_flop(vocabulary: int, dim: int = 512, s_range: int = 5, width: int = 1024) -> float:
    """Forward operations of projections and joiner a second of audio: the products that grow with frames (50 Hz)."""
    return 50 * 2 * (width * dim + s_range * dim * vocabulary + width * vocabulary)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=500)
    parser.add_argument("--counts", metavar="FILE", help="count operations, and write their table here")
    parser.add_argument("--times", metavar="FILE", help="write the times of the recipes here")
    args = parser.parse_args(arguments)
    if args.counts:
        counted = encoder_flop()
        loss = loss_flop(args.vocabulary)
        # The convolutions are frozen: forward only. All else: forward, and twice that backward.
        step = counted["convolutions"] + 3 * (counted["transformer"] + loss)
        again = step + counted["transformer"]  # with gradient checkpointing
        Path(args.counts).write_text("\n".join(_counted(counted, loss, step, again)) + "\n", encoding="utf-8")
    if args.times:
        Path(args.times).write_text(time_table(), encoding="utf-8")


def time_table() -> str:
    """The time of every configuration of the recipes for XLSR-53, by `tokenverse_pp.training.estimate`."""
    names = ["configuration", "GPUs", "steps", "s a GPU and step", "speech, h"]
    names += [f"{card.upper()}: {unit}" for card in CARDS for unit in ("h", "GPU-hours")]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for recipe, gpus in RECIPES.items():
        for path in sorted((ROOT / "recipes" / recipe / "conf").glob("*.yaml")):
            if path.name == "streaming.yaml":  # given after another one, and as long
                continue
            config = load_config(path)
            found = [estimate(config, gpus, card) for card in CARDS]
            seconds = config.data.max_duration * config.training.accumulate
            row = [f"{recipe}/conf/{path.name}", gpus, found[0].steps, f"{seconds:g}", f"{found[0].audio_hours:.0f}"]
            row += [f"{number:.1f}" for each in found for number in (each.hours, each.gpu_hours)]
            lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines) + "\n"


def _counted(counted: Dict[str, float], loss: float, step: float, again: float) -> List[str]:
    rows = [
        ("convolutions, forward", counted["convolutions"]),
        ("transformer, forward", counted["transformer"]),
        ("projections and joiner, forward", loss),
        ("training step, convolutions frozen", step),
        ("the same with gradient checkpointing", again),
    ]
    head = [f"| XLSR-53, {counted['parameters'] / 1e6:.0f} M parameters | GFLOP a second of audio |", "|---|---|"]
    return head + [f"| {name} | {value / 1e9:.1f} |" for name, value in rows]


if __name__ == "__main__":
    main()
