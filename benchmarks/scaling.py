#!/usr/bin/env python3
"""How preparation, training and decoding grow, up to 1e8 cuts and 512 ranks: simulated on one core, and reckoned.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --json growth.json         # about 20 minutes
    python benchmarks/scaling.py --json growth.json --sections ranks --append
    python benchmarks/scaling.py --json growth.json --fill docs/scaling.md    # the tables of growth.json; runs nothing
    python benchmarks/scaling.py --json dry.json --dry-run                    # tiny sizes
    python benchmarks/scaling.py --counts benchmarks/results/scaling.md --times benchmarks/results/training_time.md

One JSON record a line, written as soon as it is measured. The sections:

    rates         what a core does for a million cuts
    resume        a rank of 512 resumes in 1e8 cuts: seconds and memory until the first batch
    drawing       time to draw the batches of a step, by the number of ranks
    ranks         512 simulated ranks draw whole rounds: numbers of batches, cuts lost, cuts drawn twice
    stragglers    share of time that ranks wait for the slowest
    all_reduce    time of the gradients on links of several speeds
    storage       what 1e3, 1e5 and 1e6 hours need on disk
    growth        preparation, an epoch and decoding of as many hours

The last three are reckoned from figures that `scaling_steps.py` names.

--counts and --times write the operations of a training step, and the time of the recipes by what was measured.
Operations are counted by torch's FlopCounterMode in one forward pass of 20 s through XLSR-53 with random weights; a
backward pass is taken as twice the forward pass of what is trained. Times are those of `tokenverse-pp estimate`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from include import fill, markdown_table
from torch.utils.flop_counter import FlopCounterMode
from train_step_worker import XLSR

from tokenverse_pp.base.config import EncoderConfig
from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.models.encoders import build_encoder
from tokenverse_pp.training.estimate import estimate

SECONDS = 20.0  # of audio in the counted pass: about the mean of MLS
RATE = 16000
ROOT = Path(__file__).resolve().parent.parent
RECIPES = {"mls": 8, "commonvoice": 8, "ami": 8, "own_data": 8, "callhome": 1}  # and the GPUs of their commands
CARDS = ("h200", "a100")
SECTIONS = {  # name -> its module
    **dict.fromkeys(("rates", "resume", "drawing", "ranks"), "scaling_data"),
    **dict.fromkeys(("stragglers", "all_reduce", "storage", "growth"), "scaling_steps"),
}
MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"
TABLES: Dict[str, Dict[str, str]] = {  # section -> headings and what is below them
    "rates": {"for 1,000,000 cuts": "{what}", "core seconds": "{cpu_s:,.2f}"},
    "resume": {
        "cuts": "{cuts:.0e}", "ranks": "{ranks}", "place in the epoch": "{place:.1%}", "seconds": "{seconds:.1f}",
        "of a core": "{cpu_s:.1f}", "peak MB": "{peak_mb}", "of it imports, MB": "{imports_mb}",
    },
    "drawing": {"ranks": "{ranks}", "`data.rank_parts`": "{rank_parts}", "ms a step": "{ms:.1f}"},
    "ranks": {
        "ranks": "{ranks}", "cuts": "{cuts}", "rounds": "{rounds}", "batches a rank": "{batches}",
        "cuts lost": "{lost}", "cuts twice": "{twice}",
    },
    "stragglers": {
        "ranks": "{ranks}", "`data.rank_parts`": "{rank_parts}", "`data.num_buckets`": "{buckets}",
        "`data.round_cuts`": "{round_cuts}", "steps": "{steps}", "mean ms": "{mean_ms:.0f}",
        "slowest ms": "{slowest_ms:.0f}", "lost": "{lost:.1%}",
    },
    "all_reduce": {
        "trained": "{trained}", "gradients, MB": "{mb:.0f}", "link of a machine": "{link}", "GB/s": "{gb_per_s:g}",
        "ms": "{ms:.3g}", "of a step of 113 ms": "{of_step:.0%}",
    },
    "storage": {
        "hours": "{hours:,}", "cuts of 10 s": "{cuts:.2g}", "FLAC, TB": "{flac_tb:.3g}", "Opus, TB": "{opus_tb:.3g}",
        "features, TB": "{features_tb:.3g}", "manifest, GB": "{manifest_gb:.3g}", "gzipped, GB": "{gzip_gb:.3g}",
        "index, MB": "{index_mb:.2g}",
    },
    "growth": {
        "hours of audio": "{hours:,}", "what": "{what}", **{f"on {n}": f"{{on_{n}}}" for n in (1, 8, 64, 512)},
    },
}  # fmt: skip


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
    """Measure, or fill a page; and write the tables of operations and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the records, one a line")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="NAME",
                        help="run these only")  # fmt: skip
    parser.add_argument("--append", action="store_true",
                        help="keep the records that --json holds of other sections")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="run all of it with tiny sizes")
    parser.add_argument("--fill", type=Path, metavar="PAGE",
                        help="put the tables of --json between the marks of this page; measures nothing")  # fmt: skip
    parser.add_argument("--vocabulary", type=int, default=500, help="of --counts")
    parser.add_argument("--counts", metavar="FILE", help="count operations, and write their table here")
    parser.add_argument("--times", metavar="FILE", help="write the times of the recipes here")
    args = parser.parse_args(arguments)
    if args.fill and not args.json:
        raise UserError("--fill: expected --json too: the records")
    if not (args.json or args.counts or args.times):
        raise UserError("expected --json, --counts or --times: where to write")
    if args.fill:
        fill_tables(args.fill, read_records(args.json))
    elif args.json:
        kept = [r for r in read_records(args.json) if r["section"] not in args.sections] if args.append else []
        measure(args.json, args.sections, args.dry_run, kept)
    if args.counts:
        counted = encoder_flop()
        loss = loss_flop(args.vocabulary)
        # The convolutions are frozen: forward only. All else: forward, and twice that backward.
        step = counted["convolutions"] + 3 * (counted["transformer"] + loss)
        again = step + counted["transformer"]  # with gradient checkpointing
        Path(args.counts).write_text("\n".join(_counted(counted, loss, step, again)) + "\n", encoding="utf-8")
    if args.times:
        Path(args.times).write_text(time_table(), encoding="utf-8")


def measure(path: Path, sections: Sequence[str], dry: bool, kept: Sequence[Dict[str, Any]]) -> None:
    """Run sections; write their records behind those that are kept."""
    with open(path, "w", encoding="utf-8") as file:
        for record in kept:
            file.write(json.dumps(record) + "\n")
        for name in (name for name in SECTIONS if name in sections):
            for record in getattr(importlib.import_module(SECTIONS[name]), name)(dry):
                file.write(json.dumps(record) + "\n")
                file.flush()
                print(json.dumps(record), flush=True)


def read_records(path: Path) -> List[Dict[str, Any]]:
    """The records of a JSON file (raises UserError)."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--json {path}: {error}") from error


def fill_tables(page: Path, records: Sequence[Dict[str, Any]]) -> None:
    """Put the table of each section that was measured between its marks."""
    for name, columns in TABLES.items():
        rows = [
            {key: str(value).lower() if isinstance(value, bool) else value for key, value in record.items()}
            for record in records
            if record["section"] == name
        ]
        if rows:
            begin, end = (mark.format(name) for mark in MARKS)
            fill(page, (begin, end), "\n" + "\n".join(markdown_table(columns, rows)) + "\n\n")


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
    with report_errors():
        main()
