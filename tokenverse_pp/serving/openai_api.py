"""OpenAI's audio API: /v1/audio/transcriptions and /v1/models (docs/openai_api.md)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple

from aiohttp import BodyPartReader, web
from aiohttp.web_exceptions import HTTPException

from tokenverse_pp.api.formats import FORMATS
from tokenverse_pp.api.formats.text import paragraphs, to_text
from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.options import TranscribeOptions, names_of
from tokenverse_pp.serving.access import bearer
from tokenverse_pp.serving.http import answer
from tokenverse_pp.serving.protocol import Limits, shown
from tokenverse_pp.serving.uploads import UploadError, UploadJob, UploadModel
from tokenverse_pp.tasks.punct import SIGN_OF
from tokenverse_pp.tasks.result import Transcript, Turn
from tokenverse_pp.tasks.transcript import is_task_token, word_spans

if TYPE_CHECKING:
    from tokenverse_pp.serving.server import StreamingServer

log = logging.getLogger(__name__)
PREFIX = "/v1/"
TRANSCRIPTIONS, MODELS = "/v1/audio/transcriptions", "/v1/models"
ALIASES = ("whisper-1",)  # sent by clients whose model name cannot be changed
RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = ("word", "segment")
FIELDS = {
    *("file", "model", "language", "prompt", "response_format", "temperature", "stream", "tasks"),
    *("timestamp_granularities[]", "timestamp_granularities", "chunking_strategy", "include[]", "include"),
}
OBJECT_FIELD = "chunking_strategy["  # of an object the client makes chunking_strategy[type] and so on
SEVERAL = {"timestamp_granularities[]", "timestamp_granularities", "include[]", "include"}
MOST_FIELD = 16384  # bytes of a field other than the file
MOST_PARTS = 32
PIECE = 1 << 16
PING_SECONDS = 10.0  # between comments in a stream of events while there are no events
LOOK_SECONDS = 1.0  # between looks whether the client of an upload has left
KINDS = {"srt": "text/plain", "text": "text/plain", "vtt": "text/vtt"}
# What a browser asks before a page of another origin may send a request; `*` does not stand for Authorization.
PREFLIGHT = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "Authorization, *"}
# The HTTP status, `type` and `code` for each kind of `UploadError`.
UPLOAD_ERRORS = {
    "audio": (400, "invalid_request_error", "invalid_value"),
    "options": (400, "invalid_request_error", "invalid_value"),
    "busy": (429, "rate_limit_error", "rate_limit_exceeded"),
    "closing": (503, "server_error", "server_shutting_down"),
    "internal": (500, "server_error", "internal_error"),
}


class ApiError(Exception):
    """An error response of the form ``{"error": {"message", "type", "param", "code"}}``."""

    def __init__(
        self,
        status: int,
        message: str,
        param: Optional[str] = None,
        code: Optional[str] = None,
        type: str = "invalid_request_error",
        retry_after: Optional[int] = None,
    ):
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}

    def response(self) -> web.Response:
        """The HTTP response."""
        response = _json(self.body, self.status)
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response


def _json(content: Any, status: int = 200) -> web.Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return answer(status, text.encode("utf-8", "backslashreplace"), "application/json", closes=False)


def _wrong(param: str, message: str, code: str = "invalid_value") -> NoReturn:
    raise ApiError(400, message, param, code)


@dataclass(frozen=True)
class UploadForm:
    """The fields of a request, each with its values, and the file."""

    fields: Dict[str, List[str]]
    file: Optional[bytes]
    name: str

    def one(self, name: str) -> Optional[str]:
        """The value of a field; None if it is missing or empty."""
        return (self.fields.get(name) or [""])[0] or None

    def all(self, name: str) -> List[str]:
        """The values of a field that may be repeated, also as ``name[]``."""
        return [*self.fields.get(f"{name}[]", []), *self.fields.get(name, [])]


async def read_form(request: web.Request, limits: Limits) -> UploadForm:
    """Read ``multipart/form-data`` (raises ApiError for anything invalid)."""
    too_large = ApiError(413, f"the file exceeds the limit of {limits.upload_bytes} bytes", "file", "file_too_large")
    if request.content_type != "multipart/form-data":
        raise ApiError(400, f"expected multipart/form-data, found {shown(request.content_type)}")
    if (request.content_length or 0) > limits.upload_bytes + MOST_PARTS * MOST_FIELD:
        raise too_large

    async def read(part: BodyPartReader, most: int, error: ApiError) -> bytes:
        pieces, size = [], 0
        while piece := await asyncio.wait_for(part.read_chunk(PIECE), limits.idle_seconds):
            size += len(piece)
            if size > most:
                raise error
            pieces.append(piece)
        return b"".join(pieces)

    fields: Dict[str, List[str]] = {}
    file, file_name, parts = None, "audio", 0
    try:
        reader = await request.multipart()
        while (part := await asyncio.wait_for(reader.next(), limits.idle_seconds)) is not None:
            parts += 1
            if parts > MOST_PARTS:
                raise ApiError(400, f"more than {MOST_PARTS} parts")
            if not isinstance(part, BodyPartReader) or not part.name:
                raise ApiError(400, "a part without a name: expected Content-Disposition: form-data; name=..")
            name = part.name
            if name not in FIELDS and not name.startswith(OBJECT_FIELD):
                known = ", ".join(sorted(FIELDS))
                raise ApiError(400, f"unknown field {shown(name)}; known: {known}", None, "unknown_parameter")
            if (name in fields and name not in SEVERAL) or (name == "file" and file is not None):
                _wrong(name, f"field '{name}' comes twice")
            if name == "file":
                file_name = part.filename or "audio"
                file = await read(part, limits.upload_bytes, too_large)
            else:
                long = ApiError(400, f"field '{name}': more than {MOST_FIELD} bytes", name, "invalid_value")
                fields.setdefault(name, []).append((await read(part, MOST_FIELD, long)).decode("utf-8"))
    except UnicodeDecodeError:
        raise ApiError(400, "the form is not UTF-8") from None
    except asyncio.TimeoutError:
        raise ApiError(408, f"no data for {limits.idle_seconds:g} s", code="timeout") from None
    except (ApiError, asyncio.CancelledError, MemoryError):
        raise
    except Exception as error:
        # aiohttp's reader raises ValueError, AssertionError, RuntimeError, HttpProcessingError, .. for invalid forms.
        raise ApiError(400, f"not multipart/form-data: {one_line(error)}") from None
    return UploadForm(fields, file, file_name)


@dataclass(frozen=True)
class TranscriptionRequest:
    """What a client requests."""

    format: str  # one of `RESPONSE_FORMATS`
    stream: bool
    granularities: Tuple[str, ...]
    options: TranscribeOptions


def read_request(form: UploadForm, model: UploadModel) -> TranscriptionRequest:
    """Check the fields of a form and return the request (raises ApiError)."""
    if form.file is None:
        _wrong("file", "field 'file' is missing: the audio", "missing_required_parameter")
    if form.one("model") is None:
        _wrong("model", f"field 'model' is missing: {model.name}", "missing_required_parameter")
    check_model(str(form.one("model")), model)
    format = form.one("response_format") or "json"
    if format not in RESPONSE_FORMATS:
        _wrong("response_format", f"expected one of {', '.join(RESPONSE_FORMATS)}, found {shown(format)}")
    granularities = tuple(form.all("timestamp_granularities"))
    for name in granularities:
        if name not in GRANULARITIES:
            _wrong("timestamp_granularities[]", f"expected word or segment, found {shown(name)}")
    if granularities and format != "verbose_json":
        _wrong("timestamp_granularities[]", "times need response_format verbose_json")
    stream = form.one("stream") or "false"
    if stream.lower() not in ("true", "false"):
        _wrong("stream", f"expected true or false, found {shown(stream)}")
    is_stream = stream.lower() == "true"
    if is_stream and format not in ("json", "text"):
        _wrong("stream", f"response_format {format} cannot be streamed: json and text can")
    if form.all("include"):
        _wrong("include[]", "not available here: verbose_json has the confidence of each word")
    _check_temperature(form.one("temperature"))
    return TranscriptionRequest(format, is_stream, granularities or ("segment",), _options(form, model, is_stream))


def check_model(name: str, model: UploadModel) -> None:
    """Check that a client requests the model that is served (raises ApiError)."""
    if name not in (model.name, *ALIASES):
        said = f"The model {shown(name)} does not exist here; this server has {model.name!r}"
        raise ApiError(404, said, "model", "model_not_found")


def _check_temperature(text: Optional[str]) -> None:
    """Check the temperature, which has no effect: a transducer's beam search does not sample."""
    try:
        value = float(text or 0)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        _wrong("temperature", f"expected a number in 0 .. 1, found {shown(text)}")


