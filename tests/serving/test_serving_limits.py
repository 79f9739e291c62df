"""What a server takes, and no more: waiting audio, slow readers, size, number, time; and an orderly end."""

import asyncio
import json
import socket as sockets

import pytest
from fake_transcriber import CHUNK, fake_engine, serving, tone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streams import START, read_all, told
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.serving.client import ServerError, StreamClient
from tokenverse_pp.serving.protocol import Limits, write_audio
from tokenverse_pp.serving.session import Outbox

SECOND = write_audio(tone(1, 1.0), "pcm16")


async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)


async def narrow(server, **options):
    """A connection whose own buffers are small: what is not read, or cannot be sent, shows soon."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8192)
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 8192)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", server.port))
    return await connect(server.url, sock=raw, max_queue=1, write_limit=1, ping_interval=None, **options)


def test_audio_that_waits_is_bounded_and_none_is_lost():
    """The model stands still: the server stops reading, and the client can send no more until it goes on."""

    async def main():
        engine = fake_engine()
        async with serving(engine, waiting_seconds=2.0, idle_seconds=0.2) as server:
            engine.transcribers[False].gate.clear()
            client = await narrow(server)
            await client.send(START)
            sending = asyncio.ensure_future(send_all(client, [SECOND] * 40))
            await until(lambda: server.streams and not next(iter(server.streams))._room.is_set())
            session = next(iter(server.streams))
            await asyncio.sleep(0.5)  # longer than the idle time, which is none while nobody listens
            assert session.seconds == 3 and not sending.done() and session.ending is None
            engine.transcribers[False].gate.set()
            reading = asyncio.ensure_future(read_all(client))
            await sending
            messages, code, _ = await reading
            assert code == 1000 and messages[-1]["text"].split() == ["v1"] * 400

    asyncio.run(main())


async def send_all(client, messages):
    for message in messages:
        await client.send(message)
    await client.send('{"kind": "end"}')


def test_messages_that_are_no_audio_cannot_pile_up_either():
    async def main():
        engine = fake_engine()
        async with serving(engine, waiting_seconds=2.0) as server:
            engine.transcribers[False].gate.clear()
            client = await connect(server.url)
            await client.send(START)
            await client.send(SECOND)
            for i in range(30):
                await client.send(json.dumps({"kind": "set_tasks", "tasks": [["scd"], ["lid"]][i % 2]}))
            await client.send('{"kind": "end"}')
            await until(lambda: server.streams and not next(iter(server.streams))._room.is_set())
            session = next(iter(server.streams))
            assert len(session._feed._queue) < 5
            engine.transcribers[False].gate.set()
            messages, code, _ = await read_all(client)
            assert code == 1000 and sum(message["kind"] == "tasks" for message in messages) == 30

    asyncio.run(main())


async def not_read(server, engine):
    """A client that sends, and reads nothing, until its stream has ended."""
    for transcriber in engine.transcribers.values():
        transcriber.words_a_chunk = 300
    client = await narrow(server)
    sending = asyncio.ensure_future(send_all(client, [SECOND] * 20))
    await client.send(START)
    await until(lambda: server.streams)
    session = next(iter(server.streams))
    await until(lambda: session.ending is not None)
    assert session.ending.how == "slow_reader" and session._outbox._size < 40000 + 30000
    return client, sending


def test_a_slow_reader_is_told_if_it_reads_after_all():
    async def main():
        engine = fake_engine()
        async with serving(engine, unsent_bytes=40000) as server:
            client, sending = await not_read(server, engine)
            messages, code, reason = await read_all(client)
            assert (messages[-1]["code"], code) == ("slow_reader", 1008) and reason.startswith("slow_reader: more than")
            # What came before the error is whole and in order.
            assert {m["kind"] for m in messages[:-1]} <= {"ready", "partial", "final"}
            await asyncio.gather(sending, return_exceptions=True)
            assert server.ended["slow_reader"] == 1

    asyncio.run(main())


def test_a_client_that_never_reads_is_cut_off():
    async def main():
        engine = fake_engine()
        async with serving(engine, unsent_bytes=40000, closing_seconds=0.2) as server:
            client, sending = await not_read(server, engine)
            await until(lambda: not server._sessions)
            await asyncio.gather(sending, return_exceptions=True)
            client.transport.abort()

    asyncio.run(main())


def test_an_oversized_message_ends_its_stream_alone():
    async def main():
        async with serving(message_bytes=20000) as server, connect(server.url) as other:
            await other.send(START)
            async with connect(server.url) as client:
                await client.send(START)
                assert json.loads(await client.recv())["kind"] == "ready"
                await client.send(b"\0" * 20001)
                messages, code, reason = await read_all(client)
                assert not messages and code == 1009 and "20000" in reason
            await other.send(b"\0" * 20000)
            await other.send('{"kind": "end"}')
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

    asyncio.run(main())


def test_no_more_streams_than_may_be():
    async def main():
        async with serving(streams=2) as server:
            async with StreamClient(server.url) as first, StreamClient(server.url):
                assert (await told(server.url, START))[::2] == ("too_many_streams", 1013)
                await first.end()
                async for _ in first:
                    pass
                await until(lambda: len(server.streams) < 2)
                async with StreamClient(server.url) as third:
                    assert third.ready["kind"] == "ready"

    asyncio.run(main())


def test_no_more_connections_than_may_be():
    async def main():
        async with serving(streams=1) as server:
            open_ones = [await connect(server.url) for _ in range(server.limits.connections)]
            with pytest.raises(InvalidStatus) as caught:
                await connect(server.url)
            assert caught.value.response.status_code == 503
            with pytest.raises(UserError, match="503 too many connections"):
                async with StreamClient(server.url):
                    pass
            for socket in open_ones:
                await socket.close()

    asyncio.run(main())


@pytest.mark.parametrize("messages, what", [([], "no 'start' for 0.1 s"), ([START], "no audio for 0.1 s")])
def test_a_silent_client_is_told(messages, what):
    async def main():
        async with serving(idle_seconds=0.1) as server:
            return await told(server.url, *messages)

    assert asyncio.run(main()) == ("idle", what, 1008)


def test_nothing_is_idle_while_the_end_is_awaited():
    async def main():
        engine = fake_engine()
        async with serving(engine, idle_seconds=0.1) as server, connect(server.url) as client:
            engine.transcribers[False].gate.clear()
            for message in (START, SECOND, '{"kind": "end"}'):
                await client.send(message)
            await asyncio.sleep(0.25)
            engine.transcribers[False].gate.set()
            return await read_all(client)

    assert asyncio.run(main())[1] == 1000


def test_stopping_tells_every_stream():
    async def main():
        async with serving(closing_seconds=0.3) as server:
            clients = [await connect(server.url) for _ in range(5)]
            for client in clients[1:]:
                await client.send(START)
                await client.send(SECOND)
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

    asyncio.run(main())


def test_a_port_in_use_is_named():
    async def main():
        async with serving() as server:
            with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {server.port}"):
                await type(server)(fake_engine()).start("127.0.0.1", server.port)
            with pytest.raises(UserError, match="cannot listen on no-such-host"):
                await type(server)(fake_engine()).start("no-such-host.invalid")

    asyncio.run(main())


@pytest.mark.parametrize("name", ["streams", "waiting_seconds", "message_bytes", "unsent_bytes", "batch"])
def test_limits_that_no_stream_could_live_with(name):
    with pytest.raises(UserError, match=f"'{name}'"):
        Limits(**{name: 0})


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["partial", "final", "get"]), st.integers(1, 30)), max_size=40))
def test_an_outbox_keeps_order_and_the_newest_partial_only(steps):
    """Against a list: partials that are replaced are struck out of it."""

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


def test_a_chunk_longer_than_what_may_wait_still_gets_through():
    async def main():
        async with serving(waiting_seconds=0.01) as server, connect(server.url) as client:
            for message in (START, *[SECOND[: CHUNK // 2]] * 8, '{"kind": "end"}'):
                await client.send(message)
            messages, code, _ = await read_all(client)
            assert code == 1000 and messages[-1]["text"] == "v1 v1"

    asyncio.run(main())


def test_connections_that_close_in_the_handshake_or_at_once():
    async def main():
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

    asyncio.run(main())
