"""OpenAI's audio API, asked by OpenAI's own client: formats, events, fields, errors, limits."""

import asyncio
import dataclasses
import gc
import http.client
import importlib
import io
import json
import random
import sys
import weakref
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile
from aiohttp import web
from audio_files import packed, written
from fake_transcriber import BROKEN, CHUNK, RATE, REFUSED, TASKS, fake_model, serving, tone
from scripts import ROOT
from test_streams import spoken
from toy_runs import read_cuts

from tokenverse_pp.api.formats import FORMATS, render
from tokenverse_pp.api.formats.text import to_text
from tokenverse_pp.api.model import TokenVerse
from tokenverse_pp.base.options import SearchOptions, TranscribeOptions
from tokenverse_pp.serving import openai_api
from tokenverse_pp.serving.access import Access
from tokenverse_pp.serving.client import StreamClient
from tokenverse_pp.serving.openai_api import MOST_FIELD, hotwords_of, to_verbose_json
from tokenverse_pp.serving.uploads import build_upload_model
from tokenverse_pp.tasks import build_tasks

openai = pytest.importorskip("openai", reason="the client of the API: pip install 'tokenverse_pp[dev]'")
httpx = pytest.importorskip("httpx")  # which it uses
TOY_MODEL = ROOT / "tests" / "oracles" / "fixtures" / "toy_model"


def wav(*samples):
    """A WAV file of all that is given."""
    memory = io.BytesIO()
    soundfile.write(memory, np.concatenate(samples), RATE, format="WAV", subtype="PCM_16")
    return memory.getvalue()


def client_of(server, key="any", retries=0):
    http = openai.DefaultAsyncHttpxClient(verify=False)  # no TLS here: certificates take longer to read than a request
    return openai.AsyncOpenAI(api_key=key, base_url=server.base, max_retries=retries, http_client=http)


async def transcribed(server, content, name="talk.wav", model="fake", retries=0, **fields):
    """What the client gives for a file."""
    async with client_of(server, retries=retries) as client:
        return await client.audio.transcriptions.create(file=(name, content), model=model, **fields)


async def streamed(server, content, **fields):
    """The events that the client gives for a file."""
    async with client_of(server) as client:
        create = client.audio.transcriptions.create
        return [event async for event in await create(file=("talk.wav", content), stream=True, **fields)]


async def refused(server, content=None, error=openai.BadRequestError, **fields):
    """The body of the error that the client raises."""
    with pytest.raises(error) as caught:
        await transcribed(server, wav(tone(5, 0.3)) if content is None else content, **fields)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.body["message"] and "\n" not in caught.value.body["message"]
    return caught.value.body


@pytest.fixture(scope="module")
def toy():
    return TokenVerse.from_pretrained(TOY_MODEL)


@pytest.fixture(scope="module")
def talk(tiny_corpus):
    """A file of the toy corpus, and its bytes."""
    path = read_cuts(tiny_corpus, "test")[0].recording.sources[0].source
    with open(path, "rb") as file:
        return path, file.read()


