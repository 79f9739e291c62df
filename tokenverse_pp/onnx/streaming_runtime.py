"""An exported model that transcribes streams, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.streaming.events import FINAL, TOKEN, Event, StreamWords, Token, WordReader
from tokenverse_pp.onnx.folder import ENCODER, FIRST, SAMPLING_RATE
from tokenverse_pp.onnx.inputs import Audio, RunningLogMel, checked, read_audio
from tokenverse_pp.onnx.runtime import Exported, default_options, open_graph
from tokenverse_pp.onnx.search import Search
from tokenverse_pp.tasks.result import Transcript
from tokenverse_pp.tasks.transcript import Word


class RuntimeStream:
    """One stream of a runtime: a handle to give back to it."""

    def __init__(self, kept: Dict[str, np.ndarray], active: np.ndarray, search: Search, words: StreamWords):
        self.kept, self.active, self.search, self.words = kept, active, search, words
        self.log_mel: Optional[RunningLogMel] = None
        self.waiting = np.zeros(0, dtype=np.float32)
        self.heard, self.chunks, self.frames = 0, 0, 0  # samples pushed, chunks and frames done
        self.closed = False


class StreamingRuntime(Exported):
    """An export for streams (``--streaming``), ready to decode; see `Exported` for arguments and attributes.

    Events are those of `StreamingTranscriber`, with one difference: a stream's last chunk is filled up with silence,
    while torch hears that it ends there.
    """

    def __init__(self, folder: Union[str, Path], threads: int = 1, check_files: bool = True):
        super().__init__(folder, threads, check_files)
        about = self.description.streaming
        if about is None:
            raise UserError(f"{folder}: exported for whole utterances: streams need an export with --streaming")
        self.about: Dict[str, Any] = about
        self.chunk_samples: int = about["chunk_samples"]
        self.graphs = [open_graph(self.folder / name, threads) for name in (FIRST, ENCODER)]
        pieces = self.tokenizer.pieces(range(self.tokenizer.vocab_size))
        self.reader = WordReader(pieces, self.frame_shift, self.calibration)

    def open(self, tasks: Optional[Sequence[str]] = None, options: Optional[SearchOptions] = None) -> RuntimeStream:
        """A new stream.

        Args:
            tasks: names of the tasks to decode, None for all that the model knows.
            options: how to search; greedy by default, a language token first where ``lid`` is decoded.

        Raises:
            UserError: for a task or option that the model does not have.
        """
        active = self.tasks.names if tasks is None else tuple(tasks)
        options = options or SearchOptions("greedy")
        kept = {item["name"]: np.zeros((1, *item["shape"]), dtype=item["type"]) for item in self.about["states"]}
        search = self.start_search(active, options)
        stream = RuntimeStream(kept, self.mask(active)[None], search, StreamWords(self.reader))
        if self.log_mel is not None:
            stream.log_mel = RunningLogMel(self.log_mel)
        return stream

    def push(self, stream: RuntimeStream, audio: np.ndarray) -> List[Event]:
        """Hear more of a stream: samples (S,) of floats at 16 kHz, any number -> what can be said now.

        Raises:
            UserError: for a stream that is closed, and for what is no audio; the stream is as it was then.
        """
        if stream.closed:
            raise UserError("the stream is closed")
        samples = checked(np.asarray(audio), "audio")
        stream.heard += len(samples)
        stream.waiting = np.concatenate([stream.waiting, samples])
        events: List[Event] = []
        while len(stream.waiting) >= self.chunk_samples:
            chunk, stream.waiting = np.split(stream.waiting, [self.chunk_samples])
            stream.search.advance(self.encode_chunk(stream, chunk))
            events.extend(stream.words.hear(_tokens(stream.search.settle()), _open(stream.search), self._time(stream)))
        return events

    def close(self, stream: RuntimeStream) -> List[Event]:
        """Hear what is left, with silence behind it, and end the stream (raises UserError if it is closed already)."""
        if stream.closed:
            raise UserError("the stream is closed")
        stream.closed = True
        wanted = self.frames_of(stream.heard)
        while stream.frames < wanted:
            chunk = np.zeros(self.chunk_samples, dtype=np.float32)
            chunk[: len(stream.waiting)] = stream.waiting
            stream.waiting = stream.waiting[:0]
            before = stream.frames
            stream.search.advance(self.encode_chunk(stream, chunk)[: wanted - before])
        best = stream.search.best()[0]
        return stream.words.end(_tokens(best), stream.heard / SAMPLING_RATE)

    def encode_chunk(self, stream: RuntimeStream, chunk: np.ndarray) -> np.ndarray:
        """A whole chunk (S,) of a stream -> its projected frames (T, J)."""
        inputs = chunk if stream.log_mel is None else stream.log_mel.push(chunk)
        graph = self.graphs[0 if stream.chunks == 0 else 1]
        given = {"inputs": inputs[None], "active": stream.active, **stream.kept}
        names = {item.name for item in graph.get_inputs()}
        frames, *kept = graph.run(None, {name: value for name, value in given.items() if name in names})
        stream.kept = dict(zip(stream.kept, kept))
        stream.chunks += 1
        stream.frames += frames.shape[1]
        return frames[0]

    def frames_of(self, samples: int) -> int:
        """How many frames so many samples have."""
        for kernel, stride in self.about["framing"]:
            samples = max(0, (samples - kernel) // stride + 1)
        return samples

    def transcribe(
        self,
        audio: Audio,
        tasks: Optional[Sequence[str]] = None,
        language: Optional[str] = None,
        options: Optional[SearchOptions] = None,
        name: Optional[str] = None,
    ) -> Transcript:
        """Transcribe one recording of any length, chunk by chunk; arguments as `Runtime.transcribe` has them."""
        active = self.tasks.names if tasks is None else tuple(tasks)
        samples = read_audio(audio)
        stream = self.open(active, default_options(options, language))
        words: List[Word] = []
        for event in [*self.push(stream, samples), *self.close(stream)]:
            if event.kind in (FINAL, TOKEN):
                words.extend(event.words)
        name = name or (Path(audio).stem if isinstance(audio, (str, Path)) else "audio")
        return self.transcript(words, active, len(samples) / SAMPLING_RATE, name)

    def _time(self, stream: RuntimeStream) -> float:
        return stream.chunks * self.chunk_samples / SAMPLING_RATE


def _tokens(hypothesis: Hypothesis) -> List[Token]:
    return [Token(*item) for item in zip(hypothesis.tokens, hypothesis.frames, hypothesis.log_probs)]


def _open(search: Search) -> List[Token]:
    return _tokens(search.best()[0])
