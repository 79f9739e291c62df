"""What an epoch is: which cuts of which corpus, in rounds of a bounded size.

An epoch is `data.epoch_cuts` cuts (all that there are, without weights). It is drawn in rounds of at most
`data.round_cuts`, each by a sampler of its own, so that a resumed run draws no more than one round again; the lines
before it are skipped unparsed.

A corpus with share w of all the weights has given floor(n * w) cuts after n draws of the run, in the order of its file,
and starts again at its end. So the draws of any round are known from the numbers of epoch and round alone, a large
corpus with a small weight is seen whole in the course of epochs, and without weights (a corpus's share is then its
share of the cuts) an epoch is exactly every cut once. lhotse's multiplexer mixes the corpora of a round at random.

A cut that comes again within an epoch, or from another file of `data.train`, is marked (`dataset.PASS`), so that each
time has its own draw of active tasks. The mark follows from the number of the draw: it is the same for any number of
ranks and workers, and after a resume.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Iterator, List, Optional, Sequence, Tuple

from lhotse import CutSet
from lhotse.cut import Cut

from tokenverse_pp.config import DataConfig
from tokenverse_pp.dataset import marked
from tokenverse_pp.errors import UserError
from tokenverse_pp.training.sources import Source, open_source


class Part:
    """Cuts ``start`` to ``stop - 1`` of a source, as often as one likes (to the end of the file for None).

    Args:
        first: number of the cut with which the epoch begins, from where passes through the source count.
        file: number of the source in `data.train`.
    """

    def __init__(self, source: Source, start: int, stop: Optional[int], first: int = 0, file: int = 0):
        self.source = source
        self.start = start
        self.stop = stop
        self.first = first
        self.file = file

    def __iter__(self) -> Iterator[Cut]:
        if self.stop is None:
            return self.source.open_at(self.start)
        return self._marked(self.source.read(self.start, self.stop))

    def _marked(self, cuts: Iterator[Cut]) -> Iterator[Cut]:
        for number, cut in enumerate(cuts, start=self.start):
            yield marked(cut, self.file, (number - self.first) // self.source.count)


class Rounds:
    """The rounds of a run.

    Args:
        sources: the corpora.
        config: their weights, and the sizes of epochs and rounds.
        seed: for mixing corpora within a round.
    """

    def __init__(self, sources: Sequence[Source], config: DataConfig, seed: int):
        self.sources = list(sources)
        self.seed = seed
        counts = [source.count for source in sources]
        self.epoch_cuts = config.epoch_cuts or sum(counts)
        shares = [Fraction(str(weight)) for weight in config.weights] or [Fraction(count) for count in counts]
        self.shares = [share / sum(shares) for share in shares]
        self.per_epoch = -(-self.epoch_cuts // config.round_cuts)

    def ranges(self, epoch: int, number: int) -> List[Tuple[int, int]]:
        """For each corpus the first cut of a round and the one after its last, counted from the start of the run."""
        bounds = [epoch * self.epoch_cuts + n * self.epoch_cuts // self.per_epoch for n in (number, number + 1)]
        return [(int(bounds[0] * share), int(bounds[1] * share)) for share in self.shares]

    def cuts(self, epoch: int, number: int) -> CutSet:
        """The cuts of a round, lazily."""
        ranges = self.ranges(epoch, number)
        firsts = [start for start, _ in self.ranges(epoch, 0)]
        parts = [
            CutSet(Part(source, *ranges[file], firsts[file], file))
            for file, source in enumerate(self.sources)
            if ranges[file][1] > ranges[file][0]
        ]
        if len(parts) < 2:
            return parts[0] if parts else CutSet([])
        sizes = [float(stop - start) for start, stop in ranges if stop > start]
        seed = (self.seed * 1_000_003 + epoch) * self.per_epoch + number
        return CutSet.mux(*parts, weights=sizes, stop_early=False, seed=seed)


def open_rounds(config: DataConfig, seed: int) -> Rounds:
    """The rounds of what the configuration names (raises UserError for a file that is missing, empty or no CutSet)."""
    if not config.train:
        raise UserError("--data.train: expected at least one CutSet file")
    return Rounds([open_source(path) for path in config.train], config, seed)
