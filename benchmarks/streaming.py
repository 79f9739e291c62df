#!/usr/bin/env python3
"""Streaming: time of a chunk, real-time factor, memory, hours of audio, delay of what is told.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py --model tokenverse_pp/pretrained/human_speech \\
        --encoder data/whisper-base --cuts CUTS --json benchmarks/results/streaming.json \\
        --table benchmarks/results/streaming.md

Audio is that of the cuts, one behind the other and again from the start. Records, one a line:

- ``speed``: each chunk length, number of streams and search. ``rtf`` is seconds of computing a second of audio of one
  stream (streams x rtf < 1: all of them keep up), ``median_ms`` and ``p99_ms`` what a chunk of all streams takes.
- ``long``: one stream of --minutes; the times of the 100 chunks before the minutes heard, and the memory then.
- ``delay``: see `streaming_delay.py`.
- ``agreement``: cuts whose text as a stream is that of the masked full pass.
- ``re-decoding`` (the peer): the same model with full context over all audio so far, once a chunk. There is no model
  for sherpa-onnx without a hub; and it is what one would do without streaming.

--quick runs all of it on a small size, within a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch
from streaming_delay import measure_agreement, measure_delays
from torch import Tensor

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_text
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.dataset import SAMPLING_RATE, load_inputs
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.decoding.recognizer import search
from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.models.bundle import load_model

Record = Dict[str, Any]
QUICK = {"chunk_ms": [640], "streams": [1, 4], "seconds": 4.0, "minutes": 0.3, "most": 3, "peer_seconds": 4.0}
WARM_UP, WINDOW = 3, 100  # chunks
LONG_CHUNK_MS = 640


def rss_mb() -> float:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def times_of(milliseconds: Sequence[float]) -> Record:
    """Median and 99th percentile."""
    return {"median_ms": float(np.median(milliseconds)), "p99_ms": float(np.percentile(milliseconds, 99))}


class Run:
    """The records of a run."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.loaded = load_model(args.model, args.encoder)
        self.cuts = list(read_cuts(args.cuts))
        self.audio = torch.cat([load_inputs(cut, convert=True) for cut in islice(self.cuts, 60)])
        self.records: List[Record] = []

    def note(self, **record: Any) -> None:
        """Add a record, and say it."""
        self.records.append(record)
        print(json.dumps(record), file=sys.stderr)

    def transcriber(self, chunk_ms: int, method: str) -> StreamingTranscriber:
        """Streams with these chunks and this search."""
        chunks = ChunkOptions(chunk_ms, self.args.left_chunks, self.args.sinks)
        return StreamingTranscriber(self.loaded, StreamingOptions(chunks, search=SearchOptions(method)))

    def about(self, chunk_ms: int, method: str, streams: int) -> Record:
        """What all records of streams say."""
        sizes = {"chunk_ms": chunk_ms, "left_chunks": self.args.left_chunks, "sinks": self.args.sinks}
        return {"peer": "tokenverse_pp", "method": method, **sizes, "streams": streams}

    def chunks(self, samples: int, offset: int = 0) -> Iterator[Tensor]:
        """The audio in chunks, for ever."""
        audio = self.audio.roll(-offset)
        return cycle(audio[: len(audio) // samples * samples].split(samples))

    def speed(self, chunk_ms: int, method: str, count: int) -> None:
        """Chunks of ``count`` streams at once."""
        transcriber = self.transcriber(chunk_ms, method)
        samples = transcriber.encoder.chunk_samples
        streams = [transcriber.open() for _ in range(count)]
        feeds = [self.chunks(samples, 7919 * row) for row in range(count)]
        steps, took = WARM_UP + max(10, round(self.args.seconds * 1000 / chunk_ms)), []
        for _ in range(steps):
            pieces = [(stream, next(feed)) for stream, feed in zip(streams, feeds)]
            start = time.perf_counter()
            transcriber.push_many(pieces)
            took.append(1000 * (time.perf_counter() - start))
        took = took[WARM_UP:]
        self.note(
            what="speed",
            **self.about(chunk_ms, method, count),
            rtf=sum(took) / (len(took) * chunk_ms * count),
            **times_of(took),
            minutes=steps * chunk_ms / 60000,
            rss_mb=rss_mb(),
        )

    def long(self, method: str) -> None:
        """One stream of many minutes."""
        transcriber = self.transcriber(LONG_CHUNK_MS, method)
        stream, feed = transcriber.open(), self.chunks(transcriber.encoder.chunk_samples)
        last = max(WINDOW // 4, round(self.args.minutes * 60000 / LONG_CHUNK_MS))
        minute = 60000 / LONG_CHUNK_MS
        marks = {last, *(round(m * minute) for m in (1, 10, 30, 60, 90) if m * minute < last)}
        took: List[float] = []
        for number in range(1, last + 1):
            piece, start = next(feed), time.perf_counter()
            transcriber.push(stream, piece)
            took = [*took[1 - WINDOW :], 1000 * (time.perf_counter() - start)]
            if number in marks or number == 10:
                recent = took[WARM_UP:] if number <= WINDOW else took
                rtf = sum(recent) / (len(recent) * LONG_CHUNK_MS)
                about, heard = self.about(LONG_CHUNK_MS, method, 1), number / minute
                self.note(what="long", **about, rtf=rtf, **times_of(recent), minutes=heard, rss_mb=rss_mb())

    def tell(self, chunk_ms: int, method: str) -> None:
        """Delays of words, endpoints and speaker changes, and agreement with the masked full pass."""
        labelled = [cut for cut in self.cuts if {"scd", "endp"} <= set(labelled_tasks(cut))]
        several = sorted(labelled, key=lambda cut: (len(cut.supervisions) < 2, cut.id))
        transcriber, some = self.transcriber(chunk_ms, method), several[: self.args.most]
        for record in [*measure_delays(transcriber, some), measure_agreement(transcriber, some)]:
            self.note(**self.about(chunk_ms, method, 1), **record)

    def peer(self, chunk_ms: int, method: str) -> None:
        """Full-context decoding of everything so far, once a chunk."""
        samples, took = chunk_ms * SAMPLING_RATE // 1000, []
        count = int(self.args.peer_seconds * 1000) // chunk_ms
        for end in range(1, count + 1):
            start = time.perf_counter()
            search(self.loaded, [self.audio[: end * samples]], options=SearchOptions(method))
            took.append(1000 * (time.perf_counter() - start))
        self.note(
            what="re-decoding",
            **{**self.about(chunk_ms, method, 1), "peer": "full re-decoding", "left_chunks": None, "sinks": None},
            rtf=sum(took) / (count * chunk_ms),
            **times_of(took),
            last_ms=took[-1],
            minutes=count * chunk_ms / 60000,
            rss_mb=rss_mb(),
        )

    def all(self) -> None:
        """Everything."""
        args = self.args
        for chunk_ms in args.chunk_ms:
            for method in args.method:
                for streams in args.streams:
                    self.speed(chunk_ms, method, streams)
                self.tell(chunk_ms, method)
            self.peer(chunk_ms, args.method[0])
        for method in args.method:
            self.long(method)


SPEED = ("peer", "method", "chunk_ms", "left_chunks", "sinks", "streams", "rtf", "median_ms", "p99_ms", "minutes")
SECTIONS = (
    (("agreement",), "**The same text as the masked full pass**", ("method", "chunk_ms", "cuts", "same")),
    (("speed", "re-decoding"), "**Time of a chunk**", (*SPEED, "rss_mb")),
    (("long",), "**A long stream**", ("method", "chunk_ms", "minutes", "rtf", "median_ms", "p99_ms", "rss_mb")),
    (
        ("delay",),
        "**Delay of what is told** (seconds of audio)",
        (
            *("of", "method", "chunk_ms", "references", "told"),
            *("first_median_s", "first_p90_s", "final_median_s", "final_p90_s"),
        ),
    ),
)


def table(records: Sequence[Record]) -> str:
    """The records as Markdown tables."""
    parts = []
    for kinds, title, columns in SECTIONS:
        rows = [[_cell(record.get(name)) for name in columns] for record in records if record["what"] in kinds]
        lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
        parts.append("\n".join([title, "", *lines]))
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--encoder", default="", help="where its pretrained encoder is")
    parser.add_argument("--cuts", type=Path, required=True, help="cuts with audio, labelled for scd and endp")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here, one a line")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write Markdown tables")
    parser.add_argument("--quick", action="store_true", help=f"a small size: {QUICK}")
    parser.add_argument("--chunk-ms", type=int, nargs="+", default=[320, 640, 1280, 2560])
    parser.add_argument("--left-chunks", type=int, default=4)
    parser.add_argument("--sinks", type=int, default=16)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--method", nargs="+", default=["greedy", "beam"])
    parser.add_argument("--seconds", type=float, default=20.0, help="of audio a stream, for speed")
    parser.add_argument("--minutes", type=float, default=120.0, help="of the long stream")
    parser.add_argument("--most", type=int, default=60, help="cuts to measure delays on")
    parser.add_argument("--peer-seconds", type=float, default=28.0, help="of audio for re-decoding")
    args = parser.parse_args(arguments)
    if args.quick:
        vars(args).update(QUICK)
    if args.peer_seconds * 1000 < max(args.chunk_ms):
        raise UserError(f"--peer-seconds {args.peer_seconds:g}: expected at least one chunk")
    torch.set_num_threads(1)
    run = Run(args)
    run.all()
    lines = "".join(json.dumps(record) + "\n" for record in run.records)
    if args.json:
        write_text(args.json, lines)
    else:
        sys.stdout.write(lines)
    if args.table:
        write_text(args.table, table(run.records))


if __name__ == "__main__":
    with report_errors():
        main()
