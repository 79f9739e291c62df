"""A real model, tiny and random, behind the server: each stream says what it says alone."""

import asyncio
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_transcriber import serving
from scripts import ROOT
from test_streams import spoken
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.decoding.hypothesis import Calibration
from tokenverse_pp.decoding.language_models import bonus_for
from tokenverse_pp.decoding.recognizer import Recognizer
from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.models.bundle import ModelBundle, load_model
from tokenverse_pp.serving.client import ServerError, StreamClient
from tokenverse_pp.serving.protocol import NEVER_IN_CHUNKS, Start
from tokenverse_pp.serving.worker import build_engine

TOY_MODEL = ROOT / "tests" / "oracles" / "fixtures" / "toy_model"
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


async def test_each_stream_is_searched_as_it_asks(tiny_corpus, tmp_path, caplog):
    """Languages, hotwords and the language model: of the server, of the connection; as the recognizer has them."""
    (tmp_path / "words.tsv").write_text("dun\t30\nibi\t12\nmab\t7\nuda\t5\nkalo\t2\n")
    loaded = load_model(TOY_MODEL)
    default = SearchOptions(lm=str(tmp_path / "words.tsv"), lm_scale=0.4, hotwords=("uda",))
    options = StreamingOptions(ChunkOptions(640, 2, 4), search=default)
    asked = [
        ({}, {}),
        ({"lm": False, "hotwords": []}, {"lm": None, "lm_scale": None, "hotwords": None}),
        ({"language": "QAB"}, {"languages": ("QAB",), "force_language": True}),
        ({"hotwords": ["dun ibi", ("mab", 4.0)]}, {"hotwords": ("dun ibi", ("mab", 4.0))}),
        ({"hotwords": ["kalo"], "hotword_score": 5}, {"hotwords": ("kalo",), "hotword_score": 5}),
        ({"lm_scale": 0.9, "lm_bonus": 3.0}, {"lm_scale": 0.9, "lm_bonus": 3.0}),
    ]
    audio = np.concatenate([cut.load_audio()[0] for cut in read_cuts(tiny_corpus, "test")[:2]]).astype(np.float32)
    async with serving(build_engine(loaded, options), closing_seconds=20.0) as server:
        clients = [StreamClient(server.url, format="float32", **fields) for fields, _ in asked]
        found = await asyncio.gather(*(spoken(client, audio, i) for i, client in enumerate(clients)))
    for (_, changes), events in zip(asked, found):
        recognizer = Recognizer(loaded, DecodeOptions(replace(default, **changes), chunks=options.chunks))
        ((best,),) = recognizer.recognize([torch.from_numpy(audio)])
        assert events[-1]["text"] == loaded.tokenizer.decode(best.tokens)
    assert len({events[-1]["text"] for events in found}) == len(asked)
    # The toy was trained with full context.
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [NEVER_IN_CHUNKS] and not clients[0].ready["trained_in_chunks"]
    greedy = Start(hotwords=("a",)).search(SearchOptions("greedy"))
    assert (greedy.method, greedy.hotwords) == ("beam", ("a",)) and Start().search(default) is None
    with pytest.raises(UserError, match="'lm_bonus': has no effect without a language model"):
        bonus_for(Start(lm=False, lm_bonus=1.0).search(default), loaded.tokenizer, loaded.tasks)


async def test_pauses_are_sent_to_who_asks_with_the_thresholds_of_the_model(tiny_corpus, tmp_path):
    shutil.copytree(TOY_MODEL, tmp_path / "model")
    Calibration(endpoints={300: 0.25}, endpoint_chunk_ms=320).write(tmp_path / "model" / "calibration.json")
    loaded = load_model(tmp_path / "model")
    options = StreamingOptions(ChunkOptions(320, 4, 4), search=SearchOptions("greedy"))
    audio = np.concatenate([cut.load_audio()[0] for cut in read_cuts(tiny_corpus, "test")[:2]]).astype(np.float32)
    async with serving(build_engine(loaded, options), closing_seconds=20.0) as server:
        clients = [StreamClient(server.url, format="float32", **fields) for fields in ({}, {"pauses": True})]
        silent, told = await asyncio.gather(*(spoken(client, audio, i) for i, client in enumerate(clients)))
    assert [client.ready.get("endpoint_thresholds") for client in clients] == [None, {"300": 0.25}]
    transcriber = StreamingTranscriber(loaded, options)
    stream = transcriber.open(pauses=True)
    alone = [*transcriber.push(stream, audio), *transcriber.close(stream)]
    expected = [(event.time, event.endpoint) for event in alone if event.kind == "pause"]
    found = [(event["time"], event["endpoint"]) for event in told if event["kind"] == "pause"]
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-4) and np.max(found) > 0.5
    assert not any(event["kind"] == "pause" for event in silent)
    assert [e["text"] for e in silent if e["kind"] != "partial"] == [
        e["text"] for e in told if e["kind"] not in ("partial", "pause")
    ]
    # For chunks of another length the thresholds were not fitted.
    assert not build_engine(loaded, replace(options, chunks=ChunkOptions(640, 4, 4))).endpoint_thresholds


async def test_streams_without_lid_are_not_bound_to_the_languages_of_the_server():
    loaded = load_model(TOY_MODEL)
    options = replace(OPTIONS, search=SearchOptions("beam", languages=("qab",)))
    hotwords = ["\ud800", ("mab", 1e30)]
    async with serving(build_engine(loaded, options)) as server:
        for fields in ({}, {"hotword_score": 3.0}, {"hotwords": ["mab"]}):
            events = await spoken(StreamClient(server.url, tasks=["asr"], **fields), np.zeros(1600, np.float32), 0)
            assert events[-1]["kind"] == "end"
        for word in hotwords:
            with pytest.raises(ServerError, match=r"bad_message: .*hotword") as caught:
                await spoken(StreamClient(server.url, hotwords=[word]), np.zeros(1600, np.float32), 0)
            assert caught.value.code == "bad_message"


async def test_lid_switched_on_later_is_bound_to_the_languages_of_the_server(tiny_corpus):
    """Also in a stream that is searched with options of its own."""
    options = replace(OPTIONS, chunks=ChunkOptions(640, 2, 4), search=SearchOptions("beam", languages=("qaa",)))
    engine = build_engine(load_model(TOY_MODEL), replace(options, inactive="suppress"))
    assert engine.language_tokens == ("[QAA]", "[QAB]")
    fields = {"tasks": ["asr", "endp"], "hotwords": ["mab"], "format": "float32"}
    async with serving(engine, closing_seconds=20.0) as server:
        for cut in read_cuts(tiny_corpus, "test")[:4]:
            async with StreamClient(server.url, **fields) as stream:
                await stream.set_tasks(["asr", "endp", "lid"])  # before the first word, where a language is written
                await stream.send(cut.load_audio()[0])
                await stream.end()
                tokens = [event["text"] async for event in stream if event["kind"] == "token"]
            assert [token for token in tokens if token.startswith("[QA")] == ["[QAA]"]
