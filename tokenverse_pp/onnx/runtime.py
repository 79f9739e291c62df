"""Decoding with an exported model, without torch: `Runtime` for whole recordings, `StreamingRuntime` for streams."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple, Union

import numpy as np

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError, needing
from tokenverse_pp.base.options import Inactive, Names, SearchOptions, check_windows, tasks_named
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.decoding.constraints import Constraints, constraints_for
from tokenverse_pp.decoding.hypothesis import NOTHING, Hypothesis, read_calibration
from tokenverse_pp.decoding.inactive import Selection, select, stripped
from tokenverse_pp.decoding.long_form import Merger, window_times
from tokenverse_pp.decoding.streaming.events import FINAL, TOKEN, Event, StreamWords, Token, WordReader
from tokenverse_pp.onnx.folder import (
    ENCODER,
    FIRST,
    JOINER,
    MEL_FILTERS,
    PREDICTOR,
    TOKENIZER,
    Description,
    read_folder,
)
from tokenverse_pp.onnx.inputs import Audio, NumpyLogMel, RunningLogMel, checked, read_audio
from tokenverse_pp.onnx.search import AllTokens, Contexts, LastTokens, Search, check_options
from tokenverse_pp.tasks import TaskSet, build_tasks
from tokenverse_pp.tasks.result import Transcript, words_of_tokens
from tokenverse_pp.tasks.transcript import Word

log = logging.getLogger(__name__)


def open_graph(path: Path, threads: int) -> Any:
    """Open a graph as an ``onnxruntime.InferenceSession`` (raises UserError if onnxruntime is missing or fails)."""
    with needing("tokenverse_pp.runtime needs onnxruntime", "onnx"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a graph that onnxruntime can run: {reason}") from None


def default_options(options: Optional[SearchOptions], language: Optional[str]) -> SearchOptions:
    """Return the options, or the defaults, restricted to the language if it is known."""
    options = options or SearchOptions()
    return options if language is None else replace(options, languages=(language,), force_language=True)


class Exported:
    """A folder that `tokenverse-pp export` wrote: vocabulary, tasks, predictor and joiner.

    Args:
        check_files: whether to verify the checksums of the files.

    Attributes:
        description: contents of ``export.json``.
        tasks: the model's tasks.
        tokenizer: the model's vocabulary.
        frame_shift: seconds per encoder frame.
        inactive: treatment of tasks that are not requested: ``suppress`` or ``strip``
            (`tokenverse_pp.decoding.inactive`). By default the one of the original model; may be set.

    Raises:
        UserError: if the folder is not an export, is damaged or of another version, or onnxruntime is missing.
    """

    def __init__(self, folder: Union[str, Path], threads: int = 1, check_files: bool = True):
        self.folder, self.threads = Path(folder), threads
        self.description: Description = read_folder(self.folder, check_files)
        d = self.description
        self.tasks: TaskSet = build_tasks(d.tasks, d.task_options)
        self.tokenizer = Tokenizer.load(self.folder / TOKENIZER)
        self.tokenizer.check(self.tasks)
        self.pieces = self.tokenizer.pieces()
        self.frame_shift = d.frame_shift
        self.calibration = read_calibration(self.folder)
        self.inactive: Inactive = d.vectors.get("inactive", "suppress")  # older exports have no entry
        self.contexts = self._contexts()
        self._joiner = open_graph(self.folder / JOINER, threads)
        self.log_mel: Optional[NumpyLogMel] = None
        if d.mel is not None:
            try:
                filters = np.load(self.folder / MEL_FILTERS, allow_pickle=False)
                self.log_mel = NumpyLogMel(filters, d.mel["n_fft"], d.mel["hop"])
            except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
                raise UserError(f"{self.folder / MEL_FILTERS}: damaged: {' '.join(str(error).split())}") from None
        self._constraints: Dict[Tuple[object, ...], Constraints] = {}

    def _contexts(self) -> Contexts:
        """The predictor's graph, for searches."""
        graph, d = open_graph(self.folder / PREDICTOR, self.threads), self.description
        if d.lstm:
            names = ("token", "hidden", "cell")
            layers, dim = d.lstm
            return AllTokens(lambda *given: graph.run(None, dict(zip(names, given))), layers, dim, d.blank)
        return LastTokens(lambda contexts: graph.run(None, {"context": contexts})[0], d.context_size, d.blank)

    def join(self, frames: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Frames (M, J) and states (M, J) -> logits (M, V)."""
        return self._joiner.run(None, {"frame": frames, "state": states})[0]

    def active(self, tasks: Optional[Names]) -> Tuple[str, ...]:
        """The names of the tasks to decode, None for all (raises UserError if none is named)."""
        return tasks_named(tasks, "tasks") or self.tasks.names

    def selection(self, tasks: Sequence[str], options: SearchOptions) -> Selection:
        """The tasks to decode for the requested ones, and the tokens to strip (raises UserError like `constraints`)."""
        return select(self.tasks, tasks, self.tokenizer, self.inactive, options.languages)

    def constraints(self, tasks: Sequence[str], options: SearchOptions) -> Constraints:
        """The search constraints for these tasks (raises UserError for unknown tasks and languages)."""
        key = (tuple(tasks), options.languages, options.force_language)
        if key not in self._constraints:
            self._constraints[key] = constraints_for(
                self.tasks, tasks, self.tokenizer, options.languages, options.force_language
            )
        return self._constraints[key]

    def start_search(self, tasks: Sequence[str], options: SearchOptions) -> Search:
        """Return a new search for one utterance (raises UserError for unknown tasks, languages and options)."""
        constraints = self.constraints(tasks, options)
        d, join = self.description, self.join
        if options.token_bias:
            bias = self.tokenizer.bias_of(options)

            def join(frames: np.ndarray, states: np.ndarray) -> np.ndarray:
                return self.join(frames, states) + bias

        return Search(self.contexts, join, constraints, options, d.blank, d.symbols_per_frame)

    def mask(self, tasks: Sequence[str]) -> np.ndarray:
        """The encoder's input ``active`` (K + 1,) for these tasks (raises UserError for untrained combinations)."""
        mask = self.tasks.mask(tasks)
        trained = self.description.vectors.get("trained")
        if trained and [int(active) for active in mask] not in trained:
            raise UserError("vectors.strategy=combination: this combination of tasks was never active in training")
        return np.array(mask, dtype=np.float32)

    def transcript(self, words: Sequence[Word], tasks: Sequence[str], duration: float, name: str) -> Transcript:
        """Convert words and task tokens of a recording of ``duration`` seconds to a transcript."""
        rounded = [word.rounded() for word in words]
        return self.tasks.subset(tasks).reader.read(rounded, duration, name=name)


class Runtime(Exported):
    """An export for whole recordings; see `Exported` for arguments and attributes."""

    def __init__(self, folder: Union[str, Path], threads: int = 1, check_files: bool = True):
        super().__init__(folder, threads, check_files)
        if self.description.streaming is not None:
            raise UserError(f"{folder}: exported for streaming: open it by tokenverse_pp.runtime.StreamingRuntime")
        self.encoder = open_graph(self.folder / ENCODER, threads)

    def transcribe(
        self,
        audio: Audio,
        tasks: Optional[Names] = None,
        language: Optional[str] = None,
        options: Optional[SearchOptions] = None,
        name: Optional[str] = None,
        window: float = 28.0,
        overlap: float = 6.0,
    ) -> Transcript:
        """Transcribe one recording of any length.

        Args:
            audio: samples (S,) of floats at 16 kHz in [-1, 1], a file, or its bytes. Audio shorter than a frame gives
                an empty transcript.
            tasks: names of the tasks to decode, None for all of the model; no tokens of others are written.
            language: code of the spoken language, if known; needs the task ``lid``.
            options: search options; by default beam search, with a language token first if ``lid`` is decoded.
            name: name of the recording in the transcript; default: the file's name without extension.
            window: longer audio (seconds) is decoded in windows of this length, which are merged as in
                `tokenverse_pp.decoding.long_form`.
            overlap: seconds that two windows have in common.

        Raises:
            UserError: for unknown tasks, languages and options, and for audio that cannot be read.
        """
        check_windows(window, overlap)
        active = self.active(tasks)
        samples = read_audio(audio)
        name = name or _name(audio)
        options = default_options(options, language)
        self.start_search(self.selection(active, options).decoded, options)
        if len(samples) < self.description.min_samples:
            seconds = len(samples) / SAMPLE_RATE
            log.warning("warning: %s: %.4f s are less than a frame: nothing to hear", name, seconds)
            return self.transcript([], active, seconds, name)
        best = self.recognize(samples, active, options, window, overlap)
        pieces = self.tokenizer.pieces(best.tokens)
        words = words_of_tokens(pieces, best.frames, best.log_probs, self.frame_shift, self.calibration)
        return self.transcript(words, active, len(samples) / SAMPLE_RATE, name)

    def recognize(
        self,
        samples: np.ndarray,
        tasks: Sequence[str],
        options: SearchOptions,
        window: float = 28.0,
        overlap: float = 6.0,
    ) -> Hypothesis:
        """The best hypothesis for audio (S,) of any length, decoded in windows as by `Recognizer.recognize_long`."""
        duration = len(samples) / SAMPLE_RATE
        if duration <= window:
            short = len(samples) < self.description.min_samples
            return NOTHING if short else self.search([samples], tasks, options)[0][0]
        shift = self.frame_shift
        decoded, removed = self.selection(tasks, options)
        merger = Merger(self.pieces, self.tasks.subset(decoded), shift, self.constraints(decoded, options))
        for frame, offset, seconds in window_times(duration, window, overlap, shift):
            first = round(offset * SAMPLE_RATE)
            part = samples[first : first + round(seconds * SAMPLE_RATE)]
            best = self.recognize(part, decoded, options, math.inf)
            merger.add(frame, frame + round(seconds / shift), best)
        tokens, frames, log_probs = merger.result()
        log_prob = sum(log_probs)
        score = options.normalised(log_prob, len(tokens) + self.description.context_size)
        return stripped([Hypothesis(tokens, frames, log_probs, log_prob, score)], removed)[0]

    def search(
        self,
        inputs: Sequence[np.ndarray],
        tasks: Optional[Names] = None,
        options: Optional[SearchOptions] = None,
    ) -> List[List[Hypothesis]]:
        """`decoding.recognizer.search` for the exported model: return n-best hypotheses of each utterance.

        Args:
            inputs: samples (S,) of each utterance, float32 at 16 kHz, encoded as one batch.
            tasks: names of the tasks to decode, None for all.
            options: search options, with method ``greedy`` or ``beam``.

        Raises:
            UserError: see `transcribe`.
        """
        options = options or SearchOptions()
        check_options(options)
        active = self.active(tasks)
        decoded, removed = self.selection(active, options)
        self.constraints(decoded, options)  # raises before the encoder runs
        found = []
        for frames in self.encode(inputs, decoded):
            search = self.start_search(decoded, options)
            search.advance(frames)
            found.append(stripped(search.best(), removed))
        return found

    def encode(self, inputs: Sequence[np.ndarray], tasks: Sequence[str]) -> List[np.ndarray]:
        """Encode the samples (S,) of utterances, as one batch, to frames (T, J) that are projected for the joiner."""
        if not inputs:
            return []
        d = self.description
        for number, item in enumerate(inputs):
            if len(item) < d.min_samples:
                raise UserError(f"input {number}: too short for one frame: it holds {len(item)} samples")
            if d.max_samples is not None and len(item) > d.max_samples:
                longest, seconds = d.max_samples / SAMPLE_RATE, len(item) / SAMPLE_RATE
                raise UserError(f"input {number}: has {seconds:.2f} s: this model takes {longest:g} s at most")
        items = inputs if self.log_mel is None else [self.log_mel(item) for item in inputs]
        padded = np.zeros((len(items), *items[0].shape[:-1], max(item.shape[-1] for item in items)), dtype=np.float32)
        for row, item in zip(padded, items):
            row[..., : item.shape[-1]] = item
        given = {
            "inputs": padded,
            "lens": np.array([len(item) for item in inputs], dtype=np.int64),
            "active": np.repeat(self.mask(tasks)[None], len(inputs), axis=0),
        }
        frames, frame_lens = _run(self.encoder, given)
        if not np.isfinite(frames).all():
            raise UserError("the encoder gave NaN or infinity; is the audio valid?")
        return [row[:length] for row, length in zip(frames, frame_lens.tolist())]


@dataclass(eq=False)
class RuntimeStream:
    """One stream of a `StreamingRuntime`: a handle to pass back to it."""

    states: Dict[str, np.ndarray]
    active: np.ndarray
    search: Search
    words: StreamWords
    removed: FrozenSet[int]  # tokens that are stripped from its events
    log_mel: Optional[RunningLogMel]
    waiting: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # samples of the next chunk
    heard: int = 0  # samples pushed
    chunks: int = 0  # encoded, as are frames
    frames: int = 0
    closed: bool = False

    def tokens(self, hypothesis: Hypothesis) -> List[Token]:
        """The tokens of a hypothesis that its events contain."""
        columns = zip(hypothesis.tokens, hypothesis.frames, hypothesis.log_probs)
        return [Token(*item) for item in columns if item[0] not in self.removed]


class StreamingRuntime(Exported):
    """An export for streams (``--streaming``); see `Exported` for arguments and attributes.

    Events are those of `StreamingTranscriber`, except that the last chunk of a stream is padded with silence here, and
    not in torch.
    """

    def __init__(self, folder: Union[str, Path], threads: int = 1, check_files: bool = True):
        super().__init__(folder, threads, check_files)
        about = self.description.streaming
        if about is None:
            raise UserError(f"{folder}: exported for whole utterances: streams need an export with --streaming")
        self.about: Dict[str, Any] = about
        self.chunk_samples: int = about["chunk_samples"]
        self.graphs = [open_graph(self.folder / name, threads) for name in (FIRST, ENCODER)]
        self.reader = WordReader(self.pieces, self.frame_shift, self.calibration)

    def open(self, tasks: Optional[Names] = None, options: Optional[SearchOptions] = None) -> RuntimeStream:
        """Start a stream.

        Args:
            tasks: names of the tasks to decode, None for all of the model.
            options: search options; by default greedy search, with a language token first if ``lid`` is decoded.

        Raises:
            UserError: for unknown tasks and options.
        """
        active = self.active(tasks)
        states = {item["name"]: np.zeros((1, *item["shape"]), dtype=item["type"]) for item in self.about["states"]}
        options = options or SearchOptions("greedy")
        decoded, removed = self.selection(active, options)
        search = self.start_search(decoded, options)
        log_mel = RunningLogMel(self.log_mel) if self.log_mel is not None else None
        return RuntimeStream(states, self.mask(decoded)[None], search, StreamWords(self.reader), removed, log_mel)

    def push(self, stream: RuntimeStream, audio: np.ndarray) -> List[Event]:
        """Add any number of samples (S,), floats at 16 kHz, to a stream; return its new events.

        Raises:
            UserError: if the stream is closed or the audio is invalid, which leaves the stream unchanged.
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
            settled, best = stream.tokens(stream.search.settle()), stream.tokens(stream.search.best()[0])
            events.extend(stream.words.hear(settled, best, stream.chunks * self.chunk_samples / SAMPLE_RATE))
        return events

    def close(self, stream: RuntimeStream) -> List[Event]:
        """End a stream: decode the remaining samples, padded with silence (raises UserError if it is closed)."""
        if stream.closed:
            raise UserError("the stream is closed")
        stream.closed = True
        total = self.frames_of(stream.heard)
        while stream.frames < total:
            chunk = np.zeros(self.chunk_samples, dtype=np.float32)
            chunk[: len(stream.waiting)] = stream.waiting
            stream.waiting = stream.waiting[:0]
            missing = total - stream.frames
            stream.search.advance(self.encode_chunk(stream, chunk)[:missing])
        return stream.words.end(stream.tokens(stream.search.best()[0]), stream.heard / SAMPLE_RATE)

    def encode_chunk(self, stream: RuntimeStream, chunk: np.ndarray) -> np.ndarray:
        """Encode a whole chunk (S,) of a stream to projected frames (T, J)."""
        inputs = chunk if stream.log_mel is None else stream.log_mel.push(chunk)
        graph = self.graphs[0 if stream.chunks == 0 else 1]
        frames, *states = _run(graph, {"inputs": inputs[None], "active": stream.active, **stream.states})
        stream.states = dict(zip(stream.states, states))
        stream.chunks += 1
        stream.frames += frames.shape[1]
        return frames[0]

    def frames_of(self, samples: int) -> int:
        """The number of frames for a number of samples."""
        for kernel, stride in self.about["framing"]:
            samples = max(0, (samples - kernel) // stride + 1)
        return samples

    def transcribe(
        self,
        audio: Audio,
        tasks: Optional[Names] = None,
        language: Optional[str] = None,
        options: Optional[SearchOptions] = None,
        name: Optional[str] = None,
    ) -> Transcript:
        """Transcribe one recording of any length, chunk by chunk; arguments as in `Runtime.transcribe`."""
        active = self.active(tasks)
        samples = read_audio(audio)
        stream = self.open(active, default_options(options, language))
        events = [*self.push(stream, samples), *self.close(stream)]
        words = [word for event in events if event.kind in (FINAL, TOKEN) for word in event.words]
        return self.transcript(words, active, len(samples) / SAMPLE_RATE, name or _name(audio))


def _run(graph: Any, inputs: Dict[str, np.ndarray]) -> List[np.ndarray]:
    """Run a graph with the inputs that it has. Without task vectors, for example, it has no ``active``."""
    return graph.run(None, {item.name: inputs[item.name] for item in graph.get_inputs()})


def _name(audio: Audio) -> str:
    return Path(audio).stem if isinstance(audio, (str, Path)) else "audio"
