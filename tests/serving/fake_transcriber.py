"""A transcriber and a recognizer without a model, whose words say what they heard: for tests of the server's logic."""

import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import TranscribeOptions
from tokenverse_pp.decoding.recognizer import RecognizedBatch
from tokenverse_pp.decoding.streaming.events import Event
from tokenverse_pp.serving.access import Access
from tokenverse_pp.serving.protocol import Limits
from tokenverse_pp.serving.server import StreamingServer
from tokenverse_pp.serving.uploads import UploadModel
from tokenverse_pp.serving.worker import Engine
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.result import transcript_of_words
from tokenverse_pp.tasks.transcript import Word

RATE = 16000
CHUNK = 1600
TASKS = ("asr", "scd", "endp", "ner", "lid")
REFUSED, BROKEN = 666, 667  # samples that it refuses, and that it breaks on


class FakeTranscriber:
    """A word for each chunk: ``v5`` if each of its samples is 5 (as a 16-bit number), ``mixed`` if they differ.

    A chunk's word is final with the next one, and partial until then. Where the words change it says ``[SCD]``, if
    ``scd`` is active. ``gate``: the model waits until it is set; ``batches``: the number of streams of each batch.
    """

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.batches, self.threads, self.searches, self.words_a_chunk = [], set(), [], 1

    def open(self, tasks=None, name=None, search=None, pauses=None, languages=None):
        self.threads.add(threading.current_thread().name)
        self.searches.append(search)
        if search is not None and "xx" in (search.languages or ()):
            raise UserError(f"{name}: the model does not write [XX]")
        tasks = TASKS if tasks is None else tuple(tasks)
        return SimpleNamespace(tasks=tasks, buffer=np.zeros(0, np.float32), heard=0, partial="", said=[], closed=False)

    def push_many(self, pieces):
        self.gate.wait()
        self.threads.add(threading.current_thread().name)
        self.batches.append(len(pieces))
        heard = [np.unique(np.rint(np.asarray(audio) * 32768).astype(int)) for _, audio in pieces]
        if any(REFUSED in values for values in heard):
            raise UserError("stream x:\n refused audio")
        if any(BROKEN in values for values in heard):
            raise RuntimeError("the model broke")
        return [self._hear(stream, audio) for stream, audio in pieces]

    def _hear(self, stream, audio):
        assert audio.dtype == np.float32 and audio.ndim == 1 and not stream.closed
        events = []
        stream.buffer = np.concatenate([stream.buffer, audio])
        while len(stream.buffer) >= CHUNK:
            chunk, stream.buffer = stream.buffer[:CHUNK], stream.buffer[CHUNK:]
            events += self._chunk(stream, chunk)
        return events

    def _chunk(self, stream, chunk):
        events = self._settle(stream)
        stream.heard += len(chunk)
        values = np.unique(np.rint(chunk * 32768).astype(int))
        stream.partial = f"v{values[0]}" if len(values) == 1 else "mixed"
        return [*events, self._event(stream, "partial", stream.partial)]

    def _settle(self, stream):
        """The partial word becomes final."""
        if not stream.partial:
            return []
        events = []
        if "scd" in stream.tasks and stream.said and stream.said[-1] != stream.partial:
            events.append(self._event(stream, "token", "[SCD]"))
        text = " ".join([stream.partial] * self.words_a_chunk)
        stream.said += [stream.partial]
        stream.partial = ""
        return [*events, self._event(stream, "final", text)]

    def _event(self, stream, kind, text):
        time = stream.heard / RATE
        return Event(kind, time, text, tuple(Word(word, time, time + 0.1, 1.0) for word in text.split()))

    def set_tasks(self, stream, tasks):
        stream.tasks = tuple(tasks)

    def close(self, stream):
        self.gate.wait()
        stream.closed = True
        events = self._chunk(stream, stream.buffer) if len(stream.buffer) else []
        events += self._settle(stream)
        return [*events, Event("end", stream.heard / RATE, " ".join(stream.said))]


class FakeRecognizer:
    """A word for each tenth of a second, as `FakeTranscriber` has them; one of a long recording at a time.

    ``gate``: the model waits until it is set; ``batches``: names of the recordings of each batch; ``written``: words
    and task tokens that it writes in place of a word; ``settled``: how often a text so far was asked for.
    """

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.batches, self.asked, self.written, self.settled = [], [], {}, 0
        self.on_windows, self.on_settled = lambda cut, done, total: None, None

    def of(self, options):
        self.asked.append(options)
        self.options = options
        if "xx" in (options.search.languages or ()):
            raise UserError("the model does not write [XX]")
        if "zz" in (options.search.languages or ()):
            raise RuntimeError("out of memory")
        return self

    def frames(self, cut):
        return round(100 * cut.duration)

    def __call__(self, group):
        self.batches.append(len(group))
        done = RecognizedBatch()
        for cut in group:
            audio = np.rint(cut.load_audio()[0] * 32768).astype(int)
            chunks = [np.unique(audio[i : i + CHUNK]) for i in range(0, len(audio), CHUNK)]
            said = [f"v{values[0]}" if len(values) == 1 else "mixed" for values in chunks]
            words = [
                Word(text, i / 10, i / 10 + 0.1, 0.9)
                for i, one in enumerate(said)
                for text in self.written.get(one, one).split()
            ]
            if cut.duration > self.options.window:
                for i in range(1, len(words)):
                    self.on_windows(cut, i, len(words))
                    if self.on_settled is not None:
                        self.settled += 1
                        so_far = transcript_of_words(words[:i], self.options.tasks, cut.duration, cut.id)
                        open_words = int("punct" in self.options.tasks)
                        self.on_settled(cut, so_far.written_text(0, max(len(so_far.words) - open_words, 0)))
            self.gate.wait()
            if f"v{REFUSED}" in said:
                done.refuse(cut, UserError("refused audio"))
            elif f"v{BROKEN}" in said:
                raise RuntimeError("the model broke")
            else:
                done.transcripts.append(transcript_of_words(words, self.options.tasks, cut.duration, cut.id))
        return done


def fake_model(known=TASKS, **options):
    """A model for uploads, with the `FakeRecognizer` that it is; its name is ``fake``."""
    recognizer = FakeRecognizer()
    return UploadModel("fake", build_tasks(known), TranscribeOptions(**options), recognizer.of), recognizer


def fake_engine():
    """An engine of two fakes."""
    return Engine({reset: FakeTranscriber() for reset in (False, True)}, TASKS, CHUNK)


@asynccontextmanager
async def serving(engine=None, access=None, model=None, **limits):
    """A server on a free port of this machine; ``url`` is that of the streams, ``base`` that of OpenAI's API."""
    options = {"closing_seconds": 2.0, **limits}
    server = StreamingServer(engine or fake_engine(), Limits(**options), access or Access(), model)
    await server.start("127.0.0.1")
    server.base = f"http://127.0.0.1:{server.port}/v1"
    server.url = f"ws://127.0.0.1:{server.port}/stream"
    try:
        yield server
    finally:
        for transcriber in server.engine.transcribers.values():
            if isinstance(transcriber, FakeTranscriber):
                transcriber.gate.set()
        if model is not None and isinstance(getattr(model.recognizer_for, "__self__", None), FakeRecognizer):
            model.recognizer_for.__self__.gate.set()
        await server.stop()


def tone(value, seconds):
    """Samples that are all ``value`` as 16-bit numbers."""
    return np.full(int(seconds * RATE), value / 32768, np.float32)
