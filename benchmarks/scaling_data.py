"""Sections of scaling.py about the data: rates of a core, a resume in 1e8 cuts, and 512 ranks that draw batches.

Corpora are made as they are read. Where a file must be there, as for an index, it is sparse: only the lines that a rank
reads are written, at the place that they have among 1e8.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.cut import Cut
from sampler_restore import made_up_cuts, make_wanted

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.lines import EVERY, LineIndex, index_path, sample
from tokenverse_pp.data.manifests import cut_of_line, row_bytes, writing_rows
from tokenverse_pp.data.samplers import CutSource, Rounds, SamplerState, TrainSampler, open_rounds, open_source

Record = Dict[str, Any]
SEED = 1
KINDS = 2000  # different lines, which repeat under other ids
MEDIAN_S, SPREAD = 6.0, 0.6  # of the made-up durations: log-normal, cut off at 0.5 and 30 s


class Lines(CutSource):
    """So many cuts as JSON lines that are parsed as those of a file are, made as they are read."""

    def __init__(self, count: int):
        super().__init__(f"{count} cuts")
        self.lines = [row_bytes(cut.to_dict()).decode() for cut in made_up_cuts(min(KINDS, count))]
        self.total = count

    def count_cuts(self) -> int:
        """See CutSource."""
        return self.total

    def line(self, number: int) -> str:
        """The line of a cut."""
        kind = number % len(self.lines)
        return self.lines[kind].replace(f'"id": "c{kind}"', f'"id": "c{number}"', 1)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource."""
        for number in range(place, self.total):
            yield cut_of_line(self.line(number), self.path)


