"""Whisper-base over a CutSet: the words with their times, in the language that it hears, and in the one that is spoken.

One line of JSON a cut is appended to a file, so that a stopped pass goes on where it was. All that depends on Whisper
alone is in it; text normalisation, tuning and scoring start from this file.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import check_access

BEAM = 5  # faster-whisper's default
SEED = 42  # of the order, and of the sampling at temperatures above 0 (Whisper's retries where words look wrong)
DIGITS = 3  # of seconds and probabilities


def load_whisper(folder: Path, compute_type: str) -> Any:
    """faster-whisper's model on one CPU thread (raises UserError if it is not installed)."""
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'tokenverse_pp[baselines]'") from error
    return WhisperModel(str(folder), device="cpu", compute_type=compute_type, cpu_threads=1)


class Whisper:
    """faster-whisper on one CPU thread, each piece of audio through the encoder once.

    Args:
        folder: made by `whisper_weights.whisper_folder`.
        compute_type: of CTranslate2: ``int8`` or ``float32``.

    Raises:
        UserError: faster-whisper is not installed.
    """

    def __init__(self, folder: Path, compute_type: str):
        self.model = load_whisper(folder, compute_type)
        import ctranslate2  # which faster-whisper needs

        self.set_seed = ctranslate2.set_random_seed
        self.encode = self.model.encode
        self.model.encode = self._encode_once
        self.seen: Optional[Tuple[np.ndarray, Any]] = None

    def _encode_once(self, features: np.ndarray) -> Any:
        """The library encodes the same 30 seconds for the language and again for the words; here, once."""
        if self.seen is None or not np.array_equal(self.seen[0], features):
            self.seen = (features, self.encode(features))
        return self.seen[1]

    def languages(self, audio: np.ndarray) -> Dict[str, float]:
        """The probability of each language that Whisper knows; ``audio``: (S,) float32, 16 kHz."""
        return dict(self.model.detect_language(audio)[2])

    def transcribe(self, audio: np.ndarray, language: str) -> List[Dict[str, Any]]:
        """Segments with their words (faster-whisper's defaults, and times of words)."""
        self.set_seed(SEED)
        segments, _ = self.model.transcribe(audio, language=language, beam_size=BEAM, word_timestamps=True)
        return [
            {
                "temperature": segment.temperature,
                "words": [
                    [word.word, *(round(float(x), DIGITS) for x in (word.start, word.end, word.probability))]
                    for word in segment.words or ()
                ],
            }
            for segment in segments
        ]

    def forget(self) -> None:
        """So that the next call encodes, whatever was encoded before."""
        self.seen = None


def likeliest(probabilities: Mapping[str, float], allowed: Optional[Sequence[str]] = None) -> str:
    """The likeliest language, of all or of the allowed ones.

    >>> likeliest({"ro": 0.5, "es": 0.4, "nl": 0.1}, ["es", "nl"])
    'es'
    """
    return max(allowed or probabilities, key=lambda code: probabilities.get(code, 0.0))


def decode_cut(whisper: Whisper, cut: Cut, allowed: Sequence[str]) -> Dict[str, Any]:
    """One record: the languages by the three ways to choose one, and the words in each language that was chosen.

    ``language``: ``auto`` (Whisper's own choice of 99), ``seven`` (its choice of the recipe's languages, which is what
    a model trained on them knows), ``given`` (the true one). ``seconds``: wall-clock and CPU time of finding the
    language (encoder included) and of decoding.
    """
    check_access(cut)
    audio = cut.load_audio()[0]
    whisper.forget()
    clock = Clock()
    probabilities = whisper.languages(audio)
    seconds = {"language": clock.lap()}
    chosen = {
        "auto": likeliest(probabilities),
        "seven": likeliest(probabilities, allowed),
        "given": str(cut.supervisions[0].language),
    }
    decoded = {}
    for language in dict.fromkeys(chosen.values()):
        clock.lap()
        decoded[language] = whisper.transcribe(audio, language)
        seconds[f"words {language}"] = clock.lap()
    best = sorted(probabilities.items(), key=lambda item: -item[1])[:3]
    return {
        "id": cut.id,
        "duration": cut.duration,
        "language": chosen,
        "probabilities": {code: round(value, 4) for code, value in best},
        "segments": decoded,
        "seconds": seconds,
    }


class Clock:
    """Wall-clock and CPU seconds since the last lap; other jobs on the machine lengthen the first only."""

    def __init__(self) -> None:
        self.last = (time.perf_counter(), time.process_time())

    def lap(self) -> Dict[str, float]:
        """Seconds since it was made or asked last."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = (round(b - a, 5) for a, b in zip(self.last, now))
        self.last = now
        return {"wall": wall, "cpu": cpu}


def read_records(path: Path) -> Dict[str, Dict[str, Any]]:
    """Records by cut id; a last line that was cut short by a kill is left out.

    Raises:
        UserError: naming file and line, for anything else that is no record.
    """
    records: Dict[str, Dict[str, Any]] = {}
    if not path.is_file():
        return records
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            records[record["id"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: expected a record of a cut: {error}") from error
    if lines[-1]:
        path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
    return records


def shuffled(cuts: Iterable[Cut]) -> List[Cut]:
    """The cuts in a random order, always the same: what a stopped pass has done is a sample of all corpora."""
    order = list(cuts)
    random.Random(SEED).shuffle(order)
    return order


def whisper_pass(
    cuts: Iterable[Cut],
    model: Path,
    compute_type: str,
    output: Path,
    allowed: Sequence[str],
    first: Optional[int] = None,
) -> int:
    """Append a record of each cut, or of ``first`` of them, that ``output`` does not hold yet; returns how many."""
    done = read_records(output)
    missing = [cut for cut in shuffled(cuts)[:first] if cut.id not in done]
    if not missing:
        return 0
    whisper = Whisper(model, compute_type)
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "a", encoding="utf-8") as file:
        for cut in missing:
            file.write(json.dumps(decode_cut(whisper, cut, allowed), ensure_ascii=False) + "\n")
            file.flush()
    return len(missing)
