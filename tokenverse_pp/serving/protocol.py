"""Messages between client and server (docs/streaming_protocol.md), and the limits of a server.

Text messages are JSON objects with a field ``kind``; binary messages are audio.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import is_finite
from tokenverse_pp.base.options import SearchOptions

VERSION = 1
MOST_CONTROL = 16384  # bytes of a control message
LOUDEST = 8.0  # float32 samples are in -1 .. 1; resampling exceeds that a little, unscaled 16-bit numbers by far
MOST_REASON = 120  # bytes of a close frame's reason (RFC 6455 allows 123)
FORMATS: Dict[str, Tuple[str, int]] = {"pcm16": ("<i2", 2), "float32": ("<f4", 4)}

# Warning of server and clients for a model for which `ready` has "trained_in_chunks": false.
NEVER_IN_CHUNKS = (
    "this model was never trained in chunks (model.streaming.chunk_ms): streamed, it makes more errors than "
    "`tokenverse-pp transcribe` with the same model"
)

NORMAL, GOING_AWAY, TOO_BIG = 1000, 1001, 1009
# Errors, and the codes that the connection is closed with (RFC 6455, section 7.4.1, and IANA's list).
CLOSE_CODES = {
    "bad_message": 1007,
    "bad_audio": 1007,
    "unauthorised": 1008,
    "idle": 1008,
    "too_long": 1008,
    "slow_reader": 1008,
    "too_many_streams": 1013,
    "internal": 1011,
    "going_away": GOING_AWAY,
}


@dataclass(frozen=True)
class Limits:
    """Limits of a server and of each of its streams (raises UserError for one that no stream could work with)."""

    streams: int = 50
    """Streams open at once; further ones are refused."""
    message_bytes: int = 1 << 18
    """Largest message in bytes; a longer one closes its stream with code 1009."""
    waiting_seconds: float = 10.0
    """Seconds of a stream's audio that may wait for the model. Above this, nothing is read from the connection until
    the model has caught up, and TCP slows the client down."""
    stream_seconds: float = 4 * 3600.0
    """Seconds of audio in one stream, and in one uploaded file."""
    idle_seconds: float = 30.0
    """Seconds without a message, before ``start`` or between messages, after which a stream is closed; and without
    data, or with a client that does not read the events of its upload, after which an upload is given up."""
    unsent_bytes: int = 1 << 18
    """Bytes of events that may wait for a client to read them. Partials do not count: only the newest waits."""
    closing_seconds: float = 5.0
    """Seconds for a client to read the remaining events and to close its side."""
    batch: int = 32
    """Streams that the model processes together."""
    uploads: int = 32
    """Files received, waiting and decoded at once (/v1/audio/transcriptions); further ones are refused with 429."""
    upload_bytes: int = 25 << 20
    """Largest uploaded file in bytes. Uploads are kept in memory."""

    def __post_init__(self) -> None:
        lowest = {"message_bytes": MOST_CONTROL, "unsent_bytes": 1024, "streams": 1, "batch": 1, "uploads": 1}
        for name, value in vars(self).items():
            least = lowest.get(name, 0)
            if not value >= least or value == 0:  # neither is NaN
                above = f"at least {least}" if least else "more than 0"
                raise UserError(f"limit '{name}': expected {above}, got {value}")

    @property
    def connections(self) -> int:
        """Connections open at once, including those that have not started a stream."""
        return 2 * self.streams + 8


class StreamError(Exception):
    """Ends a stream early, with a code (a key of `CLOSE_CODES`) and a line that says what was expected."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message
        self.close_code = CLOSE_CODES[code]

    @property
    def reason(self) -> str:
        """Reason in the close frame, for clients that read nothing else."""
        return f"{self.code}: {self.message}".encode("ascii", "replace")[:MOST_REASON].decode("ascii")


SCALES = ("hotword_score", "lm_scale", "lm_bonus")
Phrases = Tuple[Union[str, Tuple[str, float]], ...]


