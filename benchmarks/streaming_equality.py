#!/usr/bin/env python3
"""How far the encoder's output in streaming is from that of the masked full pass, on real cuts and a trained model.

\b
python benchmarks/streaming_equality.py --model tokenverse_pp/pretrained/human_speech \\
    --encoder data/whisper-base --cuts CUTS --first 5 --json equality.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Optional

import click
import torch
from lhotse import CutSet
from torch import Tensor

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.files import write_json
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.decoding.streaming.encoder import StreamingEncoder
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.models.transducer import Transducer

OPTIONS = [(320, 1, 16), (320, 2, 0), (640, 4, 0), (1280, -1, 0), (2560, 1, 16)]


@torch.no_grad()
def largest_difference(model: Transducer, audio: Tensor, active: Tensor, chunks: ChunkOptions) -> float:
    """The largest difference of any output value for one utterance (S,)."""
    expected, _ = model.encode(audio[None], torch.tensor([len(audio)]), active[None], chunks=chunks)
    encoder = StreamingEncoder(model, chunks)
    state, outs, size = encoder.start(active), [], encoder.chunk_samples
    for start in range(0, len(audio), size):
        (out,), (state,) = encoder.step([audio[start : start + size]], [state], [start + size >= len(audio)])
        outs.append(out)
    return float((torch.cat(outs) - expected[0]).abs().max())


@click.command(help=__doc__)
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Model folder.")
@click.option("--encoder", default="", help="Where the pretrained encoder is.")
@click.option("--cuts", required=True, help="Cuts with audio.")
@click.option("--first", type=int, default=5, show_default=True, help="How many of them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the records there.")
def main(model: Path, encoder: str, cuts: str, first: int, json_file: Optional[Path]) -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    loaded = load_model(model, encoder)
    active = torch.ones(len(loaded.tasks.tasks))
    audios = [load_inputs(cut) for cut in CutSet.from_file(cuts).subset(first=first)]
    records: List[Dict[str, float]] = []
    for chunk_ms, left, sinks in OPTIONS:
        chunks = ChunkOptions(chunk_ms, left, sinks)
        worst = max(largest_difference(loaded.model, audio, active, chunks) for audio in audios)
        records.append({"chunk_ms": chunk_ms, "left_chunks": left, "sinks": sinks, "largest_difference": worst})
        click.echo(f"{chunk_ms} ms, {left} left chunks, {sinks} sinks: {worst:.1e}")
    if json_file:
        write_json(json_file, records)


if __name__ == "__main__":
    main()
