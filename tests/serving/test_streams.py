"""Streams through a real server on this machine: nothing is mixed up, and each end has a reason."""

import asyncio
import json
import random

import numpy as np
import pytest
from fake_transcriber import BROKEN, CHUNK, RATE, REFUSED, fake_engine, serving, tone
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tokenverse_pp.serving.client import ServerError, StreamClient
from tokenverse_pp.serving.protocol import Start, start_message, write_audio

START = start_message(Start())


async def read_all(socket):
    """All messages up to the close frame -> messages, close code, reason."""
    messages = []
    try:
        while True:
            messages.append(json.loads(await socket.recv()))
    except ConnectionClosed as error:
        return messages, error.rcvd.code, error.rcvd.reason


async def told(url, *messages):
    """What a client is told that sends these messages and waits: the error message, close code."""
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


async def spoken(client, values, rng=None):
    """Send a second of each value in pieces of random length -> events."""
    async with client as stream:
        audio = np.concatenate([tone(value, 1.0) for value in values])
        sending = asyncio.ensure_future(send_pieces(stream, audio, rng or random.Random(0)))
        events = [event async for event in stream]
        await sending
        return events


async def send_pieces(stream, audio, rng):
    begin = 0
    while begin < len(audio):
        end = begin + rng.randrange(1, 5000)
        await stream.send(audio[begin:end])
        begin = end
    await stream.end()


def test_what_is_said_comes_back():
    async def main():
        async with serving() as server:
            client = StreamClient(server.url)
            events = await spoken(client, [3, 4])
            assert client.ready["kind"] == "ready" and client.ready["tasks"] == ["asr", "scd", "endp", "ner", "lid"]
            assert client.ready["chunk_seconds"] == CHUNK / RATE
            return events

    events = asyncio.run(main())
    assert len({event["stream"] for event in events}) == 1
    assert events[-1]["kind"] == "end" and events[-1]["text"] == " ".join(["v3"] * 10 + ["v4"] * 10)
    said = [event["text"] for event in events if event["kind"] in ("final", "token")]
    assert said == ["v3"] * 10 + ["[SCD]"] + ["v4"] * 10
    first = next(event for event in events if event["kind"] == "final")
    assert first["words"] == [{"text": "v3", "start": 0.1, "end": 0.2, "confidence": 1.0}]
    assert any(event["kind"] == "partial" for event in events)


@pytest.mark.parametrize("format", ["pcm16", "float32"])
def test_fifty_streams_are_not_mixed_up(format):
    """Different audio in each, all at once, in pieces of any length; the model takes many in a batch, in one thread."""
    count = 50

    async def main():
        engine = fake_engine()
        async with serving(engine) as server:
            clients = [StreamClient(server.url, format=format, reset_at_endpoint=i % 5 == 0) for i in range(count)]
            talks = [[10 * i + 1, 10 * i + 2, -10 * i] for i in range(count)]
            said = await asyncio.gather(
                *(spoken(client, talk, random.Random(i)) for i, (client, talk) in enumerate(zip(clients, talks)))
            )
            assert server.ended == {"end": count} and not server.streams
            return engine, talks, said

    engine, talks, said = asyncio.run(main())
    for talk, events in zip(talks, said):
        assert events[-1]["text"].split() == [f"v{value}" for value in talk for _ in range(10)]
    assert len({event["stream"] for events in said for event in events}) == count
    for transcriber in engine.transcribers.values():
        assert transcriber.threads == {"model"} and max(transcriber.batches) > 1


def test_tasks_are_switched_where_the_message_stands():
    async def main():
        async with serving() as server, StreamClient(server.url, tasks=["scd"], partials=False) as stream:
            assert stream.ready["tasks"] == ["asr", "scd"]
            for value, tasks in ((1, ["asr"]), (2, ["scd", "asr"]), (3, ["lid"])):
                await stream.send(tone(value, 0.1))
                await stream.send(tone(value + 10, 0.1))
                await stream.set_tasks(tasks)
            await stream.end()
            return [event async for event in stream]

    events = asyncio.run(main())
    told = [event.get("tasks", event.get("text")) for event in events]
    # The word of a chunk settles when the next is heard, under the tasks of that moment.
    assert told == [
        "v1", ["asr"], "v11", "v2", ["asr", "scd"], "[SCD]", "v12", "[SCD]", "v3", ["asr", "lid"], "v13",
        "v1 v11 v2 v12 v3 v13",
    ]  # fmt: skip


def test_a_stream_of_no_audio_ends():
    async def main():
        async with serving() as server, StreamClient(server.url) as stream:
            await stream.send(tone(1, 0))
            await stream.end()
            return [event async for event in stream]

    assert [event["kind"] for event in asyncio.run(main())] == ["end"]


PCM = write_audio(tone(5, 0.1), "pcm16")
FLOAT_START = start_message(Start(format="float32"))


