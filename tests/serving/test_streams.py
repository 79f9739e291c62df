"""Streams through a real server on this machine: nothing is mixed up, and each end has a reason."""

import asyncio
import json
import random
import threading

import numpy as np
import pytest
from fake_transcriber import BROKEN, CHUNK, RATE, REFUSED, TASKS, fake_engine, serving, tone
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tokenverse_pp.serving.client import ServerError, StreamClient, transcribe
from tokenverse_pp.serving.protocol import End, Start, start_message, write_audio
from tokenverse_pp.serving.worker import Feed, Worker

START, END = start_message(Start()), '{"kind": "end"}'


async def read_all(socket):
    """All messages up to the close frame -> messages, close code, reason."""
    messages = []
    try:
        while True:
            messages.append(json.loads(await socket.recv()))
    except ConnectionClosed as error:
        return messages, error.rcvd.code, error.rcvd.reason


async def told(url, *messages):
    """The error that a client gets which sends these messages and waits: code, message, close code."""
    async with connect(url) as socket:
        for message in messages:
            try:
                await socket.send(message)
            except ConnectionClosed:
                break
        found, code, reason = await read_all(socket)
        error = found[-1]
        assert error["kind"] == "error" and "\n" not in error["message"], found
        assert reason.startswith(f"{error['code']}: {error['message']}"[:100])
        return error["code"], error["message"], code


async def spoken(client, audio, seed=0):
    """Send audio in pieces of random length -> events."""
    rng = random.Random(seed)

    async def send(stream):
        begin = 0
        while begin < len(audio):
            end = begin + rng.randrange(1, 5000)
            await stream.send(audio[begin:end])
            begin = end
        await stream.end()

    async with client as stream:
        sending = asyncio.ensure_future(send(stream))
        events = [event async for event in stream]
        await sending
        return events


def tones(*values):
    """A second of each value."""
    return np.concatenate([tone(value, 1.0) for value in values])


def words(*values, count=10):
    """The words for a second of each value."""
    return [f"v{value}" for value in values for _ in range(count)]


async def test_what_is_said_comes_back():
    async with serving() as server:
        client = StreamClient(server.url)
        events = await spoken(client, tones(3, 4))
    assert client.ready["kind"] == "ready" and client.ready["tasks"] == list(TASKS)
    assert client.ready["chunk_seconds"] == CHUNK / RATE
    assert len({event["stream"] for event in events}) == 1
    assert events[-1]["kind"] == "end" and events[-1]["text"].split() == words(3, 4)
    said = [event["text"] for event in events if event["kind"] in ("final", "token")]
    assert said == [*words(3), "[SCD]", *words(4)]
    first = next(event for event in events if event["kind"] == "final")
    assert first["words"] == [{"text": "v3", "start": 0.1, "end": 0.2, "confidence": 1.0}]
    assert any(event["kind"] == "partial" for event in events)


@pytest.mark.parametrize("format", ["pcm16", "float32"])
async def test_fifty_streams_are_not_mixed_up(format):
    """Different audio in each, all at once, in pieces of any length; the model runs batches, in one thread."""
    talks = [[10 * i + 1, 10 * i + 2, -10 * i] for i in range(50)]
    engine = fake_engine()
    async with serving(engine) as server:
        clients = [StreamClient(server.url, format=format, reset_at_endpoint=i % 5 == 0) for i in range(50)]
        said = await asyncio.gather(
            *(spoken(client, tones(*talk), i) for i, (client, talk) in enumerate(zip(clients, talks)))
        )
        assert server.ended == {"end": 50} and not server.streams
    for talk, events in zip(talks, said):
        assert events[-1]["text"].split() == words(*talk)
    assert len({event["stream"] for events in said for event in events}) == 50
    for transcriber in engine.transcribers.values():
        assert transcriber.threads == {"model"} and max(transcriber.batches) > 1