async def test_what_transcribe_writes(toy, talk):
    """A real model: each format is that of `tokenverse-pp transcribe`; the words and answers of all tasks are there."""
    path, content = talk
    heard = dataclasses.replace(toy.transcribe(path), name="talk.wav")
    async with serving(model=build_upload_model(toy.loaded, "toy", TranscribeOptions())) as server:
        plain = await transcribed(server, content, "talk.flac", "toy")
        assert plain.text == heard.text and plain.usage.seconds == pytest.approx(heard.duration)
        text = await transcribed(server, content, model="whisper-1", response_format="text")
        assert text == to_text(heard, times=False) and text.split() == heard.text.split()
        for format in ("srt", "vtt"):
            assert await transcribed(server, content, model="toy", response_format=format) == render(heard, format)
        both = {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}
        found = await transcribed(server, content, model="toy", **both)
        async with client_of(server) as client:
            (model,) = (await client.models.list()).data
            assert await client.models.retrieve("toy") == model and model.id == "toy" and model.owned_by
    assert (found.text, found.language, found.duration) == (heard.text, heard.language, heard.duration)
    assert [(w.word, w.start, w.end) for w in found.words] == [(w.text, w.start, w.end) for w in heard.words]
    assert " ".join(segment.text for segment in found.segments) == heard.text
    ids = [id for segment in found.segments for id in segment.tokens]
    assert toy.loaded.tokenizer.pieces(ids) == [token for token in heard.tokens if not token.startswith("[")]
    own = json.loads(json.dumps(heard.to_dict()))
    extra = found.model_extra
    assert {key: extra[key] for key in ("turns", "entities", "endpoints", "marks", "raw", "tasks")} == {
        key: own[key] for key in ("turns", "entities", "endpoints", "marks", "raw", "tasks")
    }
    assert heard.turns and heard.marks


def test_tokens_of_a_segment_are_those_of_its_words(monkeypatch):
    """Also if two turns meet in a frame, as with several symbols a frame. The pieces are read once for all segments."""
    read, spans = [], openai_api.word_spans
    monkeypatch.setattr(openai_api, "word_spans", lambda pieces: read.append(len(pieces)) or spans(pieces))
    pieces, times = ("▁oui", "[SCD]", "▁n", "on", "▁si"), (0.4, 0.4, 0.4, 0.4, 0.8)
    frames = [round(time / 0.04) for time in times]
    heard = build_tasks(["asr", "scd"]).reader.read_tokens(pieces, frames, [0.0] * 5, 0.04, None, 0.0, 1.0, "call")
    found = to_verbose_json(heard, ["segment"], {piece: i for i, piece in enumerate(pieces)})
    importlib.import_module("openai.types.audio").TranscriptionVerbose.model_validate(found)  # every number is one
    assert [(part["text"], part["tokens"]) for part in found["segments"]] == [("oui", [0]), ("non si", [2, 3, 4])]
    assert read == [5]


async def test_language_hotwords_and_tasks(toy, talk):
    path, content = talk
    search = SearchOptions(hotword_score=9.0)
    options = TranscribeOptions(search=search)
    async with serving(model=build_upload_model(toy.loaded, "toy", options)) as server:

        async def asked(**fields):
            return (
                await transcribed(server, content, model="toy", response_format="verbose_json", **fields)
            ).model_extra

        french = await asked(language="QAB")
        assert french["raw"] == toy.transcribe(path, language="QAB").raw and french["raw"].startswith("[QAB]")
        words = ("dun ibi", "mab", "kalo")
        assert hotwords_of("dun ibi, mab. kalo; mab") == words
        assert hotwords_of("東京、大阪。") == ("東京", "大阪")
        hot = await asked(prompt="dun ibi, mab. kalo; mab")
        assert hot["raw"] == toy.transcribe(path, hotwords=list(words), search=search).raw
        assert hot["raw"] != toy.transcribe(path).raw
        some = await asked(extra_body={"tasks": "asr,scd"})
        assert some["tasks"] == ["asr", "scd"] and "endpoints" not in some and "turns" in some
        assert (await refused(server, content, model="toy", language="xx"))["param"] == "language"
        assert (await refused(server, content, model="toy", prompt="日本"))["param"] == "prompt"
        for wrong in ("sing", ","):
            assert (await refused(server, content, model="toy", extra_body={"tasks": wrong}))["param"] == "tasks"