@pytest.mark.parametrize(
    "messages, code, close_code, said",
    [
        ([PCM], "bad_message", 1007, "audio before 'start'"),
        (['{"kind": "end"}'], "bad_message", 1007, "'end' before 'start'"),
        (["{"], "bad_message", 1007, "not JSON"),
        (["[" * 9000], "bad_message", 1007, "not JSON"),
        (["7"], "bad_message", 1007, "expected a JSON object"),
        (["{}"], "bad_message", 1007, "field 'kind'"),
        ([START.replace("16000", "8000")], "bad_message", 1007, "field 'sample_rate': expected 16000"),
        ([START.replace('"version": 1', '"version": 2')], "bad_message", 1007, "version 1, found 2"),
        ([START.replace("}", ', "tsks": []}')], "bad_message", 1007, "unknown field 'tsks'"),
        (
            [START.replace("}", ', "tasks": ["sing"]}')],
            "bad_message",
            1007,
            "expected some of asr, scd, endp, ner, lid",
        ),
        ([START.replace("true", "1")], "bad_message", 1007, "field 'partials'"),
        ([START, START], "bad_message", 1007, "a second 'start'"),
        ([START, '{"kind": "set_tasks"}'], "bad_message", 1007, "field 'tasks' is missing"),
        ([START, '{"kind": "end"}', PCM], "bad_message", 1007, "audio after 'end'"),
        ([START, PCM[:-1]], "bad_audio", 1007, "3199 bytes: a pcm16 sample has 2"),
        ([FLOAT_START, b"\0\0"], "bad_audio", 1007, "2 bytes: a float32 sample has 4"),
        ([FLOAT_START, np.array([0, np.nan, 0], "<f4").tobytes()], "bad_audio", 1007, "NaN"),
        ([FLOAT_START, np.array([0, 32000], "<f4").tobytes()], "bad_audio", 1007, "expected numbers in -1 .. 1"),
        ([START, " " * 20000], "bad_message", 1007, "at most 16384"),
        ([START, write_audio(tone(REFUSED, 0.1), "pcm16")], "bad_audio", 1007, "stream x: refused audio"),
        ([START, write_audio(tone(BROKEN, 0.1), "pcm16")], "internal", 1011, "the model failed"),
        ([START, write_audio(tone(1, 3.1), "pcm16")], "too_long", 1008, "at most 3 s of audio"),
    ],
)
def test_a_client_is_told_what_was_wrong(messages, code, close_code, said):
    async def main():
        async with serving(stream_seconds=3.0) as server:
            if close_code == 1007 and messages[-1] == PCM and len(messages) == 3:
                # 'end' must be still under way when the audio after it comes.
                server.engine.transcribers[False].gate.clear()
            return await told(server.url, *messages)

    found = asyncio.run(main())
    assert (found[0], found[2]) == (code, close_code) and said in found[1], found


def test_one_bad_stream_is_nobody_elses():
    """A refused piece in a batch of many ends one stream only, and the others hear each sample once."""

    async def main():
        engine = fake_engine()
        async with serving(engine) as server:
            engine.transcribers[False].gate.clear()
            good = [StreamClient(server.url) for _ in range(6)]
            talks = [asyncio.ensure_future(spoken(client, [i])) for i, client in enumerate(good)]
            bad = asyncio.ensure_future(told(server.url, START, write_audio(tone(REFUSED, 0.3), "pcm16")))
            while sum(session.seconds for session in server.streams) < 6.25:
                await asyncio.sleep(0.005)
            engine.transcribers[False].gate.set()
            return await asyncio.gather(*talks), await bad

    talks, bad = asyncio.run(main())
    assert bad[0] == "bad_audio"
    for i, events in enumerate(talks):
        assert events[-1]["text"] == " ".join([f"v{i}"] * 10)


def test_a_connection_that_drops_leaves_nothing():
    async def main():
        async with serving() as server:
            dropped = []
            for i in range(20):
                socket = await connect(server.url)
                await socket.send(START)
                await socket.send(write_audio(tone(i, 0.25), "pcm16"))
                dropped.append(socket)
            stays = asyncio.ensure_future(spoken(StreamClient(server.url), [7, 8]))
            for socket in dropped:
                socket.transport.abort()
            events = await stays
            while server.streams:
                await asyncio.sleep(0.005)
            assert not server.worker._feeds and not server._sessions
            assert server.ended == {"gone": 20, "end": 1}
            return events

    assert asyncio.run(main())[-1]["text"] == " ".join(["v7"] * 10 + ["v8"] * 10)


def test_a_model_without_endpoints_cannot_reset_at_them():
    async def main():
        engine = fake_engine()
        del engine.transcribers[True]
        async with serving(engine) as server:
            return await told(server.url, start_message(Start(reset_at_endpoint=True)))

    code, message, close_code = asyncio.run(main())
    assert (code, close_code) == ("bad_message", 1007) and message.startswith("field 'reset_at_endpoint'")


def test_errors_come_through_the_client():
    async def main():
        async with serving() as server:
            with pytest.raises(ServerError, match="expected some of asr") as caught:
                async with StreamClient(server.url, tasks=["sing"]):
                    pass
            assert caught.value.code == "bad_message"
            async with StreamClient(server.url) as stream:
                await stream.send(tone(REFUSED, 0.1))
                with pytest.raises(ServerError, match="refused audio"):
                    async for _ in stream:
                        pass
                await stream.send(tone(1, 0.1))  # after the end: nothing happens

    asyncio.run(main())
