"""Uploaded files: a bounded queue, a thread that opens them and one that decodes them, beside the streams' thread."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Deque, Iterator, List, Mapping, Optional, Sequence, Tuple

from tokenverse_pp.api.transcribing import decode_options, transcribe_in_order
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, Inactive, TranscribeOptions
from tokenverse_pp.data.audio.inputs import Heard, Refused, open_audio
from tokenverse_pp.decoding.context_graph import read_hotwords
from tokenverse_pp.decoding.inactive import chosen_by_language, inactive_of
from tokenverse_pp.decoding.recognizer import Recognizer
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.serving.protocol import Limits
from tokenverse_pp.tasks.base import TaskSet

log = logging.getLogger(__name__)
MOST_RECOGNIZERS = 8  # cached by their options: constraints, hotwords and a language model take time to build
LONGEST_WAIT = 60  # most seconds that a refused client is told to wait


class UploadError(Exception):
    """Why an upload has no transcript.

    Args:
        kind: ``audio`` (it cannot be decoded), ``options`` (the model cannot use them), ``busy``, ``closing``,
            ``internal``.
        message: one line.
        retry_after: seconds after which the client may try again.
    """

    def __init__(self, kind: str, message: str, retry_after: Optional[int] = None):
        super().__init__(message)
        self.kind, self.message, self.retry_after = kind, message, retry_after


class Abandoned(Exception):
    """Raised during a long recording when no client waits for it any more."""


@dataclass(frozen=True)
class UploadModel:
    """A model that transcribes whole recordings.

    Args:
        name: name by which clients request it.
        options: how recordings are transcribed unless the request says otherwise.
        recognizer_for: returns the recognizer for decoding options (raises UserError).
        piece_ids: vocabulary id of each piece.
        inactive: treatment of tasks that are not requested (`tokenverse_pp.decoding.inactive`).
    """

    name: str
    known: TaskSet
    options: TranscribeOptions
    recognizer_for: Callable[[DecodeOptions], Any]
    piece_ids: Mapping[str, int] = field(default_factory=dict)
    inactive: Inactive = "suppress"

    def options_for(self, tasks: Tuple[str, ...]) -> TranscribeOptions:
        """The options of a request for these tasks; without ``lid``, options that need it are dropped."""
        o = replace(self.options, tasks=tasks)
        if "lid" in tasks:
            return o
        if chosen_by_language(o.lm, self.inactive, o.language):
            o = replace(o, lm=None, search=o.search and o.search.without_lm())
        return replace(o, language=None)

    def decoding(self, options: TranscribeOptions) -> DecodeOptions:
        """Convert options for a recognizer (raises UserError)."""
        return decode_options(options, self.known)


def build_upload_model(loaded: ModelBundle, name: str, options: TranscribeOptions) -> UploadModel:
    """Return the model for uploads, which caches the recognizers of the last `MOST_RECOGNIZERS` options.

    Raises:
        UserError: for options that the model cannot use.
    """
    kept: OrderedDict[DecodeOptions, Recognizer] = OrderedDict()
    if isinstance(options.hotwords, (str, Path)):  # read once, as for streams: not again for each request
        options = replace(options, hotwords=read_hotwords(options.hotwords))

    def recognizer_for(decoding: DecodeOptions) -> Recognizer:
        found = kept.pop(decoding, None) or Recognizer(loaded, decoding)
        kept[decoding] = found
        while len(kept) > MOST_RECOGNIZERS:
            kept.popitem(last=False)
        return found

    ids = {piece: number for number, piece in enumerate(loaded.tokenizer.pieces())}
    model = UploadModel(name, loaded.tasks, options, recognizer_for, ids, inactive_of(loaded, options.inactive))
    recognizer_for(model.decoding(options))
    return model


@dataclass(eq=False)
class UploadJob:
    """A recording that waits for the model.

    Args:
        is_wanted: whether somebody still waits for it; called in the model's thread.
        on_text: called on the event loop with the text so far (`Recognizer.on_settled`).
        done: future of its transcript, or of an `UploadError`.
    """

    heard: Heard
    options: DecodeOptions
    is_wanted: Callable[[], bool]
    on_text: Optional[Callable[[str], None]]
    done: asyncio.Future

    @property
    def seconds(self) -> float:
        """Duration of its audio."""
        return float(self.heard.cut.duration)

    @property
    def is_long(self) -> bool:
        """Whether it is decoded in windows, outside of batches."""
        return self.seconds > self.options.window


class Uploads:
    """All uploads of a server. Its methods are called on the event loop and do not wait for the model.

    Uploads are decoded in a separate thread, so that streams do not wait for them: torch runs both at once, on a
    single core at half the speed each. Short recordings with the same options are decoded as a batch.
    """

    def __init__(self, model: Optional[UploadModel], limits: Limits):
        self.model, self.limits = model, limits  # no model: nothing can be uploaded
        self.entered = 0  # uploads that are received, wait or are decoded
        self._seconds_each = 1.0  # running mean of the seconds that an upload occupies the model
        self._changed = threading.Condition()
        self._jobs: Deque[UploadJob] = deque()
        self._stopping = False
        self._thread: Optional[threading.Thread] = None
        self._opening = ThreadPoolExecutor(1, "opening")

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        if self.model is not None:
            self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
            self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs, if there is one."""
        return self._thread is None or self._thread.is_alive()

    async def stop(self) -> None:
        """Fail waiting uploads, abandon those being decoded, and end the threads."""
        with self._changed:
            self._stopping = True
            waiting, self._jobs = list(self._jobs), deque()
            self._changed.notify()
        for job in waiting:
            self._finish(job, _closing())
        if self._thread is not None:
            await self._loop.run_in_executor(None, self._thread.join)
        await self._loop.run_in_executor(None, self._opening.shutdown)

    @property
    def waiting(self) -> int:
        """Uploads that wait for the model."""
        return len(self._jobs)

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Count an upload from before its body is read until its end (raises UploadError at the limit)."""
        if self._stopping:
            raise _closing()
        if self.entered >= self.limits.uploads:
            wait = max(1, min(LONGEST_WAIT, math.ceil(self.entered * self._seconds_each)))
            raise UploadError("busy", f"{self.entered} files are being transcribed, as many as may be; try later", wait)
        self.entered += 1
        try:
            yield
        finally:
            self.entered -= 1

    async def submit(
        self,
        data: bytes,
        name: str,
        options: DecodeOptions,
        is_wanted: Callable[[], bool],
        on_text: Optional[Callable[[str], None]] = None,
    ) -> UploadJob:
        """Open a file and put it in the queue; ``name`` is its name in messages (raises UploadError)."""
        try:
            heard = await self._loop.run_in_executor(self._opening, open_audio, data, None, name)
        except UserError as error:
            raise UploadError("audio", str(error)) from None
        except RuntimeError:  # the pool is shut down
            if self._stopping:
                raise _closing() from None
            raise
        if heard.cut.duration > self.limits.stream_seconds:
            said = f"{name}: {heard.cut.duration:.0f} s of audio, at most {self.limits.stream_seconds:g} s are taken"
            raise UploadError("audio", said)
        job = UploadJob(heard, options, is_wanted, on_text, self._loop.create_future())
        with self._changed:
            if self._stopping:
                raise _closing()
            self._jobs.append(job)
            self._changed.notify()
        return job

    def discard(self, job: UploadJob) -> None:
        """Remove a job from the queue, if it still waits: its file is freed, and nothing is decoded for it."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                batch = self._take()
            began = time.monotonic()
            self._decode(batch)
            each = (time.monotonic() - began) / len(batch)
            del batch  # frees the audio while this waits for the next upload
            self._seconds_each += 0.2 * (each - self._seconds_each)

    def _take(self) -> List[UploadJob]:
        """Take the next job; if it is short, also other waiting short jobs with the same options, up to a batch."""
        first = self._jobs.popleft()
        batch, seconds = [first], first.seconds
        if first.is_long:
            return batch
        for job in list(self._jobs):
            if job.options == first.options and not job.is_long:
                seconds += job.seconds
                if seconds > first.options.max_duration:
                    break
                batch.append(job)
                self._jobs.remove(job)
        return batch

    def _decode(self, batch: Sequence[UploadJob]) -> None:
        """Decode jobs with the same options, and finish them all."""
        assert self.model is not None
        left = deque(job for job in batch if self._is_wanted(job))
        if not left:
            return

        def check(label: str, done: int, total: int) -> None:
            if not self._is_wanted(left[0]):
                raise Abandoned

        on_text = left[0].on_text  # of a long recording, which has no others beside it
        settled = None if on_text is None else lambda label, so_far: self._call(on_text, so_far)
        try:
            recognizer = self.model.recognizer_for(left[0].options)
        except Exception as error:  # for example no memory for its tables: the thread has to go on
            failure = UploadError("options", str(error)) if isinstance(error, UserError) else _failed(error)
            for job in left:
                self._finish(job, failure)
            return
        try:
            for result in transcribe_in_order(recognizer, [job.heard for job in left], check, settled):
                self._finish(left.popleft(), result)
        except Abandoned:
            self._finish(left.popleft(), _closing())
        except Exception as error:
            if len(left) > 1:  # one of them failed, or all together were too much
                for job in left:
                    self._decode([job])
                return
            self._finish(left[0], _failed(error))

    def _is_wanted(self, job: UploadJob) -> bool:
        """Whether to continue with a job; finishes a job that nobody waits for."""
        if not self._stopping and job.is_wanted():
            return True
        self._finish(job, _closing())
        return False

    def _finish(self, job: UploadJob, result: Any) -> None:
        """Deliver a transcript, a refusal or an error on the event loop."""
        if isinstance(result, Refused):
            result = UploadError("audio", result.reason)
        self._call(_set, job.done, result)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed
            pass


def _set(done: asyncio.Future, result: Any) -> None:
    if done.done():
        return
    if isinstance(result, Exception):
        done.set_exception(result)
        done.exception()  # no warning if nobody waits for it any more
    else:
        done.set_result(result)


def _failed(error: Exception) -> UploadError:
    log.error("the model failed on an upload", exc_info=error)
    return UploadError("internal", "the model failed; the server's log says more")


def _closing() -> UploadError:
    return UploadError("closing", "the server is shutting down", retry_after=LONGEST_WAIT // 6)