async def test_events_come_while_a_long_recording_is_decoded(toy, tiny_corpus):
    """A real model, in windows: the parts are the whole, and come before the end."""
    cuts = read_cuts(tiny_corpus, "test")
    long = wav(*[cut.load_audio()[0] for cut in cuts])
    options = TranscribeOptions(window=2.0, overlap=0.5, batch_seconds=2.0)
    async with serving(model=build_upload_model(toy.loaded, "toy", options)) as server:
        whole = await transcribed(server, long, model="toy")
        events = await streamed(server, long, model="toy")
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert events[-1].type == "transcript.text.done" and events[-1].text == whole.text
    assert "".join(event.delta for event in events[:-1]) == whole.text
    assert len(events) > 5


async def test_events_of_short_ones_and_errors_in_their_place():
    model, _ = fake_model(window=1.0, overlap=0.2)
    async with serving(model=model) as server:
        short = await streamed(server, wav(tone(5, 0.3)), model="fake")
        assert [getattr(event, "delta", event.type) for event in short] == ["v5 v5 v5", "transcript.text.done"]
        assert "refused audio" in (await refused(server, wav(tone(REFUSED, 0.3)), stream=True))["message"]
        # What breaks after the first event is told in the stream.
        with pytest.raises(openai.APIError, match="refused audio"):
            await streamed(server, wav(tone(5, 1.0), tone(REFUSED, 0.5)), model="fake")


async def test_texts_have_punctuation_and_case_and_deltas_stay_prefixes():
    model, recognizer = fake_model((*TASKS, "punct"), window=1.0, overlap=0.2)
    recognizer.written = {"v1": "[CAP] bonjour", "v2": "[,] [CAP] amélie", "v3": "[!] [SCD] [CAP] ça", "v4": "va [?]"}
    text = "Bonjour, Amélie! Ça va?"
    async with serving(model=model) as server:
        short = wav(*[tone(i, 0.1) for i in (1, 2, 3, 4)])
        assert (await transcribed(server, short)).text == text
        both = {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}
        found = await transcribed(server, short, **both)
        assert found.text == found.model_extra["written"] == text
        assert [segment.text for segment in found.segments] == ["Bonjour, Amélie!", "Ça va?"]
        assert [word.word for word in found.words] == ["bonjour", "amélie", "ça", "va"]
        # A window settles each word here, and each sign in the window after its word.
        long = wav(*[tone(i, 0.1) for i in (1, 2, 3, 4) * 3])
        await transcribed(server, long)
        assert not recognizer.settled  # nobody reads it
        events = await streamed(server, long, model="fake")
        assert recognizer.settled
        deltas = [event.delta for event in events[:-1]]
        assert "".join(deltas) == events[-1].text == " ".join([text] * 3) and len(deltas) > 10
        plain = await streamed(server, long, model="fake", extra_body={"tasks": "asr"})
        assert "".join(event.delta for event in plain[:-1]) == plain[-1].text == " ".join(["bonjour amélie ça va"] * 3)


async def test_a_chunking_strategy_is_accepted_as_a_name_and_as_an_object():
    async with serving(model=fake_model()[0]) as server:
        for strategy in ("auto", {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 200}):
            assert (await transcribed(server, wav(tone(7, 0.1)), chunking_strategy=strategy)).text == "v7"


