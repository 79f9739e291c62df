#!/usr/bin/env python3
"""What a corpus would take on so many GPUs: operations counted on the real model, time by a stated rate.

    python benchmarks/scaling.py --hours 6000,1500 --names MLS,"Common Voice" --epochs 20 --table scaling.md

Operations are counted by torch's FlopCounterMode in one forward pass of 20 s through XLSR-53 with random weights; a
backward pass is taken as twice the forward pass of what is trained. Nothing else is measured: --tflops and
--utilisation say what a GPU gives, --load-ms what benchmarks/train_step.py found for the data, and are yours to set.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode
from train_step_worker import XLSR

from tokenverse_pp.base.config import EncoderConfig
from tokenverse_pp.models.encoders import build_encoder

SECONDS = 20.0  # of audio in the counted pass: about the mean of MLS
RATE = 16000
DAY = 86400.0


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
    """Count, divide, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", default="6000,1500", help="of each corpus")
    parser.add_argument("--names", default="MLS without English,Common Voice (5 languages x 300 h)")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--gpus", default="1,8,64")
    parser.add_argument("--tflops", type=float, default=312, help="a GPU's bf16 rate on paper [312: A100]")
    parser.add_argument("--utilisation", type=float, default=0.35, help="share of it that training reaches [0.35]")
    parser.add_argument("--vocabulary", type=int, default=500)
    parser.add_argument("--load-ms", type=float, default=2.0, help="of one core, to load a second of audio [2]")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--table", metavar="FILE", help="write the table here (default: standard output)")
    args = parser.parse_args(arguments)
    counted = encoder_flop()
    loss = loss_flop(args.vocabulary)
    # The convolutions are frozen: forward only. All else: forward, and twice that backward.
    step = counted["convolutions"] + 3 * (counted["transformer"] + loss)
    again = step + counted["transformer"]  # with gradient checkpointing
    records = []
    hours = [float(value) for value in args.hours.split(",")]
    for name, amount in [*zip(args.names.split(","), hours), ("together", sum(hours))]:
        for gpus in map(int, args.gpus.split(",")):
            seconds = amount * 3600 * args.epochs
            rate = gpus * args.tflops * 1e12 * args.utilisation
            days = seconds * step / rate / DAY
            workers = args.load_ms / 1000 * (rate / gpus / step)
            record = {"corpus": name, "hours": amount, "gpus": gpus, "exaflop": seconds * step / 1e18, "days": days}
            records.append({**record, "checkpointing_days": days * again / step, "workers_a_gpu": workers})
    if args.json:
        Path(args.json).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    text = "\n".join([*_counted(counted, loss, step, again), "", *_table(records, args.epochs)]) + "\n"
    if args.table:
        Path(args.table).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


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


def _table(records: Sequence[Dict[str, Any]], epochs: float) -> List[str]:
    names = ["corpus", "hours", "GPUs", f"EFLOP, {epochs:g} epochs", "time", "with checkpointing", "loader cores a GPU"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for r in records:
        numbers = [
            f"{r['exaflop']:.0f}",
            f"{r['days']:.1f}",
            f"{r['checkpointing_days']:.1f}",
            f"{r['workers_a_gpu']:.1f}",
        ]
        lines.append(f"| {' | '.join([r['corpus'], format(r['hours'], 'g'), str(r['gpus']), *numbers])} |")
    return lines


def _time(days: float) -> str:
    return f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} h"


if __name__ == "__main__":
    main()
