"""What both runtimes have in common: vocabulary, tasks, predictor and joiner of an exported folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from tokenverse_pp.api.reading import transcript_of_words
from tokenverse_pp.api.transcript import Transcript, Word
from tokenverse_pp.errors import UserError
from tokenverse_pp.runtime.folder import LOG_MEL, MEL_FILTERS, TOKENIZER, Description, read_folder
from tokenverse_pp.runtime.log_mel import LogMel
from tokenverse_pp.runtime.search import Search
from tokenverse_pp.runtime.sessions import Joiner, Predictor
from tokenverse_pp.search.confidence import read_calibration
from tokenverse_pp.search.filters import tables_for
from tokenverse_pp.search.hypothesis import TimedWord
from tokenverse_pp.search.options import SearchOptions
from tokenverse_pp.search.rule_tables import RuleTables
from tokenverse_pp.tasks import TaskSet, build_tasks
from tokenverse_pp.tokenizer import Tokenizer


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
        self.predictor, self.joiner = Predictor(self.folder, threads), Joiner(self.folder, threads)
        self.log_mel: Optional[LogMel] = None
        if d.input == LOG_MEL and d.mel is not None:
            try:
                filters = np.load(self.folder / MEL_FILTERS, allow_pickle=False)
                self.log_mel = LogMel(filters, d.mel["n_fft"], d.mel["hop"])
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

    def transcript(self, words: Sequence[TimedWord], tasks: Sequence[str], duration: float, name: str) -> Transcript:
        """Words and task tokens, confidences calibrated, of a recording of ``duration`` seconds."""
        timed = [Word(w.text, w.start, w.end, w.confidence) for w in words]
        return transcript_of_words(timed, self.tasks.subset(tasks).names, duration, name, self.tasks)

    def calibrated(self, words: Sequence[TimedWord]) -> List[TimedWord]:
        """Words with the model's calibration of confidences, if it has one."""
        if self.calibration is None:
            return list(words)
        return [TimedWord(w.text, w.start, w.end, self.calibration(w.text, w.confidence)) for w in words]


def default_options(options: Optional[SearchOptions], tasks: Sequence[str], language: Optional[str]) -> SearchOptions:
    """Options of a transcription: beam search, a language token first where ``lid`` is decoded."""
    options = options or SearchOptions(force_language="lid" in tasks)
    return options if language is None else replace(options, languages=(language,), force_language=True)