WRONG = [
    ({"model": "gpt-5"}, openai.NotFoundError, "model", "'gpt-5' does not exist", "model_not_found"),
    ({"content": b""}, openai.BadRequestError, "file", "talk.wav", "invalid_value"),
    ({"content": b"no audio at all"}, openai.BadRequestError, "file", "talk.wav", "invalid_value"),
    ({"content": wav(tone(REFUSED, 0.3))}, openai.BadRequestError, "file", "refused audio", "invalid_value"),
    ({"content": wav(tone(BROKEN, 0.3))}, openai.InternalServerError, None, "the model failed", "internal_error"),
    ({"content": wav(tone(5, 3.1))}, openai.BadRequestError, "file", "at most 3 s", "invalid_value"),
    ({"content": bytes(30001)}, openai.APIStatusError, "file", "30000 bytes", "file_too_large"),
    ({"content": bytes(1 << 20)}, openai.APIStatusError, "file", "30000 bytes", "file_too_large"),
    ({"response_format": "diarized_json"}, openai.BadRequestError, "response_format", "expected one of", None),
    ({"response_format": "srt", "stream": True}, openai.BadRequestError, "stream", "cannot be streamed", None),
    ({"timestamp_granularities": ["word"]}, openai.BadRequestError, "timestamp_granularities[]", "verbose_json", None),
    ({"language": "xx"}, openai.BadRequestError, "language", "does not write", None),
    ({"language": "zz"}, openai.InternalServerError, None, "the model failed", "internal_error"),
    ({"temperature": 7}, openai.BadRequestError, "temperature", "0 .. 1", None),
    ({"temperature": float("nan")}, openai.BadRequestError, "temperature", "0 .. 1", None),
    ({"include": ["logprobs"]}, openai.BadRequestError, "include[]", "confidence", None),
    ({"extra_body": {"beam": 7}}, openai.BadRequestError, None, "unknown field 'beam'", "unknown_parameter"),
    ({"prompt": "x" * (MOST_FIELD + 1)}, openai.BadRequestError, "prompt", f"{MOST_FIELD} bytes", None),
]


@pytest.mark.parametrize("fields, error, param, said, code", WRONG, ids=range(len(WRONG)))
async def test_errors_are_those_of_the_api(fields, error, param, said, code):
    async with serving(model=fake_model()[0], upload_bytes=30000, stream_seconds=3.0) as server:
        if "3.1" in said or said == "at most 3 s":
            server.uploads.limits = server.limits = dataclasses.replace(server.limits, upload_bytes=1 << 20)
        body = await refused(server, error=error, **fields)
        assert body["param"] == param and said in body["message"] and code in (None, body["code"])
        # The server goes on.
        assert (await transcribed(server, wav(tone(7, 0.1)))).text == "v7"


async def test_who_may_ask():
    async with serving(model=fake_model()[0]) as server:  # no token: any key will do
        assert (await transcribed(server, wav(tone(7, 0.1)))).text == "v7"
        page = {"extra_headers": {"Origin": "https://evil.example"}}
        assert (await refused(server, error=openai.PermissionDeniedError, **page))["code"] == "forbidden_origin"
    async with serving(model=fake_model()[0], access=Access("abc")) as server:
        assert (await refused(server, error=openai.AuthenticationError))["code"] == "invalid_api_key"
        async with client_of(server, "abd") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with client_of(server, "abc") as client:
            assert [model.id for model in (await client.models.list()).data] == ["fake"]
            with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
                await client.models.retrieve("other")
            with pytest.raises(openai.NotFoundError, match="Unknown request URL"):
                await client.embeddings.create(model="fake", input="a")
    async with serving() as server:
        assert "streams only" in (await refused(server, error=openai.NotFoundError))["message"]


async def test_pages_of_allowed_origins_may_ask():
    """A browser asks with OPTIONS, without the token; then it shows an answer to the page that the header names."""
    friend, evil = "https://friend.example", "https://evil.example"
    async with serving(model=fake_model()[0], access=Access("abc", (friend,))) as server:
        own = f"http://127.0.0.1:{server.port}"
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        body = form({"model": "fake", "stream": "true"}, wav(tone(7, 0.1)))
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        key = {"Authorization": "Bearer abc"}
        async with httpx.AsyncClient(base_url=server.base, verify=False) as client:

            async def asked(method, path, origin, headers, content=None):
                answer = await client.request(method, path, headers={"Origin": origin, **headers}, content=content)
                assert answer.headers["Vary"] == "Origin"
                return answer, answer.headers.get("Access-Control-Allow-Origin")

            preflight, shown_to = await asked("OPTIONS", "/audio/transcriptions", friend, asks)
            assert (preflight.status_code, shown_to, preflight.content) == (204, friend, b"")
            assert preflight.headers["Access-Control-Allow-Methods"] == "GET, POST"
            assert preflight.headers["Access-Control-Allow-Headers"] == "Authorization, *"
            for method, path, headers, content, status in (
                ("GET", "/models", key, None, 200),
                ("POST", "/audio/transcriptions", {**key, **kind}, body, 200),
                ("POST", "/audio/transcriptions", kind, body, 401),
                ("GET", "/nothing", key, None, 404),
            ):
                answer, shown_to = await asked(method, path, friend, headers, content)
                assert (answer.status_code, shown_to) == (status, friend), path
            for origin, statuses in ((evil, (403, 403)), (own, (401, 200))):
                for (method, headers), status in zip((("OPTIONS", asks), ("GET", key)), statuses):
                    answer, shown_to = await asked(method, "/models", origin, headers)
                    assert (answer.status_code, shown_to) == (status, None)