class Durations(CutSource):
    """So many cuts that have an id and a duration of a realistic spread, and nothing else."""

    def __init__(self, count: int):
        super().__init__(f"{count} durations")
        self.total = count
        drawn = np.random.default_rng(SEED).lognormal(np.log(MEDIAN_S), SPREAD, 1_000_003)
        self.seconds = np.clip(drawn, 0.5, 30.0).round(2)

    def count_cuts(self) -> int:
        """See CutSource."""
        return self.total

    def seconds_in(self, count: int) -> np.ndarray:
        """The durations of the first cuts."""
        return np.resize(self.seconds, count)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource."""
        for number in range(place, self.total):
            yield MonoCut(str(number), 0.0, float(self.seconds[number % len(self.seconds)]), 0)


class Simulated(DistributedContext):
    """A rank among others that are not there; ``told``: what all tell each other, one item a call of `gather`."""

    told: Iterator[List[Any]] = iter(())

    def gather(self, item: Any) -> List[Any]:
        """See DistributedContext."""
        count, counted = item
        found = next(self.told)
        assert found[self.rank] == count, "a rank draws the same batches twice"
        return [(other, counted) for other in found]


def rank_batches(source: CutSource, config: DataConfig, ranks: int, epoch: int = 0) -> Iterator[List[List[Cut]]]:
    """For each rank its batches of an epoch, with `data.rank_parts`; one rank is in memory at a time."""
    rounds = Rounds([source], config, SEED)

    def sampler(rank: int) -> Tuple[Simulated, TrainSampler]:
        world = Simulated(rank, ranks)
        return world, TrainSampler(rounds, config, SEED, world)

    sizes = [[sum(1 for _ in sampler(r)[1].draw(epoch, n)) for r in range(ranks)] for n in range(rounds.per_epoch)]
    for rank in range(ranks):
        world, drawn = sampler(rank)
        object.__setattr__(world, "told", iter(sizes))
        yield [list(cuts) for _, cuts in drawn.batches(SamplerState(epoch))]


def seconds_of(call: Callable[[], Any]) -> float:
    """Processor seconds of a call: those on the clock, where nothing else runs."""
    start = time.process_time()
    call()
    return time.process_time() - start


def rates(dry: bool) -> Iterator[Record]:
    """What one core does in a second, a million cuts as the unit; from files of fewer."""
    count = 2000 if dry else 200_000
    lines, scale = Lines(count), 1e6 / count
    yield _rate("parse a line", lambda: list(lines.read(0, count)), scale)
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("jsonl", "jsonl.gz"):
            path = Path(folder) / f"cuts.{ending}"
            with writing_rows(path) as rows:
                for cut in made_up_cuts(count):
                    rows.write(cut.to_dict())
            source = open_source(str(path))
            yield {
                **_rate(f"count the lines, {ending}", lambda source=source: source.count_cuts(), scale),
                "bytes": round(path.stat().st_size / count, 1),
            }
            yield _rate(
                f"skip to the last line, {ending}", lambda source=source: next(source.open_at(count - 1)), scale
            )
            yield _rate(f"compare the content, {ending}", lambda source=source: source.fingerprint(), scale)
            yield _rate(f"manifest index, {ending}", lambda source=source: source.write_index(), scale)
            if ending == "jsonl":
                indexed, places = open_source(str(path)), range(EVERY // 2, count, EVERY)
                yield _rate(
                    "find a cut by the index",
                    lambda source=indexed, places=places: [next(source.open_at(place)) for place in places],
                    1e6 / len(places),
                )
        yield _shar(Path(folder), 20 if dry else 300)


def _rate(what: str, call: Callable[[], Any], scale: float) -> Record:
    return {"section": "rates", "what": what, "cpu_s": round(scale * seconds_of(call), 3)}


def _shar(folder: Path, count: int) -> Record:
    """`manifest to-shar` with FLAC: WAV of 10 s, tones in noise."""
    import soundfile
    from lhotse import Recording

    from tokenverse_pp.data.editing.shar import write_shar

    rng, cuts = np.random.default_rng(SEED), []
    for number, like in enumerate(made_up_cuts(count)):
        tones = sum(np.sin(2 * np.pi * f * np.arange(160_000) / 16_000) for f in rng.uniform(80, 4000, 20))
        soundfile.write(folder / f"{number}.wav", (0.02 * tones + 0.002 * rng.normal(size=160_000)), 16_000)
        cut = Recording.from_file(folder / f"{number}.wav").to_cut()
        cut.supervisions, cut.custom = like.supervisions, like.custom
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder / "audio.jsonl")
    spent = seconds_of(lambda: write_shar(folder / "audio.jsonl", folder / "shar", 100))
    return {"section": "rates", "what": "manifest to-shar, FLAC, 10 s a cut", "cpu_s": round(1e6 * spent / count, 1)}


def resume(dry: bool) -> Iterator[Record]:
    """Time and memory of a rank of 512 until the first batch after a resume in 1e8 cuts, in a process of its own."""
    total, ranks, per_rank = (200_000, 8, 500) if dry else (100_000_000, 512, 20_000)
    for share in (0.0, 0.5, 0.999):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cuts.jsonl"
            config = DataConfig(train=[str(path)], rank_parts=True, round_cuts=ranks * per_rank, num_workers=0)
            per_epoch = -(-total // config.round_cuts)
            number, rank = min(int(share * per_epoch), per_epoch - 1), ranks - 1
            sparse_corpus(path, total, config, number, ranks, rank)
            command = [sys.executable, __file__, str(path), str(config.round_cuts), str(number), str(ranks), str(rank)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            about = {"section": "resume", "cuts": total, "ranks": ranks, "place": share, "round": number}
            yield {**about, **found, "disk_mb": round(path.stat().st_blocks * 512 / 1e6, 1)}


def sparse_corpus(path: Path, total: int, config: DataConfig, number: int, ranks: int, rank: int) -> None:
    """A file of so many lines with an index, of which the first and those of a rank in two rounds are written."""
    source = Lines(total)
    width = max(len(source.line(total - len(source.lines) + kind)) for kind in range(len(source.lines)))
    rounds = Rounds([source], config, SEED)
    parts = [(0, 20_000)]
    for each in (number, number + 1):
        (start, stop), size = rounds.ranges(0, min(each, rounds.per_epoch - 1))[0], ranks
        parts.append((start + (stop - start) * rank // size, start + (stop - start) * (rank + 1) // size))
    with open(path, "wb") as file:
        file.truncate(total * width)
        for start, stop in parts:
            start = start // EVERY * EVERY  # an offset of the index: it is read from there
            file.seek(start * width)
            for at in range(start, min(stop, total)):
                file.write(source.line(at)[:-1].ljust(width - 1).encode() + b"\n")
    offsets = [*range(0, total * width, EVERY * width)]
    index = LineIndex([path.name], [total * width], [total], offsets, "0" * 64, [sample(path)])
    index_path(path).write_text(json.dumps(vars(index)), encoding="utf-8")


class Alike(DistributedContext):
    """A rank whose peers tell it what it tells them."""

    def gather(self, item: Any) -> List[Any]:
        """See DistributedContext."""
        return [item] * self.size


def first_batch(path: str, round_cuts: int, number: int, ranks: int, rank: int) -> Record:
    """What a rank does with its data when it resumes in the last quarter of a round, up to the first batch."""
    config = DataConfig(train=[path], rank_parts=True, round_cuts=round_cuts)
    wanted = make_wanted(True)
    imports = peak_mb()
    clock, start = time.perf_counter(), time.process_time()
    rounds = open_rounds(config, SEED)
    rounds.sources[0].fingerprint()
    batch = round_cuts // ranks // 20  # made-up cuts of 8 s: 15 are a batch
    next(TrainSampler(rounds, config, SEED, Alike(rank, ranks), wanted).batches(SamplerState(0, number, batch)))
    return {
        "batch": batch,
        "seconds": round(time.perf_counter() - clock, 2),
        "cpu_s": round(time.process_time() - start, 2),
        "peak_mb": peak_mb(),
        "imports_mb": imports,
    }


def peak_mb() -> int:
    """The most memory that this process has held, as Linux counts it (ru_maxrss would be that of its parent too)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024