@dataclass(frozen=True)
class Start:
    """The first message of a stream. None: the value that the server was started with.

    Args:
        format: format of the audio.
        tasks: tasks to decode.
        partials: whether to send events that may still change.
        reset_at_endpoint: whether to restart the search at each endpoint.
        token: token that the server requires.
        language: codes of the spoken languages.
        hotwords: phrases to prefer, instead of the server's; empty for none.
        hotword_score: bonus of phrases without their own.
        lm: False to decode without the server's language model.
        lm_scale: scale of the server's language model.
        lm_bonus: bonus for each token that it scores.
        pauses: whether to send the probability of an endpoint after each chunk while a pause lasts.
    """

    format: str = "pcm16"
    tasks: Optional[Tuple[str, ...]] = None
    partials: bool = True
    reset_at_endpoint: bool = False
    token: Optional[str] = None
    language: Optional[Tuple[str, ...]] = None
    hotwords: Optional[Phrases] = None
    hotword_score: Optional[float] = None
    lm: Optional[bool] = None
    lm_scale: Optional[float] = None
    lm_bonus: Optional[float] = None
    pauses: Optional[bool] = None

    @property
    def asks_for_lm(self) -> bool:
        """Whether the stream needs a language model of the server."""
        return bool(self.lm) or self.lm_scale is not None or self.lm_bonus is not None

    def search(self, default: SearchOptions) -> Optional[SearchOptions]:
        """The options of the stream's search; None for those of the server.

        Hotwords and language models need a beam: a stream that uses them is decoded with the server's beam size, even
        if the server decodes other streams greedily.

        Raises:
            UserError: for options that no search can use, and for a language model if the server has none.
        """
        changes: Dict[str, Any] = {}
        if self.language is not None:
            changes.update(languages=self.language, force_language=True)
        if self.hotwords is not None:
            changes["hotwords"] = self.hotwords or None
        changes.update({name: value for name in SCALES if (value := getattr(self, name)) is not None})
        if default.lm is None and self.asks_for_lm:
            raise UserError("field 'lm': this server has no language model (`tokenverse-pp serve --lm`)")
        if self.lm is False:
            # Without the server's defaults for it; a scale of the stream's own is an error.
            changes.update(lm=None, lm_scale=self.lm_scale, lm_bonus=self.lm_bonus)
        if not changes:
            return None
        if changes.get("hotwords"):
            changes["method"] = "beam"
        return replace(default, **changes)


@dataclass(frozen=True)
class SetTasks:
    """Switch the active tasks."""

    tasks: Tuple[str, ...]


@dataclass(frozen=True)
class End:
    """No more audio follows."""


Control = Union[Start, SetTasks, End]
FIELDS = {
    "start": {"version", "sample_rate", *(field.name for field in dataclasses.fields(Start))},
    "set_tasks": {"tasks"},
    "end": set(),
}


def read_control(text: str, known_tasks: Sequence[str]) -> Control:
    """Read a text message to a server of these tasks (raises StreamError ``bad_message``, which names the field)."""
    if len(text) > MOST_CONTROL:
        raise _bad(f"control message of {len(text)} characters: expected at most {MOST_CONTROL}; send audio as binary")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else "out of bounds"
        raise _bad(f"text message is not JSON ({why}): {shown(text)}") from error
    if not isinstance(message, dict):
        raise _bad(f"text message: expected a JSON object with 'kind', found {shown(message)}")
    kind = message.pop("kind", None)
    if not isinstance(kind, str) or kind not in FIELDS:
        raise _bad(f"field 'kind': expected one of {', '.join(FIELDS)}, found {shown(kind)}")
    for name in message:
        if name not in FIELDS[kind]:
            expected = ", ".join(sorted(FIELDS[kind])) or "none"
            raise _bad(f"message {kind!r}: unknown field {shown(name)}; it has: {expected}")
    if kind == "start":
        return _read_start(message, known_tasks)
    if kind == "end":
        return End()
    tasks = _read_tasks(message, known_tasks)
    if tasks is None:
        raise _bad("message 'set_tasks': field 'tasks' is missing")
    return SetTasks(tasks)


def _read_start(message: Mapping[str, Any], known_tasks: Sequence[str]) -> Start:
    version, rate, name = message.get("version"), message.get("sample_rate"), message.get("format")
    if type(version) is not int or version != VERSION:
        raise _bad(f"field 'version': this server speaks version {VERSION}, found {shown(version)}")
    if type(rate) is not int or rate != SAMPLE_RATE:
        raise _bad(f"field 'sample_rate': expected {SAMPLE_RATE} (resample before sending), found {shown(rate)}")
    if not isinstance(name, str) or name not in FORMATS:
        raise _bad(f"field 'format': expected one of {', '.join(FORMATS)}, found {shown(name)}")
    given = {key: message[key] for key in SCALES if message.get(key) is not None}
    for field, value in given.items():
        if not is_finite(value):
            raise _bad(f"field '{field}': expected a number, found {shown(value)}")
    for field in ("partials", "reset_at_endpoint", "lm", "pauses"):
        value = message.get(field)
        if value is None and (field in ("lm", "pauses") or field not in message):
            continue
        if not isinstance(value, bool):
            raise _bad(f"field '{field}': expected true or false, found {shown(value)}")
        given[field] = value
    token = message.get("token")
    if token is not None and not isinstance(token, str):
        raise _bad("field 'token': expected a text")
    tasks, language, hotwords = _read_tasks(message, known_tasks), _read_language(message), _read_hotwords(message)
    return Start(name, tasks, token=token, language=language, hotwords=hotwords, **given)