async def test_files_of_any_container(tmp_path):
    files = {f"talk.{name}": written(name, 1.0) for name in ("wav", "flac", "ogg", "mp3")}
    if find_spec("av") is not None:
        for name, codec in (("talk.m4a", "aac"), ("talk.webm", "libopus")):
            files[name] = packed(tmp_path / name, codec, format={"talk.m4a": "ipod"}.get(name)).read_bytes()
    async with serving(model=fake_model()[0]) as server:
        for name, content in files.items():
            assert (await transcribed(server, content, name)).usage.seconds == pytest.approx(1.0, abs=0.1), name


async def held(server, recognizer, *files):
    """Answers to come: the model stands still at the first file, and the others wait; a file is audio, fields."""
    recognizer.gate.clear()
    answers = []
    for audio, fields in files:
        answers.append(asyncio.ensure_future(transcribed(server, wav(audio), **fields)))
        while len(recognizer.batches) < 1 or server.uploads.waiting < len(answers) - 1:
            await asyncio.sleep(0.005)
    return answers


async def test_uploads_are_bounded_and_say_when_to_come_again():
    """One is decoded, one waits, one more is refused before its body is read; then all are answered."""
    model, recognizer = fake_model()
    async with serving(model=model, uploads=2) as server:
        first = await held(server, recognizer, *((tone(i, 0.2), {}) for i in (3, 4)))
        with pytest.raises(openai.RateLimitError, match="as many as may be") as caught:
            await transcribed(server, wav(tone(5, 0.2)))
        assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
        assert caught.value.body["code"] == "rate_limit_exceeded"
        # A stream does not wait for uploads.
        events = await spoken(StreamClient(server.url), tone(9, 0.5))
        assert events[-1]["text"] == "v9 v9 v9 v9 v9"
        health = await asyncio.to_thread(get, server.port, "/healthz")
        assert health == (200, b"ok\n")
        recognizer.gate.set()
        assert [(await answer).text for answer in first] == ["v3 v3", "v4 v4"]
        assert not server.uploads.entered and not server.uploads.waiting


async def test_short_ones_with_the_same_options_are_decoded_together():
    model, recognizer = fake_model()
    async with serving(model=model) as server:
        files = ((tone(i, 0.1), {"prompt": "word" * (i % 2)}) for i in range(1, 8))
        answers = await held(server, recognizer, *files)
        recognizer.gate.set()
        assert [(await answer).text for answer in answers] == [f"v{i}" for i in range(1, 8)]
    assert recognizer.batches == [1, 3, 3]  # each with a prompt, each without one


async def test_one_bad_recording_of_a_batch_is_nobody_elses():
    model, recognizer = fake_model()
    async with serving(model=model) as server:
        answers = await held(server, recognizer, *((tone(i, 0.1), {}) for i in (1, 2, REFUSED, 3, BROKEN, 4)))
        recognizer.gate.set()
        found = await asyncio.gather(*answers, return_exceptions=True)
    assert [getattr(answer, "text", type(answer).__name__) for answer in found] == [
        *("v1", "v2", "BadRequestError", "v3", "InternalServerError", "v4")
    ]