def _options(form: UploadForm, model: UploadModel, is_stream: bool) -> TranscribeOptions:
    """How to transcribe: the server's options, overridden by those of the request."""
    changes: Dict[str, Any] = {}
    options = model.options
    language, prompt, tasks = form.one("language"), form.one("prompt"), form.one("tasks")
    if language is not None:
        changes["language"] = names_of(language)
    if tasks is not None:
        offered = options.tasks or model.known.names
        wanted = names_of(tasks)
        for name in wanted or (tasks,):
            if name not in offered:
                _wrong("tasks", f"expected some of {', '.join(offered)}, found {shown(name)}")
        options = model.options_for(wanted)
    if prompt is not None and hotwords_of(prompt):
        changes["hotwords"] = hotwords_of(prompt)
        search = options.search
        if search is not None and search.method == "greedy":  # greedy search has no bonuses
            changes["search"] = dataclasses.replace(search, method="beam")
    if is_stream:  # a window at a time, so that text comes early
        changes["batch_seconds"] = min(options.window, options.batch_seconds)
    return dataclasses.replace(options, **changes)


def hotwords_of(prompt: str) -> Tuple[str, ...]:
    """The phrases of a prompt, which is split at commas, semicolons, line ends and ends of sentences of any script.

    >>> hotwords_of("Amélie Poulain, Montmartre. vingt-deux")
    ('Amélie Poulain', 'Montmartre', 'vingt-deux')
    >>> hotwords_of("東京、大阪。")
    ('東京', '大阪')
    """
    other_signs = (sign for sign in SIGN_OF if not sign.isascii())
    for mark in (";", "\n", "\r", "\t", ". ", "! ", "? ", ": ", *other_signs):
        prompt = prompt.replace(mark, ",")
    return tuple(dict.fromkeys(filter(None, (phrase.strip(" .!?:") for phrase in prompt.split(",")))))