def drawing(dry: bool) -> Iterator[Record]:
    """How long a rank takes to draw its batch of a step, by the number of ranks; texts are tokenised.

    Without parts: once the buffer of cuts is filled. With them: of a whole part, its reading included.
    """
    wanted = make_wanted(True)
    for ranks in (1, 8, 64, 512):
        for parts in (False, True) if ranks > 1 else (False,):
            config = DataConfig(rank_parts=parts, round_cuts=(500 if dry else 20_000) * ranks if parts else 10_000_000)
            rounds = Rounds([Lines(100_000_000)], config, SEED)
            sampler = TrainSampler(rounds, config, SEED, DistributedContext(ranks - 1, ranks), wanted)
            sampler.look()
            drawn, most = sampler.draw(0, 0), None if parts else 4 if dry or ranks > 8 else 256
            if most:
                next(drawn)
            start = time.process_time()
            steps = sum(1 for _ in islice(drawn, most))
            spent = 1000 * (time.process_time() - start) / steps
            yield {"section": "drawing", "ranks": ranks, "rank_parts": parts, "ms": round(spent, 2)}


def ranks(dry: bool) -> Iterator[Record]:
    """Whole rounds of simulated ranks: numbers of batches, cuts that are lost or drawn twice, cuts held by a rank."""
    for count, part in ((64, 50),) if dry else ((64, 1000), (512, 1000)):
        config = DataConfig(rank_parts=True, round_cuts=count * part)
        seen: Counter = Counter()
        batches = []
        for drawn in rank_batches(Durations(2 * count * part), config, count):
            batches.append(len(drawn))
            seen.update(cut.id for batch in drawn for cut in batch)
        yield {
            "section": "ranks", "ranks": count, "cuts": 2 * count * part, "rounds": 2,
            "batches": f"{min(batches)} to {max(batches)}",
            "lost": 2 * count * part - len(seen), "twice": sum(n > 1 for n in seen.values()),
        }  # fmt: skip


if __name__ == "__main__":
    path, *numbers = sys.argv[1:]
    print(json.dumps(first_batch(path, *map(int, numbers))))