async def test_tasks_are_switched_where_the_message_stands():
    async with serving() as server, StreamClient(server.url, tasks=["scd"], partials=False) as stream:
        assert stream.ready["tasks"] == ["asr", "scd"]
        for value, tasks in ((1, ["asr"]), (2, ["scd", "asr"]), (3, ["lid"])):
            await stream.send(tone(value, 0.1))
            await stream.send(tone(value + 10, 0.1))
            await stream.set_tasks(tasks)
        await stream.end()
        found = [event.get("tasks", event.get("text")) async for event in stream]
    # The word of a chunk settles when the next chunk comes, under the tasks of that moment.
    assert found == [
        "v1", ["asr"], "v11", "v2", ["asr", "scd"], "[SCD]", "v12", "[SCD]", "v3", ["asr", "lid"], "v13",
        "v1 v11 v2 v12 v3 v13",
    ]  # fmt: skip


async def test_events_are_told_while_the_source_of_the_audio_blocks():
    arrived = threading.Event()

    def microphone():
        yield tone(5, 0.3)
        assert arrived.wait(20), "no event until the source ended"
        yield tone(6, 0.1)

    async with serving() as server:
        events = await asyncio.to_thread(transcribe, server.url, microphone(), lambda event: arrived.set())
    assert events[-1]["text"] == "v5 v5 v5 v6"


async def test_a_stream_of_no_audio_ends():
    async with serving() as server, StreamClient(server.url) as stream:
        await stream.send(tone(1, 0))
        await stream.end()
        assert [event["kind"] async for event in stream] == ["end"]


PCM = write_audio(tone(5, 0.1), "pcm16")
FLOAT_START = start_message(Start(format="float32"))
WRONG = {
    ("bad_message", 1007): [
        ([PCM], "audio before 'start'"),
        ([END], "'end' before 'start'"),
        (["{"], "not JSON"),
        (["[" * 9000], "not JSON"),
        (["7"], "expected a JSON object"),
        (["{}"], "field 'kind'"),
        ([START.replace("16000", "8000")], "field 'sample_rate': expected 16000"),
        ([START.replace("pcm16", "mp3")], "field 'format': expected one of pcm16, float32, found 'mp3'"),
        ([START.replace('"version": 1', '"version": 2')], "version 1, found 2"),
        ([START.replace("}", ', "tsks": []}')], "unknown field 'tsks'"),
        ([START.replace("}", ', "tasks": ["sing"]}')], "expected some of asr, scd, endp, ner, lid"),
        ([START.replace("}", ', "tasks": "asr"}')], "field 'tasks': expected a list of names, found 'asr'"),
        ([START.replace("}", ', "token": 7}')], "field 'token': expected a text"),
        ([START.replace("true", "1")], "field 'partials'"),
        ([START.replace("true", "null")], "field 'partials'"),
        ([START.replace("}", ', "language": [3]}')], "field 'language': expected a code such as 'fr'"),
        ([START.replace("}", ', "hotwords": "a"}')], "field 'hotwords': expected a list of phrases, found 'a'"),
        ([START.replace("}", ', "hotwords": [["a", -1]]}')], "expected a phrase or [phrase, number above 0]"),
        ([START.replace("}", ', "hotword_score": "2"}')], "field 'hotword_score': expected a number"),
        ([START.replace("}", ', "hotword_score": -1, "hotwords": ["a"]}')], "search option 'hotword_score'"),
        ([START.replace("}", ', "lm": "/etc/passwd"}')], "field 'lm': expected true or false"),
        ([START.replace("}", ', "lm_scale": 0.3}')], "this server has no language model"),
        ([START, START], "a second 'start'"),
        ([START, '{"kind": "set_tasks"}'], "field 'tasks' is missing"),
        ([START, END, PCM], "audio after 'end'"),
        ([START, " " * 20000], "at most 16384"),
    ],
    ("bad_audio", 1007): [
        ([START, PCM[:-1]], "3199 bytes: a pcm16 sample has 2"),
        ([FLOAT_START, b"\0\0"], "2 bytes: a float32 sample has 4"),
        ([FLOAT_START, np.array([0, np.nan, 0], "<f4").tobytes()], "NaN"),
        ([FLOAT_START, np.array([0, 32000], "<f4").tobytes()], "expected numbers in -1 .. 1"),
        ([START, write_audio(tone(REFUSED, 0.1), "pcm16")], "stream x: refused audio"),
    ],
    ("internal", 1011): [([START, write_audio(tone(BROKEN, 0.1), "pcm16")], "the model failed")],
    ("too_long", 1008): [([START, write_audio(tone(1, 3.1), "pcm16")], "at most 3 s of audio")],
}


