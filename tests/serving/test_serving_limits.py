"""What a server accepts at most: waiting audio, slow readers, sizes, numbers, time; and an orderly end."""

import asyncio
import json
import math
import socket as sockets

import pytest
from fake_transcriber import CHUNK, fake_engine, serving, tone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_access import refused
from test_streams import END, START, read_all, told
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.serving.client import ServerError, StreamClient
from tokenverse_pp.serving.protocol import Limits, write_audio
from tokenverse_pp.serving.session import Outbox

SECOND = write_audio(tone(1, 1.0), "pcm16")


async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)


async def send_all(client, *messages):
    for message in messages:
        await client.send(message)


async def narrow(server):
    """A connection with small buffers of its own: what is not read, or cannot be sent, shows soon."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8192)
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 8192)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", server.port))
    return await connect(server.url, sock=raw, max_queue=1, write_limit=1, ping_interval=None)


async def full(server):
    """The session of the only stream, once its waiting audio is at the limit."""
    await until(lambda: server.streams and not next(iter(server.streams))._room.is_set())
    return next(iter(server.streams))


async def test_audio_that_waits_is_bounded_and_none_is_lost():
    """The model stands still: the server stops reading, and the client cannot send until the model goes on."""
    async with serving(waiting_seconds=2.0, idle_seconds=0.2) as server:
        gate = server.engine.transcribers[False].gate
        gate.clear()
        client = await narrow(server)
        sending = asyncio.ensure_future(send_all(client, START, *[SECOND] * 40, END))
        session = await full(server)
        await asyncio.sleep(0.5)  # longer than the idle time, which does not pass while nothing is read
        assert session.seconds == 3 and not sending.done() and session.ending is None
        gate.set()
        messages, code, _ = await read_all(client)
        await sending
        assert code == 1000 and messages[-1]["text"].split() == ["v1"] * 400


async def test_messages_that_are_no_audio_cannot_pile_up_either():
    async with serving(waiting_seconds=2.0) as server:
        gate = server.engine.transcribers[False].gate
        gate.clear()
        client = await connect(server.url)
        switches = [json.dumps({"kind": "set_tasks", "tasks": [["scd"], ["lid"]][i % 2]}) for i in range(30)]
        await send_all(client, START, SECOND, *switches, END)
        assert len((await full(server))._feed._queue) < 5
        gate.set()
        messages, code, _ = await read_all(client)
        assert code == 1000 and sum(message["kind"] == "tasks" for message in messages) == 30


@pytest.mark.parametrize("reads_at_last", [True, False])
async def test_a_client_that_does_not_read(reads_at_last):
    """Its stream ends. It gets the error if it reads after all, and is cut off otherwise."""
    engine = fake_engine()
    engine.transcribers[False].words_a_chunk = 300
    closing = 20.0 if reads_at_last else 0.2
    async with serving(engine, unsent_bytes=40000, closing_seconds=closing) as server:
        client = await narrow(server)
        sending = asyncio.ensure_future(send_all(client, START, *[SECOND] * 20, END))
        await until(lambda: server.streams)
        session = next(iter(server.streams))
        await until(lambda: session.ending is not None)
        assert session.ending.how == "slow_reader" and session._outbox._size < 40000 + 30000
        if reads_at_last:
            messages, code, reason = await read_all(client)
            assert (messages[-1]["code"], code) == ("slow_reader", 1008) and reason.startswith("slow_reader: more than")
            # What came before the error is whole and in order.
            assert {m["kind"] for m in messages[:-1]} <= {"ready", "partial", "final"}
        else:
            await until(lambda: not server._sessions)
            client.transport.abort()
        await asyncio.gather(sending, return_exceptions=True)
        assert server.ended["slow_reader"] == 1


async def test_an_oversized_message_ends_its_stream_alone():
    async with serving(message_bytes=20000) as server, connect(server.url) as other:
        await other.send(START)
        async with connect(server.url) as client:
            await client.send(START)
            assert json.loads(await client.recv())["kind"] == "ready"
            await client.send(b"\0" * 20001)
            messages, code, reason = await read_all(client)
            assert not messages and code == 1009 and "20000" in reason
        await send_all(other, b"\0" * 20000, END)
        messages, code, _ = await read_all(other)
        assert code == 1000 and messages[-1]["text"].split() == ["v0"] * 7
        await until(lambda: not server._sessions)
        assert server.ended == {"end": 1, "refused_1009": 1}
        async with StreamClient(server.url) as stream:
            await stream._say(b"\0" * 20002)
            with pytest.raises(ServerError, match="20000") as caught:
                async for _ in stream:
                    pass
            assert caught.value.code == "too_big"


async def test_no_more_streams_than_may_be():
    async with serving(streams=2) as server, StreamClient(server.url) as first, StreamClient(server.url):
        assert (await told(server.url, START))[::2] == ("too_many_streams", 1013)
        await first.end()
        assert [event["kind"] async for event in first] == ["end"]
        await until(lambda: len(server.streams) < 2)
        async with StreamClient(server.url) as third:
            assert third.ready["kind"] == "ready"


async def test_no_more_connections_than_may_be():
    async with serving(streams=1) as server:
        open_ones = [await connect(server.url) for _ in range(server.limits.connections)]
        assert (await refused(server.url)).status_code == 503
        with pytest.raises(UserError, match="503 too many connections"):
            await StreamClient(server.url).__aenter__()
        for socket in open_ones:
            await socket.close()


@pytest.mark.parametrize("messages, what", [([], "no 'start' for 0.1 s"), ([START], "no audio for 0.1 s")])
async def test_a_silent_client_is_told(messages, what):
    async with serving(idle_seconds=0.1) as server:
        assert await told(server.url, *messages) == ("idle", what, 1008)


async def test_nothing_is_idle_while_the_end_is_awaited():
    async with serving(idle_seconds=0.1) as server, connect(server.url) as client:
        gate = server.engine.transcribers[False].gate
        gate.clear()
        await send_all(client, START, SECOND, END)
        await asyncio.sleep(0.25)
        gate.set()
        assert (await read_all(client))[1] == 1000


async def test_stopping_tells_every_stream():
    async with serving(closing_seconds=0.3) as server:
        clients = [await connect(server.url) for _ in range(5)]
        for client in clients[1:]:
            await send_all(client, START, SECOND)
        silent = await narrow(server)  # does not answer the close frame, since it does not read it
        await silent.send(START)
        silent.transport.pause_reading()
        await until(lambda: len(server.streams) == 5)
        ends = [asyncio.ensure_future(read_all(client)) for client in clients]
    for messages, code, reason in await asyncio.gather(*ends):
        assert code == 1001 and reason == "going_away: the server is shutting down"
        assert messages[-1]["code"] == "going_away"
    assert not server.worker._thread.is_alive() and not server._sessions
    with pytest.raises(OSError):
        await connect(server.url)
    silent.transport.abort()


async def test_a_port_in_use_is_named():
    async with serving() as server:
        for host, port in (("127.0.0.1", server.port), ("no-such-host.invalid", 0)):
            with pytest.raises(UserError, match=f"cannot listen on {host} port {port}"):
                await type(server)(fake_engine()).start(host, port)


@pytest.mark.parametrize("name", ["streams", "waiting_seconds", "message_bytes", "unsent_bytes", "batch"])
def test_limits_that_no_stream_could_live_with(name):
    for value in (0, math.nan):
        with pytest.raises(UserError, match=f"'{name}'"):
            Limits(**{name: value})


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["partial", "final", "get"]), st.integers(1, 30)), max_size=40))
def test_an_outbox_keeps_order_and_the_newest_partial_only(steps):
    """Against a list from which replaced partials are removed."""

    async def main():
        box, expected = Outbox(50), []
        for number, (kind, size) in enumerate(steps):
            if kind == "get":
                if expected:
                    assert await box.get() == expected.pop(0)[0]
                continue
            text = f"{number:04}".ljust(size, ".")
            waiting = sum(len(t) for t, k in expected if k == "final")
            if kind == "partial":
                expected = [item for item in expected if item[1] != "partial"]
            if box.put(text, partial=kind == "partial"):
                expected.append((text, kind))
            else:
                assert kind == "final" and waiting > 50
        box.end("last")
        box.put("after the end")
        rest = []
        while (text := await box.get()) is not None:
            rest.append(text)
        assert rest == [text for text, _ in expected] + ["last"]

    asyncio.run(main())


async def test_an_outbox_counts_bytes():
    box = Outbox(50)
    assert box.put("語" * 17) and not box.put("a")  # 51 bytes of UTF-8
    await box.get()
    assert box.put("a" * 50) and box.put("a") and not box.put("a")


async def test_a_chunk_longer_than_what_may_wait_still_gets_through():
    async with serving(waiting_seconds=0.01) as server, connect(server.url) as client:
        await send_all(client, START, *[SECOND[: CHUNK // 2]] * 8, END)
        messages, code, _ = await read_all(client)
        assert code == 1000 and messages[-1]["text"] == "v1 v1"


async def test_connections_that_close_in_the_handshake_or_at_once():
    async with serving() as server:
        for data in (b"", b"GET /stream HTTP/1.1\r\n", b"\xff\x00" * 500, b"GET " + b"x" * 100000):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            writer.close()
        client = await connect(server.url)
        await client.close()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await until(lambda: not server._sessions)
        assert server.ended == {"gone": 1}