def _read_language(message: Mapping[str, Any]) -> Optional[Tuple[str, ...]]:
    """The field ``language``: a code, or a list of codes."""
    language = message.get("language")
    if language is None:
        return None
    codes = [language] if isinstance(language, str) else language
    if not isinstance(codes, list) or not codes or not all(isinstance(code, str) for code in codes):
        raise _bad(f"field 'language': expected a code such as 'fr', or a list of codes, found {shown(language)}")
    return tuple(codes)


def _read_hotwords(message: Mapping[str, Any]) -> Optional[Phrases]:
    """The field ``hotwords``: a list of phrases, each alone or in a list with its bonus."""
    hotwords = message.get("hotwords")
    if hotwords is None:
        return None
    if not isinstance(hotwords, list):
        raise _bad(f"field 'hotwords': expected a list of phrases, found {shown(hotwords)}")
    found: List[Union[str, Tuple[str, float]]] = []
    for item in hotwords:
        phrase, bonus = item if isinstance(item, list) and len(item) == 2 else (item, 1.0)
        if not isinstance(phrase, str) or not phrase.strip() or not (is_finite(bonus) and bonus > 0):
            raise _bad(f"field 'hotwords': expected a phrase or [phrase, number above 0], found {shown(item)}")
        found.append(phrase if item is phrase else (phrase, float(bonus)))
    return tuple(found)


def _read_tasks(message: Mapping[str, Any], known_tasks: Sequence[str]) -> Optional[Tuple[str, ...]]:
    """The field ``tasks`` in the server's order, including asr, which is always active."""
    tasks = message.get("tasks")
    if tasks is None:
        return None
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        raise _bad(f"field 'tasks': expected a list of names, found {shown(tasks)}")
    for name in tasks:
        if name not in known_tasks:
            raise _bad(f"field 'tasks': expected some of {', '.join(known_tasks)}, found {shown(name)}")
    return tuple(name for name in known_tasks if name in tasks or name == "asr")


def _bad(message: str) -> StreamError:
    return StreamError("bad_message", message)


def read_audio(data: bytes, format: str) -> np.ndarray:
    """Read a binary message: little-endian samples of one channel in a format of `FORMATS` -> ``(S,)`` float32.

    Raises:
        StreamError: ``bad_audio``.
    """
    kind, width = FORMATS[format]
    if len(data) % width:
        raise StreamError("bad_audio", f"binary message of {len(data)} bytes: a {format} sample has {width}")
    samples = np.frombuffer(data, dtype=kind)
    if format == "pcm16":
        return samples.astype(np.float32) / 32768
    # With a NaN among the samples, min and max are NaN, and both comparisons are false.
    if len(samples) and not (samples.min() >= -LOUDEST and samples.max() <= LOUDEST):
        raise StreamError("bad_audio", "float32 samples: expected numbers in -1 .. 1, found NaN or far larger ones")
    return samples.astype(np.float32)


def start_message(start: Start) -> str:
    """`Start` as text, for clients."""
    fields = {**vars(start), "tasks": None if start.tasks is None else list(start.tasks)}
    message = {"kind": "start", "version": VERSION, "sample_rate": SAMPLE_RATE, **fields}
    return json.dumps({name: value for name, value in message.items() if value is not None})


def write_audio(samples: np.ndarray, format: str) -> bytes:
    """Samples ``(S,)`` in -1 .. 1 as a binary message; pcm16 is clipped."""
    if format == "pcm16":
        return np.clip(np.rint(np.asarray(samples) * 32768), -32768, 32767).astype("<i2").tobytes()
    return np.asarray(samples, dtype="<f4").tobytes()


def shown(value: Any) -> str:
    """A value from a client for messages and logs: short, one line, ASCII."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