@pytest.mark.parametrize("codes, messages, said", [(codes, *case) for codes, cases in WRONG.items() for case in cases])
async def test_a_client_is_told_what_was_wrong(codes, messages, said):
    async with serving(stream_seconds=3.0) as server:
        if messages == [START, END, PCM]:  # the server must still be working on 'end' when the audio comes
            server.engine.transcribers[False].gate.clear()
        code, message, close_code = await told(server.url, *messages)
    assert (code, close_code) == codes and said in message


async def test_one_bad_stream_is_nobody_elses():
    """A refused piece in a batch of many ends one stream only, and the others hear each sample once."""
    engine = fake_engine()
    async with serving(engine) as server:
        engine.transcribers[False].gate.clear()
        talks = [asyncio.ensure_future(spoken(StreamClient(server.url), tones(i))) for i in range(6)]
        bad = asyncio.ensure_future(told(server.url, START, write_audio(tone(REFUSED, 0.3), "pcm16")))
        while sum(session.seconds for session in server.streams) < 6.25:
            await asyncio.sleep(0.005)
        engine.transcribers[False].gate.set()
        assert (await bad)[0] == "bad_audio"
        for i, events in enumerate(await asyncio.gather(*talks)):
            assert events[-1]["text"].split() == words(i)


async def test_a_start_that_fails_is_nobody_elses(caplog):
    """What its client has sent before the answer is not given to the model, whenever the event loop tells of it."""
    engine, closed = fake_engine(), threading.Event()
    transcriber = engine.transcribers[False]
    close = transcriber.close
    transcriber.close = lambda stream: [close(stream), closed.set()][0]
    worker = Worker(engine, 8)
    try:
        found = {"good": [], "bad": [], "unknown": []}
        starts = {"bad": Start(language=("xx",)), "unknown": Start(tasks=("asr",), lm=True)}
        with worker._changed:  # all of it waits before the first batch
            for name, results in found.items():
                feed = Feed(name, CHUNK, results.append)
                worker.add(feed, starts.get(name, Start()))
                worker.put(feed, tone(5, 0.1))
                worker.put(feed, End())
        assert closed.wait(60)  # the event loop stands still meanwhile
    finally:
        await worker.stop()
    assert [done.problem for done in found["good"]] == [None] * 3 and found["good"][-1].events[-1].text == "v5"
    for name, said in (("bad", "bad: the model does not write [XX]"), ("unknown", "no language model")):
        ((code, message),) = [done.problem for done in found[name]]
        assert code == "bad_message" and said in message
    assert transcriber.batches == [1] and not caplog.records


async def test_a_connection_that_drops_leaves_nothing():
    async with serving() as server:
        dropped = []
        for i in range(20):
            socket = await connect(server.url)
            await socket.send(START)
            await socket.send(write_audio(tone(i, 0.25), "pcm16"))
            dropped.append(socket)
        stays = asyncio.ensure_future(spoken(StreamClient(server.url), tones(7, 8)))
        for socket in dropped:
            socket.transport.abort()
        assert (await stays)[-1]["text"].split() == words(7, 8)
        while server.streams:
            await asyncio.sleep(0.005)
        assert not server.worker._feeds and not server._sessions
        assert server.ended == {"gone": 20, "end": 1}


async def test_a_model_without_endpoints_cannot_reset_at_them():
    engine = fake_engine()
    del engine.transcribers[True]
    async with serving(engine) as server:
        code, message, close_code = await told(server.url, start_message(Start(reset_at_endpoint=True)))
    assert (code, close_code) == ("bad_message", 1007) and message.startswith("field 'reset_at_endpoint'")


async def test_errors_come_through_the_client():
    async with serving() as server:
        with pytest.raises(ServerError, match="expected some of asr") as caught:
            await StreamClient(server.url, tasks=["sing"]).__aenter__()
        assert caught.value.code == "bad_message"
        async with StreamClient(server.url) as stream:
            await stream.send(tone(REFUSED, 0.1))
            with pytest.raises(ServerError, match="refused audio"):
                async for _ in stream:
                    pass
            await stream.send(tone(1, 0.1))  # after the end: nothing happens