def to_verbose_json(
    transcript: Transcript, granularities: Sequence[str], piece_ids: Mapping[str, int]
) -> Dict[str, Any]:
    """OpenAI's object, extended by the keys of `Transcript.to_dict` that it does not have."""
    found: Dict[str, Any] = {
        "task": "transcribe",
        "language": transcript.language or "und",  # BCP 47: undetermined
        "duration": transcript.duration,
        "text": transcript.written_text(),
        "usage": _usage(transcript),
    }
    if "word" in granularities:
        found["words"] = [
            {"word": w.text, "start": w.start, "end": w.end, "confidence": w.confidence} for w in transcript.words
        ]
    if "segment" in granularities:
        ids = _ids_of_words(transcript, piece_ids)
        parts = enumerate(paragraphs(transcript))
        found["segments"] = [_segment(number, part, transcript, ids) for number, part in parts]
    own = {key: value for key, value in transcript.to_dict().items() if key not in ("name", "words", *found)}
    return {**found, **own}


def _ids_of_words(transcript: Transcript, piece_ids: Mapping[str, int]) -> List[List[int]]:
    """The ids of each word's pieces; empty if the transcript has no pieces."""
    pieces = transcript.tokens or ()
    spans = [(first, stop) for written, first, stop in word_spans(pieces) if not is_task_token(written)]
    return [[piece_ids[piece] for piece in pieces[first:stop] if piece in piece_ids] for first, stop in spans]


