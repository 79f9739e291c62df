"""An exported model that transcribes whole utterances, without torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np

from tokenverse_pp.api.transcript import Transcript
from tokenverse_pp.errors import UserError
from tokenverse_pp.runtime.audio import Audio, read_audio
from tokenverse_pp.runtime.exported import Exported, default_options
from tokenverse_pp.runtime.folder import SAMPLING_RATE
from tokenverse_pp.runtime.search import check_options
from tokenverse_pp.runtime.sessions import Encoder
from tokenverse_pp.search.hypothesis import Hypothesis
from tokenverse_pp.search.options import SearchOptions

log = logging.getLogger(__name__)


class Runtime(Exported):
    """An export for whole utterances, ready to decode; see `Exported` for arguments and attributes."""

    def __init__(self, folder: Union[str, Path], threads: int = 1, check_files: bool = True):
        super().__init__(folder, threads, check_files)
        if self.description.streaming is not None:
            raise UserError(f"{folder}: exported for streaming: open it by tokenverse_pp.runtime.StreamingRuntime")
        self.encoder = Encoder(self.folder, threads)

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
        options = default_options(options, active, language)
        if len(samples) < self.description.min_samples:
            check_options(options)
            self.start_search(active, options)  # refuses what it does not know
            seconds = len(samples) / SAMPLING_RATE
            log.warning("warning: %s: %.4f s are less than a frame: nothing to hear", name, seconds)
            return self.transcript([], active, seconds, name)
        best = self.search([samples], active, options)[0][0]
        words = best.words(self.tokenizer.pieces(best.tokens), self.frame_shift)
        return self.transcript(self.calibrated(words), active, len(samples) / SAMPLING_RATE, name)

    def search(
        self,
        inputs: Sequence[np.ndarray],
        tasks: Optional[Sequence[str]] = None,
        options: Optional[SearchOptions] = None,
    ) -> List[List[Hypothesis]]:
        """`tokenverse_pp.search.search` of the model that was exported: n-best hypotheses of each utterance.

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
