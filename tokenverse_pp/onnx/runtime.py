"""Run an exported model with onnxruntime, without torch: sessions of its graphs, and transcription of utterances."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.decoding.constraints import RuleTables, tables_for
from tokenverse_pp.decoding.hypothesis import Hypothesis, read_calibration
from tokenverse_pp.onnx.folder import (
    ENCODER,
    JOINER,
    LOG_MEL,
    MEL_FILTERS,
    PREDICTOR,
    SAMPLING_RATE,
    TOKENIZER,
    Description,
    read_folder,
)
from tokenverse_pp.onnx.inputs import Audio, NumpyLogMel, read_audio
from tokenverse_pp.onnx.search import Search, check_options
from tokenverse_pp.tasks import TaskSet, build_tasks
from tokenverse_pp.tasks.result import Transcript, words_of_tokens
from tokenverse_pp.tasks.transcript import Word

MOST_STATES = 4096  # of the predictor's, kept


def open_graph(path: Path, threads: int) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU.

    Raises:
        UserError: without onnxruntime, or for a file that is no graph that it can run.
    """
    try:
        import onnxruntime
    except Exception as error:  # one that is there may fail in other ways than ImportError
        said = f"tokenverse_pp.runtime needs onnxruntime ({one_line(error)}): pip install 'tokenverse_pp[onnx]'"
        raise UserError(said) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen exceptions of its own, without a common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a graph that onnxruntime can run: {reason}") from None


class Predictor:
    """Contexts (tuples of ``context_size`` ids, the newest last) -> states (M, J), each computed once."""

    def __init__(self, folder: Path, threads: int):
        self.session = open_graph(folder / PREDICTOR, threads)
        self.known: Dict[Tuple[int, ...], np.ndarray] = {}

    def __call__(self, contexts: Sequence[Tuple[int, ...]]) -> np.ndarray:
        """States (M, J) float32 of M contexts."""
        missing = [context for context in dict.fromkeys(contexts) if context not in self.known]
        if missing:
            if len(self.known) > MOST_STATES:
                self.known.clear()
                missing = list(dict.fromkeys(contexts))
            states = self.session.run(None, {"context": np.array(missing, dtype=np.int64)})[0]
            self.known.update(zip(missing, states))
        return np.stack([self.known[context] for context in contexts])


