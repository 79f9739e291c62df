"""Who may connect, what HTTP answers, and a server process that is told to stop."""

import asyncio
import http.client
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_transcriber import TASKS, serving, tone
from test_streams import END, START, read_all, told
from toy_runs import environment
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.serving.access import Access, check_origin, read_token
from tokenverse_pp.serving.client import ServerError, StreamClient, transcribe
from tokenverse_pp.serving.http import FILES, PAGE
from tokenverse_pp.serving.protocol import Start, start_message

TOKEN = "s3cret-é"


async def refused(url, **options):
    """The response that refuses a handshake."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    return caught.value.response


async def test_a_token_is_asked_for():
    async with serving(access=Access(token=TOKEN)) as server:
        assert await told(server.url, START) == ("unauthorised", "token missing", 1008)
        for wrong in ("s3cret-", TOKEN + "x", "\ud800"):
            message = start_message(Start(token=wrong))
            assert await told(server.url, message) == ("unauthorised", "wrong token", 1008)
        async with StreamClient(server.url, token=TOKEN) as stream:
            assert stream.ready["kind"] == "ready"
        with pytest.raises(ServerError, match="unauthorised: wrong token"):
            await StreamClient(server.url, token="x").__aenter__()


async def test_a_token_in_the_header():
    async with serving(access=Access(token="abc")) as server:
        async with connect(server.url, additional_headers={"Authorization": "Bearer abc"}) as client:
            await client.send(START)
            await client.send(END)
            assert (await read_all(client))[1] == 1000
        assert (await refused(server.url, additional_headers={"Authorization": "Bearer abd"})).status_code == 401


@pytest.mark.parametrize(
    "origin, host, loopback, allowed",
    [
        ("http://127.0.0.1:8765", "127.0.0.1:8765", True, True),
        ("http://localhost:8765", "localhost:8765", True, True),
        ("http://[::1]:8765", "[::1]:8765", True, True),
        ("http://LOCALHOST:8765", "localhost:8765", True, True),
        ("http://localhost:8766", "localhost:8765", True, False),
        ("http://evil.example:8765", "127.0.0.1:8765", True, False),
        ("http://evil.example:8765", "evil.example:8765", True, False),  # DNS rebinding
        ("https://asr.example", "asr.example", False, True),
        ("https://asr.example.evil.example", "asr.example", False, False),
        ("https://friend.example", "asr.example", False, True),  # allowed by name
        ("https://friend.example", "127.0.0.1:8765", True, True),
        ("http://friend.example", "asr.example", False, False),
        ("null", "asr.example", False, False),
        ("http://[::1", "[::1", True, False),
        ("file://", "", True, False),
    ],
)
def test_origins(origin, host, loopback, allowed):
    assert Access(origins=("https://friend.example",)).allows_origin(origin, host, loopback) == allowed


async def test_pages_of_others_may_not_connect():
    async with serving(access=Access(origins=("https://friend.example",))) as server:
        for origin in ("https://evil.example", "null"):
            response = await refused(server.url, origin=origin)
            assert response.status_code == 403 and b"may not connect" in response.body
        for origin in ("https://friend.example", f"http://127.0.0.1:{server.port}"):
            await (await connect(server.url, origin=origin)).close()
        with pytest.raises(UserError, match="refused: 404 no streams at '/other'"):
            await StreamClient(server.url.replace("/stream", "/other")).__aenter__()


@pytest.mark.parametrize("origin", [
    "example.org", "https://", "https://example.org/", "ftp://example.org", "https://[::1", "https://Example.org",
    "https://example.org:443", "http://example.org:80", "https://bücher.example",
])  # fmt: skip
def test_an_origin_that_is_none(origin):
    with pytest.raises(UserError, match="--allow-origin"):
        check_origin(origin)


@pytest.mark.parametrize("origin", ["https://example.org", "http://example.org:443", "http://[::1]:8080"])
def test_an_origin(origin):
    assert check_origin(origin) == origin


def test_where_the_token_is(tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENVERSE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("TOKENVERSE_TOKEN", "abc")
    assert read_token(None) == "abc"
    file = tmp_path / "token"
    with pytest.raises(UserError, match="cannot read the token"):
        read_token(file)
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    assert read_token(file) == TOKEN
    for bad in ("", " \n", "two words"):
        file.write_text(bad)
        with pytest.raises(UserError, match="one word"):
            read_token(file)


def ask(port, path, method="GET"):
    """Status, headers and body of a request by another library."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