async def test_what_nobody_waits_for_is_not_decoded():
    model, recognizer = fake_model(window=1.0, overlap=0.2)
    async with serving(model=model) as server:
        talks = await held(server, recognizer, *((tone(i, 0.2), {}) for i in (1, 2)))
        (job,) = server.uploads._jobs
        talks[1].cancel()
        while job.is_wanted():
            await asyncio.sleep(0.005)
        recognizer.gate.set()
        assert (await talks[0]).text == "v1 v1"
        while server.uploads.entered:
            await asyncio.sleep(0.005)
    assert recognizer.batches == [1]


async def until(condition):
    """Wait for something that is about to happen."""

    async def wait():
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), 30)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_gives_its_place_to_another(stream, monkeypatch):
    """It is not in the queue any more, and neither is its file, while the model still decodes the one before it."""
    monkeypatch.setattr("tokenverse_pp.serving.openai_api.LOOK_SECONDS", 0.005)
    model, recognizer = fake_model()
    async with serving(model=model, uploads=2) as server:
        leaves = (tone(2, 0.2), {"stream": True} if stream else {})
        first, gone = await held(server, recognizer, (tone(1, 0.2), {}), leaves)
        file = weakref.ref(server.uploads._jobs[0].heard)
        gone.cancel()
        await until(lambda: server.uploads.entered == 1)
        assert not server.uploads.waiting
        gc.collect()
        assert file() is None
        other = asyncio.ensure_future(transcribed(server, wav(tone(3, 0.2))))
        await until(lambda: server.uploads.waiting == 1)
        # One that is decoded already gives its place back too.
        first.cancel()
        await until(lambda: server.uploads.entered == 1)
        recognizer.gate.set()
        assert (await other).text == "v3 v3"
    assert recognizer.batches == [1, 1]


async def test_a_server_that_stops_answers_what_waits():
    model, recognizer = fake_model()
    async with serving(model=model) as server:
        talks = await held(server, recognizer, *((tone(i, 0.2), {}) for i in (1, 2)))
        stopping = asyncio.ensure_future(server.uploads.stop())
        with pytest.raises(openai.InternalServerError, match="shutting down") as caught:
            await talks[1]
        assert caught.value.status_code == 503
        recognizer.gate.set()
        await asyncio.gather(stopping, *talks, return_exceptions=True)
        assert (await refused(server, error=openai.InternalServerError))["code"] == "server_shutting_down"


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


async def test_metrics():
    async with serving(model=fake_model()[0]) as server:
        await transcribed(server, wav(tone(5, 0.4)))
        await refused(server, model="gpt-5", error=openai.NotFoundError)
        await spoken(StreamClient(server.url), tone(9, 0.5))
        with pytest.raises(Exception, match="expected some of"):
            await StreamClient(server.url, tasks=["sing"]).__aenter__()
        while server.streams:
            await asyncio.sleep(0.005)
        status, text = await asyncio.to_thread(get, server.port, "/metrics")
    assert status == 200
    found = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
    for name, value in {
        "tokenverse_streams": 0,
        "tokenverse_uploads": 0,
        'tokenverse_streams_ended_total{how="end"}': 1,
        'tokenverse_streams_ended_total{how="bad_message"}': 1,
        'tokenverse_audio_seconds_total{kind="upload"}': 0.4,
        'tokenverse_audio_seconds_total{kind="stream"}': 0.5,
        'tokenverse_requests_total{path="/v1/audio/transcriptions",status="200"}': 1,
        'tokenverse_requests_total{path="/v1/audio/transcriptions",status="404"}': 1,
        'tokenverse_errors_total{code="model_not_found",kind="http"}': 1,
        'tokenverse_errors_total{code="bad_message",kind="stream"}': 1,
        "tokenverse_stream_latency_seconds_count": 5,
        "tokenverse_upload_latency_seconds_count": 1,
    }.items():
        assert float(found[name]) == pytest.approx(value), name
    assert not sys.platform.startswith("linux") or float(found["process_resident_memory_bytes"]) > 1e6


