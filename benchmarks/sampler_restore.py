"""How long a resumed run takes to come back to its place in an epoch.

    OMP_NUM_THREADS=1 python benchmarks/sampler_restore.py --cuts 1000000 --json restore.json

Made-up cuts of 1 to 15 s with texts of ten words, in one manifest; the default sampler. One JSON record a line: format,
cuts, place (the share of the epoch that is done), encode (whether targets are tokenised, as training does to leave out
those that are too long), seconds until the first batch, and cpu_seconds, which other work here does not change.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import SamplerState, TrainSampler, open_rounds
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.transcript import transcript_of

PLACES = (0.0, 0.5, 0.999)


def made_up_cuts(count: int) -> Iterator[Cut]:
    """Cuts without audio."""
    rng = random.Random(1)
    syllables = [a + b for a in "bdgkmnprst" for b in "aeiou"]
    for number in range(count):
        duration = round(rng.uniform(1, 15), 2)
        text = " ".join("".join(rng.choices(syllables, k=3)) for _ in range(10))
        recording = Recording(f"r{number}", [], 16000, round(duration * 16000), duration)
        turn = SupervisionSegment(f"s{number}", f"r{number}", 0.0, duration, text=text, language="fr")
        yield MonoCut(f"c{number}", 0.0, duration, 0, [turn], recording=recording, custom={"tasks": ["asr"]})


def make_wanted(encode: bool) -> Callable[[Cut], bool]:
    """A predicate that all cuts meet, with the work of `tokenverse_pp.data.dataset.Usable` or without."""
    if not encode:
        return bool
    tasks = build_tasks(["asr"], {})
    texts = [cut.supervisions[0].text for cut in made_up_cuts(1000)]
    tokenizer = train_tokenizer(texts, tasks, 500)
    return lambda cut: len(tokenizer.encode(tasks.render(transcript_of(cut, tasks)))) > 0


def measure(path: Path, share: float, encode: bool) -> Dict[str, float]:
    """From opening the corpus to the first batch."""
    config = DataConfig(train=[str(path)])
    wanted = make_wanted(encode)
    start = time.perf_counter(), time.process_time()
    rounds = open_rounds(config, seed=1)
    number = min(int(share * rounds.per_epoch), rounds.per_epoch - 1)
    # About 15 cuts of 8 s are a batch.
    skip = int((share * rounds.per_epoch - number) * rounds.epoch_cuts / rounds.per_epoch / 15 * 0.9)
    next(TrainSampler(rounds, config, 1, DistributedContext(), wanted).batches(SamplerState(0, number, skip)))
    ends = time.perf_counter(), time.process_time()
    return {name: round(end - begin, 2) for name, begin, end in zip(("seconds", "cpu_seconds"), start, ends)}


def main() -> None:
    """Write the manifests and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    records: List[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("jsonl", "jsonl.gz"):
            path = Path(folder) / f"cuts.{kind}"
            with CutSet.open_writer(path) as writer:
                for cut in made_up_cuts(args.cuts):
                    writer.write(cut)
            for share in PLACES:
                for encode in (False, True):
                    record: Dict[str, Any] = {"format": kind, "cuts": args.cuts, "place": share, "encode": encode}
                    record.update(measure(path, share, encode))
                    records.append(json.dumps(record))
                    print(records[-1], flush=True)
    if args.json:
        args.json.write_text("\n".join(records) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