def _segment(number: int, part: Turn, transcript: Transcript, ids: Sequence[Sequence[int]]) -> Dict[str, Any]:
    """A paragraph of the text format; ``turn`` is the number of its turn, if speaker changes were requested."""
    words = transcript.words[part.first : part.stop]
    text = transcript.written_text(part.first, part.stop)
    data = text.encode()
    segment = {
        "id": number,
        "seek": int(100 * part.start),  # in frames of 10 ms, as Whisper counts
        "start": part.start,
        "end": part.end,
        "text": text,
        # Not by time: a frame may have the last word of a part and the first one of the next.
        "tokens": [id for word in ids[part.first : part.stop] for id in word],
        "temperature": 0.0,
        "avg_logprob": sum(math.log(max(word.confidence or 0.0, 1e-10)) for word in words) / len(words),
        "compression_ratio": len(data) / len(zlib.compress(data)),
        "no_speech_prob": 0.0,  # a transducer has none, and clients compare it with a number
    }
    return {**segment, "turn": part.number} if "scd" in transcript.tasks else segment


def _usage(transcript: Transcript) -> Dict[str, Any]:
    return {"type": "duration", "seconds": transcript.duration}


def to_response(transcript: Transcript, wanted: TranscriptionRequest, model: UploadModel) -> web.Response:
    """A transcript in the requested format; the formats are those of `tokenverse-pp transcribe`."""
    if wanted.format == "json":
        return _json({"text": transcript.written_text(), "usage": _usage(transcript)})
    if wanted.format == "verbose_json":
        return _json(to_verbose_json(transcript, wanted.granularities, model.piece_ids))
    # Paragraphs without their times, as OpenAI's text has none.
    text = to_text(transcript, times=False) if wanted.format == "text" else FORMATS[wanted.format].write(transcript)
    return answer(200, text.encode("utf-8", "replace"), f"{KINDS[wanted.format]}; charset=utf-8", closes=False)