async def test_a_model_thread_that_died_shows():
    model, _ = fake_model()
    async with serving(model=model) as server:
        with server.uploads._changed:
            server.uploads._stopping = True
            server.uploads._changed.notify()
        server.uploads._thread.join()
        assert (await asyncio.to_thread(get, server.port, "/healthz"))[0] == 503


BOUNDARY = "x123"


def form(fields, audio):
    """A multipart body."""
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return "".join(parts).encode() + head.encode() + audio + f"\r\n--{BOUNDARY}--\r\n".encode()


def malformed(rng):
    """A request that is wrong in one of many ways: body, headers."""
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    good = form({"model": "fake"}, wav(tone(5, 0.1)))
    choice = rng.randrange(10)
    if choice == 0:
        return good[: rng.randrange(len(good) - 60)], kind  # cut off
    if choice == 1:
        return rng.randbytes(rng.randrange(300)), kind
    if choice == 2:
        return form({"model": "fake"}, rng.randbytes(rng.randrange(500))), kind  # no audio
    if choice == 3:
        return good, rng.choice(["", "application/json", "text/plain", "multipart/mixed", "multipart/form-data", "/;="])
    if choice == 4:
        return good, f"multipart/form-data; boundary={rng.choice(['other', 'é', 'x' * 100, '', '--'])}"
    if choice == 5:
        return form({"model": rng.choice(["", "x", "\ud7ff", "fake " * 99])}, wav(tone(5, 0.1))), kind
    if choice == 6:
        name = rng.choice(
            ["response_format", "stream", "temperature", "timestamp_granularities[]", "tasks", "include[]"]
        )
        return form({"model": "fake", name: rng.choice(["?", "-1", "[]", "\x00", "é" * 99])}, wav(tone(5, 0.1))), kind
    if choice == 7:
        return form({"model": "fake", rng.choice(["a", "", "file", "model2", "=", "\t"]): "x"}, wav(tone(5, 0.1))), kind
    if choice == 8:
        return good.replace(b"form-data; name", rng.choice([b"", b"attachment", b"form-data name", b"\xff"])), kind
    head = rng.choice(["Content-Type: multipart/mixed; boundary=y", "Content-Length: 99999", "Content-Encoding: gzip"])
    return good.replace(b"\r\n\r\nfake", f"\r\n{head}\r\n\r\nfake".encode())[: -rng.randrange(61, 200)], kind


def post(port, body, kind):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/audio/transcriptions", body, {"Content-Type": kind.encode()})
    response = connection.getresponse()
    return response.status, response.read()


async def check_malformed(count):
    async with serving(model=fake_model()[0]) as server:
        for seed in range(count):
            body, kind = malformed(random.Random(seed))
            status, answer = await asyncio.to_thread(post, server.port, body, kind)
            assert 400 <= status < 500, (seed, status, answer)
            error = json.loads(answer)["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"], (seed, answer)
        assert (await transcribed(server, wav(tone(7, 0.1)))).text == "v7"
        assert not server.uploads.entered


# Its warnings quote headers that are no UTF-8, which pytest's processes cannot send to each other.
NO_HEADER = pytest.mark.filterwarnings("ignore::aiohttp.multipart.BadContentDispositionHeader")


@NO_HEADER
async def test_malformed_requests_have_an_error_object():
    await check_malformed(60)


@NO_HEADER
@pytest.mark.slow
async def test_a_thousand_malformed_requests():
    await check_malformed(1000)


