"""Random messages and bytes: the sender gets an error, and a stream beside it hears every sample once."""

import asyncio
import base64
import contextlib
import json
import os
import struct

import numpy as np
from fake_transcriber import TASKS, serving, tone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streams import END, START, read_all
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tokenverse_pp.serving import protocol
from tokenverse_pp.serving.client import StreamClient
from tokenverse_pp.serving.protocol import Start, StreamError, read_audio, read_control, start_message, write_audio

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = {
    "kind": st.sampled_from(["start", "set_tasks", "end", "START", ""]) | JSON,
    "version": st.sampled_from([1, 1.0, True, "1"]) | JSON,
    "sample_rate": st.sampled_from([16000, 16000.0, "16000"]) | JSON,
    "format": st.sampled_from(["pcm16", "float32", "mp3"]) | JSON,
    "tasks": st.lists(st.sampled_from([*TASKS, "x"]), max_size=3) | JSON,
    "partials": st.booleans() | JSON,
    "pauses": st.booleans() | JSON,
    "reset_at_endpoint": st.booleans() | JSON,
    "token": st.text(max_size=5) | JSON,
    "language": st.sampled_from(["fr", ["fr", "nl"], []]) | JSON,
    "hotwords": st.lists(st.text(max_size=5) | st.tuples(st.text(max_size=5), st.floats(0.1, 9)), max_size=3) | JSON,
    "hotword_score": st.floats(0.1, 9) | JSON,
    "lm": st.booleans() | JSON,
}
MESSAGES = st.fixed_dictionaries({}, optional=FIELDS).map(json.dumps) | JSON.map(json.dumps) | st.text(max_size=50)
OTHER = Start(format="float32", tasks=("scd",), language=("fr",), hotwords=("a b", ("c", 2.0)), hotword_score=3.0)
GOOD = [START, start_message(OTHER), END]
ANYTHING = st.sampled_from(GOOD) | MESSAGES | st.binary(max_size=400)


@given(MESSAGES)
def test_a_control_message_is_read_or_refused(text):
    try:
        found = read_control(text, TASKS)
    except StreamError as error:
        assert error.code == "bad_message" and "\n" not in error.message and error.message.isascii()
        assert len(error.reason.encode()) <= 123
        return
    assert isinstance(found, (Start, protocol.SetTasks, protocol.End))
    if not isinstance(found, protocol.End) and found.tasks is not None:
        assert "asr" in found.tasks and set(found.tasks) <= set(TASKS)
    if isinstance(found, Start):
        assert read_control(start_message(found), TASKS) == found


@given(st.binary(max_size=64), st.sampled_from(["pcm16", "float32"]))
def test_audio_is_read_or_refused(data, format):
    try:
        samples = read_audio(data, format)
    except StreamError as error:
        assert error.code == "bad_audio"
        return
    assert samples.dtype == np.float32 and np.isfinite(samples).all() and np.abs(samples).max(initial=0) <= 8
    assert write_audio(samples, format) == data  # all of it, in its order


@given(st.lists(st.floats(-1, 1, width=32), max_size=20))
def test_audio_is_written_as_it_was(values):
    samples = np.array(values, np.float32)
    assert np.array_equal(read_audio(write_audio(samples, "float32"), "float32"), samples)
    assert np.allclose(read_audio(write_audio(samples, "pcm16"), "pcm16"), samples, atol=1.01 / 32768)


def hear_all(clients, examples):
    """Run ``clients(server, example)`` for drawn examples, beside a stream that goes on all the time."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        context = serving()
        server = loop.run_until_complete(context.__aenter__())
        witness = StreamClient(server.url, partials=False)
        loop.run_until_complete(witness.__aenter__())
        heard = 0

        @settings(max_examples=40)
        @given(examples)
        def attack(example):
            nonlocal heard

            async def both():
                await witness.send(tone(heard % 1000, 0.1))
                await clients(server, example)

            loop.run_until_complete(both())
            heard += 1

        async def finish():
            while len(server._sessions) > 1:
                await asyncio.sleep(0.002)
            await witness.end()
            events = [event async for event in witness]
            assert events[-1]["text"].split() == [f"v{i % 1000}" for i in range(heard)]
            await witness.__aexit__()
            await context.__aexit__(None, None, None)

        attack()
        loop.run_until_complete(finish())


def test_any_messages():
    async def send(server, messages):
        async with connect(server.url) as socket:
            try:
                for message in messages:
                    await socket.send(message)
                await socket.send("enough")  # wrong at any place
            except ConnectionClosed:
                pass
            found, code, _ = await read_all(socket)
            if found and found[-1]["kind"] == "end":
                assert code == 1000
            else:
                assert found[-1]["kind"] == "error" and protocol.CLOSE_CODES[found[-1]["code"]] == code, (found, code)

    hear_all(send, st.lists(ANYTHING, max_size=5))


def frame(head, payload, masked=True):
    """A websocket frame with any first byte (RFC 6455, section 5.2)."""
    mask = os.urandom(4)
    size = len(payload)
    length = bytes([128 * masked + size]) if size < 126 else bytes([128 * masked + 126]) + struct.pack("!H", size)
    if masked:
        payload = mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes([head]) + length + payload


FRAMES = st.lists(
    st.binary(max_size=300)
    | st.builds(frame, st.integers(0, 255), st.binary(max_size=200), st.booleans())
    | st.builds(frame, st.just(0x81), st.sampled_from(GOOD).map(str.encode))
    | st.just(bytes([0x82, 0xFF]) + struct.pack("!Q", 1 << 40)),
    max_size=4,
)


async def upgraded(server):
    """A websocket without a library: reader and writer of its TCP connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b"101 Switching Protocols" in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_what_a_client_sends_after_the_close_frame_resets_nothing():
    """The server reads on up to the client's own close frame: else the client may lose the reason."""
    async with serving() as server:
        reader, writer = await upgraded(server)
        writer.write(frame(0x81, b"no control", True))
        told = b""
        while b"\x88" not in told:  # the close frame
            told += await reader.read(1000)
        assert b'"error"' in told
        for _ in range(20):
            writer.write(frame(0x82, bytes(1000), True))
            await writer.drain()
        writer.write(frame(0x88, struct.pack("!H", 1000), True))
        await reader.read()  # raises ConnectionResetError if the socket was closed before
        writer.close()


def test_any_bytes():
    """Frames that are none, lengths that nobody has room for, reserved bits, text that is no UTF-8; then a cut."""

    async def send(server, frames):
        reader, writer = await upgraded(server)
        try:
            writer.write(b"".join(frames))
            writer.write_eof()
            await reader.read()
        except OSError:
            pass  # cut off by the server
        writer.close()

    hear_all(send, FRAMES)
