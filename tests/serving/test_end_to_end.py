"""A real model, tiny and random, behind the server: each stream says what it says alone."""

import asyncio

import numpy as np
import pytest
from fake_transcriber import serving
from test_streams import send_pieces
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.serving.client import StreamClient
from tokenverse_pp.serving.worker import build_engine

STREAMS = 8
# A random model writes next to nothing by itself.
OPTIONS = StreamingOptions(
    chunks=ChunkOptions(chunk_ms=320, left_chunks=2, sinks=1), search=SearchOptions(method="greedy", blank_penalty=2.0)
)


@pytest.fixture(scope="module")
def loaded(tiny_corpus):
    parts = toy_parts(tiny_corpus)
    return ModelBundle(parts.config, parts.tasks, parts.tokenizer, parts.model)


@pytest.fixture(scope="module")
def talks(tiny_corpus):
    """Different audio for each stream, as 16-bit numbers have it."""
    cuts = read_cuts(tiny_corpus)[:STREAMS]
    return [np.rint(cut.load_audio()[0] * 32767).astype(np.float32) / 32768 for cut in cuts]


def alone(loaded, audio, tasks):
    transcriber = StreamingTranscriber(loaded, OPTIONS)
    stream = transcriber.open(tasks)
    return [*transcriber.push(stream, audio), *transcriber.close(stream)]


def test_each_stream_says_what_it_says_alone(loaded, talks):
    engine = build_engine(loaded, OPTIONS)
    tasks = [["asr"], None, ["asr", "scd", "lid"]]

    async def speak(server, i):
        import random

        async with StreamClient(server.url, tasks=tasks[i % 3], reset_at_endpoint=False) as stream:
            sending = asyncio.ensure_future(send_pieces(stream, talks[i], random.Random(i)))
            events = [event async for event in stream]
            await sending
            return events

    async def main():
        async with serving(engine, closing_seconds=20.0) as server:
            return await asyncio.gather(*(speak(server, i) for i in range(STREAMS)))

    found = asyncio.run(main())
    expected = [alone(loaded, audio, tasks[i % 3]) for i, audio in enumerate(talks)]
    for events, single in zip(found, expected):
        said = [(event["kind"], event["text"]) for event in events if event["kind"] != "partial"]
        assert said == [(event.kind, event.text) for event in single if event.kind != "partial"]
        assert events[-1]["time"] == pytest.approx(single[-1].time)
    # What identifies a stream: no two say the same.
    assert len({events[-1]["text"] for events in found}) == STREAMS


def test_the_engine_offers_what_it_is_told_to(loaded):
    from dataclasses import replace

    engine = build_engine(loaded, replace(OPTIONS, tasks=("asr", "ner")))
    assert engine.tasks == ("asr", "ner") and engine.chunk_samples == 5120
