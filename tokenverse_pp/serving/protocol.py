"""What a server allows.

The messages between client and server, as docs/streaming_protocol.md describes them: read and written here only.

Text messages are JSON objects with a field ``kind``; binary messages are audio.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from tokenverse_pp.base.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What one stream, and all of them, may take.

    Raises:
        UserError: for a limit that no stream could live with.
    """

    streams: int = 50
    """Streams open at once; one more is refused."""
    message_bytes: int = 1 << 18
    """Largest message in bytes; a longer one closes its stream with code 1009."""
    waiting_seconds: float = 10.0
    """Seconds of a stream's audio that may wait for the model. Above it, no more is read from the connection until the
    model has caught up, and TCP slows the client down."""
    stream_seconds: float = 4 * 3600.0
    """Seconds of audio in one stream."""
    idle_seconds: float = 30.0
    """Seconds without a message before a stream is closed, before ``start`` and between messages."""
    unsent_bytes: int = 1 << 18
    """Bytes of events that may wait for a client to read them. Partials do not count: only the newest waits."""
    closing_seconds: float = 5.0
    """Seconds for a client to take the remaining events and to close its side."""
    batch: int = 32
    """Streams that run through the model together."""

    def __post_init__(self) -> None:
        lowest = {"message_bytes": MOST_CONTROL, "unsent_bytes": 1024, "streams": 1, "batch": 1}
        for name, value in vars(self).items():
            least = lowest.get(name, 0)
            if value < least or value == 0:
                above = f"at least {least}" if least else "more than 0"
                raise UserError(f"limit '{name}': expected {above}, got {value}")

    @property
    def connections(self) -> int:
        """Connections open at once, those among them that have not started a stream."""
        return 2 * self.streams + 8


VERSION = 1
SAMPLE_RATE = 16000
MOST_CONTROL = 16384  # bytes of a control message
LOUDEST = 8.0  # float32 samples lie within -1 .. 1; resampling overshoots a little, 16-bit numbers by far
MOST_REASON = 120  # bytes of a close frame's reason (RFC 6455 allows 123)
FORMATS: Dict[str, Tuple[str, int]] = {"pcm16": ("<i2", 2), "float32": ("<f4", 4)}

NORMAL, GOING_AWAY, TOO_BIG = 1000, 1001, 1009
# What can be wrong, and the code that the connection is closed with (RFC 6455, section 7.4.1, and IANA's list).
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