class JoinerSession:
    """Frames (M, J) and states (M, J) -> logits (M, V)."""

    def __init__(self, folder: Path, threads: int):
        self.session = open_graph(folder / JOINER, threads)

    def __call__(self, frames: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Logits (M, V) float32."""
        return self.session.run(None, {"frame": frames, "state": states})[0]


class EncoderSession:
    """A padded batch -> projected frames (N, T, J) and their numbers (N,)."""

    def __init__(self, folder: Path, threads: int):
        self.session = open_graph(folder / ENCODER, threads)
        self.names: List[str] = [item.name for item in self.session.get_inputs()]

    def __call__(self, inputs: np.ndarray, lens: np.ndarray, active: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Inputs (N, S) audio or (N, bins, T) log-mel, lens (N,) samples, active (N, K + 1) of 0 and 1."""
        given = dict(zip(("inputs", "lens", "active"), (inputs, lens, active)))
        # A model without task vectors has no use for `active`, and its graph no such input.
        frames, frame_lens = self.session.run(None, {name: given[name] for name in self.names})
        return frames, frame_lens


class Exported:
    """A folder that `tokenverse-pp export` wrote.

    Args:
        folder: of the exported model.
        threads: of onnxruntime.
        check_files: compare the files with their sums; takes a moment for large models.

    Attributes:
        description: what the folder says of the model.
        tasks: the tasks that the model knows.
        tokenizer: its vocabulary.
        frame_shift: seconds of an encoder frame.

    Raises:
        UserError: for a folder that is none, of another version or damaged; and without onnxruntime.
    """

    def __init__(self, folder: Union[str, Path], threads: int = 1, check_files: bool = True):
        self.folder, self.threads = Path(folder), threads
        self.description: Description = read_folder(self.folder, check_files)
        d = self.description
        self.tasks: TaskSet = build_tasks(d.tasks, d.task_options)
        self.tokenizer = Tokenizer.load(self.folder / TOKENIZER)
        self.tokenizer.check(self.tasks)
        self.frame_shift = d.frame_shift
        self.calibration = read_calibration(self.folder)
        self.predictor, self.joiner = Predictor(self.folder, threads), JoinerSession(self.folder, threads)
        self.log_mel: Optional[NumpyLogMel] = None
        if d.input == LOG_MEL and d.mel is not None:
            try:
                filters = np.load(self.folder / MEL_FILTERS, allow_pickle=False)
                self.log_mel = NumpyLogMel(filters, d.mel["n_fft"], d.mel["hop"])
            except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
                raise UserError(f"{self.folder / MEL_FILTERS}: damaged: {' '.join(str(error).split())}") from None
        self._tables: Dict[Tuple[object, ...], RuleTables] = {}

    def start_search(self, tasks: Sequence[str], options: SearchOptions) -> Search:
        """The search of one utterance (raises UserError for a task or option that there is not)."""
        key = (tuple(tasks), options.languages, options.force_language)
        if key not in self._tables:
            rules = tables_for(self.tasks, tasks, self.tokenizer, options.languages, options.force_language)
            self._tables[key] = rules
        return Search(self.predictor, self.joiner, self._tables[key], self.description.context_size, options)

    def mask(self, tasks: Sequence[str]) -> np.ndarray:
        """The encoder's input for these tasks, (K + 1,) (raises UserError for what was not trained together)."""
        mask = self.tasks.mask(tasks)
        trained = self.description.vectors.get("trained")
        if trained and [int(active) for active in mask] not in trained:
            raise UserError("vectors.strategy=combination: this combination of tasks was never active in training")
        return np.array(mask, dtype=np.float32)

    def transcript(self, words: Sequence[Word], tasks: Sequence[str], duration: float, name: str) -> Transcript:
        """Words and task tokens of a recording of ``duration`` seconds -> transcript."""
        return self.tasks.subset(tasks).reader.read(words, duration, name=name)


def default_options(options: Optional[SearchOptions], language: Optional[str]) -> SearchOptions:
    """Options of a transcription: those given or the defaults, with the language that is known."""
    options = options or SearchOptions()
    return options if language is None else replace(options, languages=(language,), force_language=True)


log = logging.getLogger(__name__)


class Runtime(Exported):
    """An export for whole utterances, ready to decode; see `Exported` for arguments and attributes."""

    def __init__(self, folder: Union[str, Path], threads: int = 1, check_files: bool = True):
        super().__init__(folder, threads, check_files)
        if self.description.streaming is not None:
            raise UserError(f"{folder}: exported for streaming: open it by tokenverse_pp.runtime.StreamingRuntime")
        self.encoder = EncoderSession(self.folder, threads)

    def transcribe(
        self,
        audio: Audio,
        tasks: Optional[Sequence[str]] = None,
        language: Optional[str] = None,
        options: Optional[SearchOptions] = None,
        name: Optional[str] = None,
    ) -> Transcript:
        """Transcribe one recording.

        Args:
            audio: samples (S,) of floats at 16 kHz in [-1, 1], a file, or its bytes; what is shorter than a frame gives
                an empty transcript.
            tasks: names of the tasks to decode, None for all that the model knows; the tokens of others are barred.
            language: the code of the language that is spoken, where it is known; needs the task ``lid``.
            options: how to search; beam search by default, a language token first where ``lid`` is decoded.
            name: of the recording, for the transcript; by default the file's without its ending.

        Raises:
            UserError: for a task, language or option that the model does not have, and audio that it cannot take.
        """
        active = self.tasks.names if tasks is None else tuple(tasks)
        samples = read_audio(audio)
        name = name or (Path(audio).stem if isinstance(audio, (str, Path)) else "audio")
        options = default_options(options, language)
        if len(samples) < self.description.min_samples:
            check_options(options)
            self.start_search(active, options)  # refuses what it does not know
            seconds = len(samples) / SAMPLING_RATE
            log.warning("warning: %s: %.4f s are less than a frame: nothing to hear", name, seconds)
            return self.transcript([], active, seconds, name)
        best = self.search([samples], active, options)[0][0]
        pieces = self.tokenizer.pieces(best.tokens)
        words = words_of_tokens(pieces, best.frames, best.log_probs, self.frame_shift, self.calibration)
        return self.transcript(words, active, len(samples) / SAMPLING_RATE, name)

    def search(
        self,
        inputs: Sequence[np.ndarray],
        tasks: Optional[Sequence[str]] = None,
        options: Optional[SearchOptions] = None,
    ) -> List[List[Hypothesis]]:
        """`tokenverse_pp.decoding.search.search` of the model that was exported: n-best hypotheses of each utterance.

        Args:
            inputs: samples (S,) of each, float32 at 16 kHz; they are one batch of the encoder.
            tasks: names of the tasks to decode, None for all.
            options: how to search, ``greedy`` or ``beam``.

        Raises:
            UserError: see `transcribe`.
        """
        options = options or SearchOptions()
        check_options(options)
        active = self.tasks.names if tasks is None else tuple(tasks)
        self.start_search(active, options)  # refuses what it does not know before the encoder runs
        found = []
        for frames in self.encode(inputs, active):
            search = self.start_search(active, options)
            search.advance(frames)
            found.append(search.best())
        return found

    def encode(self, inputs: Sequence[np.ndarray], tasks: Sequence[str]) -> List[np.ndarray]:
        """Samples (S,) of each utterance -> its encoder frames (T, J), projected for the joiner; one batch."""
        if not inputs:
            return []
        d = self.description
        for number, item in enumerate(inputs):
            if len(item) < d.min_samples:
                raise UserError(f"input {number}: too short for one frame: it holds {len(item)} samples")
            if d.max_samples is not None and len(item) > d.max_samples:
                longest = d.max_samples / SAMPLING_RATE
                seconds = len(item) / SAMPLING_RATE
                raise UserError(f"input {number}: has {seconds:.2f} s: this model takes {longest:g} s at most")
        active = np.repeat(self.mask(tasks)[None], len(inputs), axis=0)
        padded = _padded([item if self.log_mel is None else self.log_mel(item).T for item in inputs])
        if self.log_mel is not None:
            padded = np.ascontiguousarray(padded.transpose(0, 2, 1))
        lens = np.array([len(item) for item in inputs], dtype=np.int64)
        frames, frame_lens = self.encoder(padded, lens, active)
        if not np.isfinite(frames).all():
            raise UserError("the encoder gave NaN or infinity; is the audio valid?")
        return [row[:length] for row, length in zip(frames, frame_lens.tolist())]


def _padded(items: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays (L, ..) -> (N, longest L, ..), zeros behind the shorter ones."""
    longest: Tuple[int, ...] = (len(items), max(len(item) for item in items), *items[0].shape[1:])
    padded = np.zeros(longest, dtype=np.float32)
    for row, item in zip(padded, items):
        row[: len(item)] = item
    return padded