async def test_http():
    async with serving() as server:
        async with StreamClient(server.url) as stream:
            await stream.send(tone(1, 0.5))
            async for event in stream:
                if event["time"] >= 0.5:
                    break
            paths = (*FILES, "/health", "/page.json", "/?x=1", "/../page.css", "/no", "/stream")
            answers = {path: await asyncio.to_thread(ask, server.port, path) for path in paths}
            posted = await asyncio.to_thread(ask, server.port, "/", "POST")
    for path, (name, kind) in FILES.items():
        status, headers, body = answers[path]
        assert status == 200 and body == (PAGE / name).read_bytes() and headers["Content-Type"].startswith(kind)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
        assert headers["X-Content-Type-Options"]
    health = json.loads(answers["/health"][2])
    assert health["status"] == "ok" and health["streams"] == 1 and health["audio_seconds"] == 0.5
    offer = json.loads(answers["/page.json"][2])
    assert offer["tasks"] == list(TASKS) and offer.items() <= health.items() and "streams" not in offer
    # Not /health: the proxies of docs/deployment.md hide it.
    assert re.findall(r'fetch\("(.*?)"\)', (PAGE / "page.js").read_text(encoding="utf-8")) == ["page.json"]
    assert answers["/?x=1"][0] == 200
    assert [answers[path][0] for path in ("/../page.css", "/no", "/stream")] == [404] * 3
    assert posted[0] == 405


SCRIPT = """
import logging
from fake_transcriber import fake_engine
from tokenverse_pp.serving.access import Access
from tokenverse_pp.serving.protocol import Limits
from tokenverse_pp.serving.server import run_server
logging.basicConfig(format="%(message)s", level=logging.INFO)
run_server(fake_engine(), Limits(closing_seconds=2), Access(), "127.0.0.1", 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_stop(number):
    """Streams are told, the exit code is 0, and the log has one line per stream, without any transcript."""
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", SCRIPT]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(), cwd=here)

    async def interrupted(url):
        async with StreamClient(url) as stream:
            await stream.send(tone(7, 0.5))
            async for event in stream:
                if event["time"] >= 0.5:
                    process.send_signal(number)

    try:
        url = process.stderr.readline().split("streams: ")[1].strip()
        assert transcribe(url, tone(5, 0.1))[-1]["text"] == "v5"
        seen = []
        events = transcribe(url, [tone(5, 0.65), tone(6, 0.35)], seen.append, tasks=["asr"])
        assert seen == events and events[-1]["text"] == " ".join(["v5"] * 6 + ["mixed"] + ["v6"] * 3)
        with pytest.raises(ServerError, match="shutting down") as caught:
            asyncio.run(interrupted(url))
        assert caught.value.code == "going_away"
        _, rest = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, rest
    assert sum("s of audio" in line for line in rest.splitlines()) == 3
    assert "1.0 s of audio" in rest and "ended: going_away" in rest
    assert "v5" not in rest and "v7" not in rest and "Traceback" not in rest


def test_no_server_there():
    for url, said in (("ws://127.0.0.1:1/stream", "cannot connect"), ("http//x", "expected an address")):
        with pytest.raises(UserError, match=said):
            transcribe(url, tone(1, 0.1))


async def test_an_error_of_the_source_of_audio_ends_the_stream():
    """The server would wait for more."""

    def broken():
        yield tone(5, 0.1)
        raise OSError("the microphone is gone")

    async with serving(idle_seconds=1.0) as server:
        with pytest.raises(OSError, match="the microphone is gone"):
            await asyncio.to_thread(transcribe, server.url, broken())