class OpenAIApi:
    """Answers requests below ``/v1/``."""

    def __init__(self, server: StreamingServer):
        self.server = server
        self._created = int(time.time())

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Answer a request; every error has OpenAI's form."""
        path = request.path if request.path in (TRANSCRIPTIONS, MODELS) else f"{PREFIX}*"
        monitor = self.server.monitor
        try:
            response = await self._route(request)
        except ApiError as error:
            monitor.errors.labels("http", error.code or error.status).inc()
            response = error.response()
        except (ConnectionError, asyncio.CancelledError, HTTPException):
            raise  # the client has left
        except Exception as error:
            log.error("request failed: %s", path, exc_info=error)
            monitor.errors.labels("http", "internal_error").inc()
            response = ApiError(500, "the server failed", type="server_error", code="internal_error").response()
        monitor.requests.labels(path, response.status).inc()
        return response

    async def _route(self, request: web.Request) -> web.StreamResponse:
        foreign, access = self.server.foreign_origin(request), self.server.access
        if foreign is not None:
            raise ApiError(403, foreign, code="forbidden_origin")
        if request.method == "OPTIONS" and self.server.other_origin(request) is not None:
            return web.Response(status=204, headers=PREFLIGHT)  # before the token, which browsers do not send here
        if not access.allows_token(bearer(request.headers.get("Authorization"))):
            raise ApiError(401, "Incorrect API key provided: the server's token is expected", code="invalid_api_key")
        model, path = self.server.model, request.path
        handler: Callable[..., Any]
        if path == TRANSCRIPTIONS:
            method, handler = "POST", self._transcribe
        elif path == MODELS or path.startswith(f"{MODELS}/"):
            method, handler = "GET", self._models
        else:
            raise ApiError(404, f"Unknown request URL: {request.method} {shown(path)}", code="unknown_url")
        if request.method != method:
            raise ApiError(405, f"{path}: expected {method}, found {shown(request.method)}", code="method_not_allowed")
        if model is None:
            raise ApiError(404, "this server takes streams only", code="unknown_url")
        return await handler(request, model)

    async def _models(self, request: web.Request, model: UploadModel) -> web.Response:
        """The model that the path names, or the list of models."""
        about = {"id": model.name, "object": "model", "created": self._created, "owned_by": "tokenverse_pp"}
        about["tasks"] = list(model.options.tasks or model.known.names)
        if request.path == MODELS:
            return _json({"object": "list", "data": [about]})
        check_model(request.path[len(MODELS) + 1 :], model)
        return _json(about)

    async def _transcribe(self, request: web.Request, model: UploadModel) -> web.StreamResponse:
        began = time.monotonic()
        texts: asyncio.Queue[Optional[str]] = asyncio.Queue()
        try:
            with self.server.uploads.entry():
                form = await read_form(request, self.server.limits)
                wanted, param = read_request(form, model), _param(form)
                try:
                    decoding = model.decoding(wanted.options)
                except UserError as error:
                    raise _api_error(UploadError("options", str(error)), param) from None
                job = await self.server.uploads.submit(
                    form.file or b"",
                    form.name,
                    decoding,
                    is_wanted=lambda: request.transport is not None,
                    on_text=texts.put_nowait if wanted.stream else None,
                )
                del form  # the file, which may be large
                looking = asyncio.ensure_future(_look_for(request, job))
                try:
                    if wanted.stream:
                        job.done.add_done_callback(lambda _: texts.put_nowait(None))
                        response: web.StreamResponse = await self._events(request, job, texts)
                    else:
                        response = to_response(await job.done, wanted, model)
                except UploadError as error:
                    raise (_api_error(error, param) if error.kind == "options" else error) from None
                finally:
                    looking.cancel()
                    self.server.uploads.discard(job)  # the client may have left before its turn
                self.server.monitor.upload_latency.observe(time.monotonic() - began)
                self.server.monitor.audio.labels("upload").inc(job.seconds)
                return response
        except UploadError as error:
            raise _api_error(error, "file" if error.kind == "audio" else None) from None

    async def _events(
        self, request: web.Request, job: UploadJob, texts: asyncio.Queue[Optional[str]]
    ) -> web.StreamResponse:
        """Send server-sent events: ``transcript.text.delta`` for settled text, then ``transcript.text.done``."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})  # nginx must not buffer
        sent = ""

        async def taken(sending: Awaitable[None]) -> None:
            try:  # a client that does not read must not keep its place
                await asyncio.wait_for(sending, self.server.limits.idle_seconds)
            except asyncio.TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the client does not read") from None

        async def write(text: str) -> None:
            if not response.prepared:
                await response.prepare(request)
            await taken(response.write(text.encode("utf-8", "backslashreplace")))

        async def send(event: Dict[str, Any]) -> None:
            await write(f"event: {event.get('type', 'error')}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n")

        async def send_new(text: str) -> None:
            nonlocal sent
            if text != sent and text.startswith(sent):
                await send({"type": "transcript.text.delta", "delta": text[len(sent) :]})
                sent = text

        try:
            while True:
                try:
                    text = await asyncio.wait_for(texts.get(), PING_SECONDS)
                except asyncio.TimeoutError:
                    await write(": decoding\n\n")
                    continue
                if text is None:
                    break
                await send_new(text)
            transcript = job.done.result()
            whole = transcript.written_text()
            await send_new(whole)
            await send({"type": "transcript.text.done", "text": whole, "usage": _usage(transcript)})
        except UploadError as error:
            if not response.prepared:
                raise  # as a plain HTTP error
            failure = _api_error(error)
            self.server.monitor.errors.labels("http", failure.code).inc()
            await send(failure.body)
        await taken(response.write_eof())
        return response


async def _look_for(request: web.Request, job: UploadJob) -> None:
    """End the wait for a job when its client has left.

    aiohttp tells this only by cancelling all handlers (``handler_cancellation``), those of streams included, which have
    an ending of their own.
    """
    while request.transport is not None:
        await asyncio.sleep(LOOK_SECONDS)
    if not job.done.done():
        job.done.set_exception(ConnectionResetError("the client has left"))


def _param(form: UploadForm) -> Optional[str]:
    """The field that a model could not use, if the request has only one candidate."""
    given = [name for name in ("language", "prompt") if form.one(name) is not None]
    return given[0] if len(given) == 1 else None


def _api_error(error: UploadError, param: Optional[str] = None) -> ApiError:
    status, kind, code = UPLOAD_ERRORS[error.kind]
    message = " ".join(error.message.split())
    return ApiError(status, message, param, code, kind, error.retry_after)
