"""A real model, tiny and random, behind the server: each stream says what it says alone."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from fake_transcriber import serving
from test_streams import spoken
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.serving.client import StreamClient
from tokenverse_pp.serving.worker import build_engine

STREAMS = 8
# A random model emits next to nothing by itself.
OPTIONS = StreamingOptions(
    chunks=ChunkOptions(chunk_ms=320, left_chunks=2, sinks=1), search=SearchOptions(method="greedy", blank_penalty=2.0)
)
TASKS = [["asr"], None, ["asr", "scd", "lid"]]


async def test_each_stream_says_what_it_says_alone(tiny_corpus):
    parts = toy_parts(tiny_corpus)
    loaded = ModelBundle(parts.config, parts.tasks, parts.tokenizer, parts.model)
    cuts = read_cuts(tiny_corpus)[:STREAMS]
    talks = [np.rint(cut.load_audio()[0] * 32767).astype(np.float32) / 32768 for cut in cuts]  # exact in 16 bits
    async with serving(build_engine(loaded, OPTIONS), closing_seconds=20.0) as server:
        clients = [StreamClient(server.url, tasks=TASKS[i % 3]) for i in range(STREAMS)]
        found = await asyncio.gather(*(spoken(clients[i], talks[i], i) for i in range(STREAMS)))
    for i, events in enumerate(found):
        transcriber = StreamingTranscriber(loaded, OPTIONS)
        stream = transcriber.open(TASKS[i % 3])
        alone = [*transcriber.push(stream, talks[i]), *transcriber.close(stream)]
        said = [(event["kind"], event["text"]) for event in events if event["kind"] != "partial"]
        assert said == [(event.kind, event.text) for event in alone if event.kind != "partial"]
        assert events[-1]["time"] == pytest.approx(alone[-1].time)
    assert len({events[-1]["text"] for events in found}) == STREAMS  # no two say the same
    engine = build_engine(loaded, replace(OPTIONS, tasks=("asr", "ner")))
    assert engine.tasks == ("asr", "ner") and engine.chunk_samples == 5120