async def check_many(count, **limits):
    """All at once, each with audio of its own; those that are refused come again, as the client does by itself."""
    model, _ = fake_model()
    async with serving(model=model, **limits) as server:
        server.uploads._seconds_each = 0.01
        most = 0

        async def watch():
            nonlocal most
            while True:
                most = max(most, server.uploads.entered)
                await asyncio.sleep(0.001)

        watching = asyncio.ensure_future(watch())
        async with client_of(server, retries=50) as client:

            async def one(i):
                file = (f"{i}.wav", wav(tone(i, 0.2), tone(-i, 0.1)))
                return (await client.audio.transcriptions.create(file=file, model="fake")).text

            texts = await asyncio.gather(*(one(i) for i in range(1, count + 1)))
        watching.cancel()
        assert texts == [f"v{i} v{i} v{-i}" for i in range(1, count + 1)]
        assert most <= server.limits.uploads and not server.uploads.entered
        return server.monitor.errors.labels("http", "rate_limit_exceeded")._value.get()


async def test_uploads_at_once_are_not_mixed_up():
    await check_many(24)


@pytest.mark.slow
async def test_two_hundred_uploads_at_once():
    assert await check_many(200, uploads=32) > 0  # some had to come again


async def test_a_connection_that_says_nothing_is_cut_off(monkeypatch):
    monkeypatch.setattr("tokenverse_pp.serving.server.OPEN_SECONDS", 0.1)
    async with serving(model=fake_model()[0], idle_seconds=0.2) as server:
        for said in (b"", b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(said)
            try:
                assert await asyncio.wait_for(reader.read(), 30) == b""
            except ConnectionResetError:
                pass
            writer.close()
        # A body that stops: 408.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        lines = ("POST /v1/audio/transcriptions HTTP/1.1", "Host: x", "Content-Length: 9999")
        writer.write("\r\n".join([*lines, "Content-Type: multipart/form-data; boundary=x", "", "--x", ""]).encode())
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), 30)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"no data for 0.2 s" in answer
        writer.close()


def test_the_formats_are_all_there():
    from tokenverse_pp.serving.openai_api import KINDS, RESPONSE_FORMATS

    assert {*KINDS, "json", "verbose_json"} == set(RESPONSE_FORMATS) and set(KINDS) <= set(FORMATS)
    assert CHUNK * 10 == RATE


async def test_uploads_without_lid_are_not_bound_to_the_language_of_the_server(toy, talk, tmp_path):
    (tmp_path / "qaa.tsv").write_text("dun\t30\n")
    (tmp_path / "qab.tsv").write_text("dun\t30\n")
    search = SearchOptions(lm_scale=0.3)
    options = TranscribeOptions(language="qab", lm=tmp_path, search=search, inactive="suppress")
    async with serving(model=build_upload_model(toy.loaded, "toy", options)) as server:
        found = await transcribed(server, talk[1], model="toy", extra_body={"tasks": "asr"})
        assert found.text == toy.transcribe(talk[0], tasks=["asr"], inactive="suppress").text
        said = await refused(server, talk[1], model="toy", language="qab", extra_body={"tasks": "asr"})
        assert said["param"] == "language"


def test_the_file_of_hotwords_is_read_when_the_server_starts(toy, tmp_path):
    (tmp_path / "names.txt").write_text("dun ibi\n")
    model = build_upload_model(toy.loaded, "toy", TranscribeOptions(hotwords=tmp_path / "names.txt"))
    (tmp_path / "names.txt").unlink()
    assert model.decoding(model.options_for(("asr",))).search.hotwords == ("dun ibi",)


async def test_a_client_that_does_not_read_its_events_loses_its_place(monkeypatch):
    async def stuck(self, data):
        await asyncio.Event().wait()

    monkeypatch.setattr(web.StreamResponse, "write", stuck)
    async with serving(model=fake_model()[0], idle_seconds=0.2) as server:
        with pytest.raises((openai.APIConnectionError, httpx.TransportError)):
            await streamed(server, wav(tone(5, 0.3)), model="fake")
        assert server.uploads.entered == 0