class StreamError(Exception):
    """Why a stream ends before its time.

    Args:
        code: a key of `CLOSE_CODES`.
        message: one line that says what was wrong and what was expected.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def close_code(self) -> int:
        """Of the close frame."""
        return CLOSE_CODES[self.code]

    @property
    def reason(self) -> str:
        """Of the close frame: for clients that look at nothing else."""
        return f"{self.code}: {self.message}".encode("ascii", "replace")[:MOST_REASON].decode("ascii")


@dataclass(frozen=True)
class Start:
    """The first message of a stream; ``tasks`` None: all that the server offers."""

    format: str = "pcm16"
    tasks: Optional[Tuple[str, ...]] = None
    partials: bool = True
    reset_at_endpoint: bool = False
    token: Optional[str] = None


@dataclass(frozen=True)
class SetTasks:
    """Other tasks from here on."""

    tasks: Tuple[str, ...]


@dataclass(frozen=True)
class End:
    """No more audio: answer what is left, then close."""


Control = Union[Start, SetTasks, End]
FIELDS = {
    "start": {"version", "sample_rate", "format", "tasks", "partials", "reset_at_endpoint", "token"},
    "set_tasks": {"tasks"},
    "end": set(),
}


def read_control(text: str, known_tasks: Sequence[str]) -> Control:
    """Read a text message.

    Args:
        text: of the message.
        known_tasks: names of the tasks that the server offers.

    Raises:
        StreamError: ``bad_message``, naming the field.
    """
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
    if kind == "set_tasks":
        tasks = _read_tasks(message, known_tasks)
        if tasks is None:
            raise _bad("message 'set_tasks': field 'tasks' is missing")
        return SetTasks(tasks)
    return End()


def _read_start(message: Mapping[str, Any], known_tasks: Sequence[str]) -> Start:
    version, rate, name = message.get("version"), message.get("sample_rate"), message.get("format")
    if type(version) is not int or version != VERSION:
        raise _bad(f"field 'version': this server speaks version {VERSION}, found {shown(version)}")
    if type(rate) is not int or rate != SAMPLE_RATE:
        raise _bad(f"field 'sample_rate': expected {SAMPLE_RATE} (resample before sending), found {shown(rate)}")
    if not isinstance(name, str) or name not in FORMATS:
        raise _bad(f"field 'format': expected one of {', '.join(FORMATS)}, found {shown(name)}")
    for field in ("partials", "reset_at_endpoint"):
        if not isinstance(message.get(field, False), bool):
            raise _bad(f"field '{field}': expected true or false, found {shown(message[field])}")
    token = message.get("token")
    if token is not None and not isinstance(token, str):
        raise _bad("field 'token': expected a text")
    return Start(
        format=name,
        tasks=_read_tasks(message, known_tasks),
        partials=message.get("partials", True),
        reset_at_endpoint=message.get("reset_at_endpoint", False),
        token=token,
    )


def _read_tasks(message: Mapping[str, Any], known_tasks: Sequence[str]) -> Optional[Tuple[str, ...]]:
    tasks = message.get("tasks")
    if tasks is None:
        return None
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        raise _bad(f"field 'tasks': expected a list of names, found {shown(tasks)}")
    for name in tasks:
        if name not in known_tasks:
            raise _bad(f"field 'tasks': expected some of {', '.join(known_tasks)}, found {shown(name)}")
    # asr is active in any case; the order is the server's.
    return tuple(name for name in known_tasks if name in tasks or name == "asr")


def read_audio(data: bytes, format: str) -> np.ndarray:
    """Read a binary message.

    Args:
        data: samples of one channel, little-endian.
        format: a key of `FORMATS`.

    Returns:
        ``(S,)`` float32.

    Raises:
        StreamError: ``bad_audio``.
    """
    kind, width = FORMATS[format]
    if len(data) % width:
        raise StreamError("bad_audio", f"binary message of {len(data)} bytes: a {format} sample has {width}")
    samples = np.frombuffer(data, dtype=kind)
    if format == "pcm16":
        return samples.astype(np.float32) / 32768
    # min and max of anything with a NaN in it are NaN, and no comparison with NaN is true.
    if len(samples) and not (samples.min() >= -LOUDEST and samples.max() <= LOUDEST):
        raise StreamError("bad_audio", "float32 samples: expected numbers in -1 .. 1, found NaN or far larger ones")
    return samples.astype(np.float32)


def start_message(start: Start) -> str:
    """`Start` as text, for clients."""
    message: Dict[str, Any] = {
        "kind": "start",
        "version": VERSION,
        "sample_rate": SAMPLE_RATE,
        "format": start.format,
        "partials": start.partials,
        "reset_at_endpoint": start.reset_at_endpoint,
    }
    if start.tasks is not None:
        message["tasks"] = list(start.tasks)
    if start.token is not None:
        message["token"] = start.token
    return json.dumps(message)


def write_audio(samples: np.ndarray, format: str) -> bytes:
    """Samples ``(S,)`` in -1 .. 1 as a binary message; pcm16 is clipped."""
    if format == "pcm16":
        return np.clip(np.rint(np.asarray(samples) * 32768), -32768, 32767).astype("<i2").tobytes()
    return np.asarray(samples, dtype="<f4").tobytes()


def shown(value: Any) -> str:
    """What a client sent, for a message or a log: short, one line, ASCII (it may hold anything)."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bad(message: str) -> StreamError:
    return StreamError("bad_message", message)
