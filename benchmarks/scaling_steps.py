"""Sections of scaling.py about steps: waiting for the slowest rank, gradients on the network, what hours take."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from itertools import chain
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple

import torch
from sampler_restore import made_up_cuts
from scaling_data import SEED, Durations, rank_batches
from train_step_worker import XLSR
from transformers import Wav2Vec2Config

from tokenverse_pp.base.config import Config, DataConfig, EncoderConfig, ModelConfig
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.lines import EVERY
from tokenverse_pp.data.samplers import Rounds, TrainSampler
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.models.bundle import build_model
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.training.estimate import LEAST_MS, MEASURED_RATE

Record = Dict[str, Any]
GPUS = (1, 8, 64, 512)
HOURS = (1_000, 100_000, 1_000_000)
DECODE_RATE = 2215.0  # seconds of audio a second of decode.py on one H200, beam 4 (docs/performance.md)
CUT_S = 10.0  # of a cut, where hours become cuts
FLAC_GB, OPUS_GB = 0.110, 0.015  # an hour at 16 kHz: recipes/commonvoice/README.md, recipes/mls/README.md
INDEX_BYTES = 17  # of an offset in an index
FEATURES_GB = 50 * 1024 * 2 * 3600 / 1e9  # an hour of float16 features of XLSR-53: 50 frames a second
LINE_BYTES, GZIP_BYTES = 451, 66  # of a cut of one turn of ten words in a manifest (section rates)
SHAR_CORES = 0.4e-3  # core seconds a second of audio of `manifest to-shar` (section rates)
MANIFEST_CORES = 141e-6  # core seconds a cut of `manifest validate` and `label` (benchmarks/results/manifests.md)
# Gigabytes a second in each direction, of one machine of 8 GPUs: NVIDIA's data sheets of H100 SXM (NVLink 4: 900 GB/s
# both directions together) and ConnectX-7 (400 Gbit/s), and of Ethernet its name.
LINKS = {
    "NVLink 4, one machine": 450.0,
    "8 x InfiniBand 400 Gbit/s": 400.0,
    "1 x InfiniBand 400 Gbit/s": 50.0,
    "Ethernet 100 Gbit/s": 12.5,
    "Ethernet 10 Gbit/s": 1.25,
}


def step_ms(seconds: Sequence[float]) -> float:
    """Milliseconds of a batch of cuts of these durations, from 16 x 15 s in 113 ms on one H200.

    In proportion to operations: padded frames T, each with 24 d^2 operations a layer and 4 T d of attention (d = 1024).
    """

    def operations(count: int, longest: float) -> float:
        return count * longest * (24 * 1024 + 4 * 50 * longest)

    return LEAST_MS * operations(len(seconds), max(seconds)) / operations(16, 15.0)


def stragglers(dry: bool) -> Iterator[Record]:
    """The share of time that ranks wait for the slowest one, by how batches are drawn.

    Batches of 240 s as in the measured step. Every rank draws for all, with rounds of 50,000 cuts (the default); or its
    own part, of 2,000 to 20,000 cuts.
    """
    cases: List[Tuple[int, bool, int, int]] = []  # ranks, parts, buckets, cuts of a round
    for ranks, parts in ((8, (5000, 20_000)), (64, (5000, 20_000)), (512, (2000,))):
        cases.append((ranks, False, 20, 50_000))
        cases += [(ranks, True, 20, ranks * part) for part in parts]
    cases.append((64, True, 1, 64 * 5000))
    if dry:
        cases = [(8, parts, 4, 1600) for parts in (False, True)]
    for ranks, parts, buckets, cuts in cases:
        config = DataConfig(max_duration=240.0, num_buckets=buckets, rank_parts=parts, round_cuts=cuts)
        source = Durations(max(cuts, 1600 if dry else 200_000))
        if parts:
            drawn = ([step_ms(_seconds(cuts)) for cuts in own] for own in rank_batches(source, config, ranks))
            steps: List[Sequence[float]] = list(zip(*drawn))
        else:
            steps = list(_steps_of_all(source, config, ranks))
        slowest, work = sum(map(max, steps)), sum(map(sum, steps)) / ranks
        yield {
            "section": "stragglers", "ranks": ranks, "rank_parts": parts, "buckets": buckets, "round_cuts": cuts,
            "steps": len(steps), "mean_ms": round(work / len(steps), 1), "slowest_ms": round(slowest / len(steps), 1),
            "lost": round(1 - work / slowest, 4), "rate": round(sum(source.seconds_in(source.total)) / slowest * 1000),
        }  # fmt: skip


def _seconds(cuts: Iterable[Any]) -> List[float]:
    return [cut.duration for cut in cuts]


def _steps_of_all(source: Durations, config: DataConfig, ranks: int) -> Iterator[List[float]]:
    """Milliseconds of the batches of all ranks, step by step, where every rank draws for all.

    lhotse's sampler draws them one after another and gives a rank its own; at the end of a round it divides the cuts of
    the last ones among all ranks.
    """
    rounds = Rounds([source], config, SEED)
    sampler = TrainSampler(rounds, config, SEED, DistributedContext(0, ranks))
    for number in range(rounds.per_epoch):
        lhotse = iter(sampler._sampler(rounds.cuts(0, number)))
        lhotse.set_epoch(number)
        while True:
            batches = []
            with suppress(StopIteration):
                while len(batches) < ranks:
                    batches.append(_seconds(lhotse._next_batch()))
            if len(batches) == ranks:
                yield [step_ms(batch) for batch in batches]
                continue
            left = list(chain.from_iterable(batches))
            if left:
                left += left[: max(0, ranks - len(left))]
                yield [step_ms(left[n * len(left) // ranks : (n + 1) * len(left) // ranks]) for n in range(ranks)]
            break


def all_reduce(dry: bool) -> Iterator[Record]:
    """How long the gradients of a step take on the network: a ring moves 2 (n - 1) / n times their bytes.

    The machines of 8 GPUs add up their own gradients first (NVLink), so n is the number of machines.
    """
    tasks = build_tasks(["asr", "scd", "endp", "ner"], {})
    tokenizer = train_tokenizer([cut.supervisions[0].text for cut in made_up_cuts(200)], tasks, 500)
    with tempfile.TemporaryDirectory() as folder:
        Wav2Vec2Config(**XLSR).save_pretrained(folder)
        for name, rank in (("XLSR-53, all but convolutions", 0), ("XLSR-53, LoRA of rank 8", 8)):
            config = Config(model=ModelConfig(encoder=EncoderConfig(name=folder, random_init=True, lora_rank=rank)))
            config.tasks.names = tasks.names
            with torch.device("meta"):  # shapes only
                model = build_model(config, tasks, tokenizer)
            size = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
            for link, speed in LINKS.items():
                machines = 8 if link == "NVLink 4, one machine" else 64
                milliseconds = 2 * (machines - 1) / machines * size / speed / 1e6
                yield {
                    "section": "all_reduce", "trained": name, "mb": round(size / 1e6, 1), "link": link,
                    "gb_per_s": speed, "ms": round(milliseconds, 2), "of_step": round(milliseconds / LEAST_MS, 3),
                }  # fmt: skip


def storage(dry: bool) -> Iterator[Record]:
    """What hours of audio need on disk."""
    del dry
    for hours in HOURS:
        cuts = hours * 3600 / CUT_S
        yield {
            "section": "storage", "hours": hours, "cuts": cuts, "flac_tb": hours * FLAC_GB / 1e3,
            "opus_tb": hours * OPUS_GB / 1e3, "features_tb": hours * FEATURES_GB / 1e3,
            "manifest_gb": cuts * LINE_BYTES / 1e9, "gzip_gb": cuts * GZIP_BYTES / 1e9,
            "index_mb": cuts / EVERY * INDEX_BYTES / 1e6,
        }  # fmt: skip


def growth(dry: bool) -> Iterator[Record]:
    """Time on the clock of preparation on so many cores, and of an epoch and of decoding on so many GPUs."""
    del dry
    for hours in HOURS:
        for what, rate in (
            ("to FLAC shards, cores", 1 / SHAR_CORES),
            ("validate and label, cores", CUT_S / MANIFEST_CORES),
            ("an epoch, GPUs", MEASURED_RATE),
            ("decoding, beam 4, GPUs", DECODE_RATE),
        ):
            taken = {f"on_{n}": _duration(hours / rate / n) for n in GPUS}
            yield {"section": "growth", "hours": hours, "what": what, **taken}


def _duration(hours: float) -> str:
    """Hours with the unit that suits them."""
    for unit, size in (("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= size:
            return f"{hours / size:.2g} {unit}"
    return f"{hours * 3600:.2g} s"
