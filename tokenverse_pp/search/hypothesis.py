"""A decoded hypothesis: tokens with their frames and log-probabilities; words with times and confidences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Sequence, Tuple

from tokenverse_pp.tasks.transcript import is_task_token, pieces_to_words


@dataclass(frozen=True)
class TimedWord:
    """A word or task token: seconds from the start of the audio, and a confidence in [0, 1]."""

    text: str
    start: float
    end: float
    confidence: float

    @property
    def is_task_token(self) -> bool:
        """True for ``[SCD]`` and its like."""
        return is_task_token(self.text)


@dataclass(frozen=True)
class Hypothesis:
    """What a search found.

    Args:
        tokens: vocabulary ids, without blanks.
        frames: for each token the encoder frame at which it was written (only ``full_beam`` writes several at one).
        log_probs: for each token its log-probability (natural logarithm) at that frame, given the tokens before it.
        log_prob: of the token sequence: summed over frames, blanks included, and over those alignments that the
            search merged.
        score: what the n-best list is sorted by: ``log_prob`` with the bonuses for hotwords and length (which the other
            numbers leave out); under ``SearchOptions.length_norm`` divided by (tokens + context size).
    """

    tokens: Tuple[int, ...]
    frames: Tuple[int, ...]
    log_probs: Tuple[float, ...]
    log_prob: float
    score: float

    def times(self, frame_shift: float) -> List[float]:
        """The start of each token's frame in seconds; ``frame_shift`` is the model's ``output_frame_shift``."""
        return [frame * frame_shift for frame in self.frames]

    def words(self, pieces: Sequence[str], frame_shift: float) -> List[TimedWord]:
        """Words and task tokens with times and confidences.

        A word starts where the frame of its first piece starts, and ends where the frame of its last piece ends: a
        transducer says when it wrote a piece, not how long it was spoken, so a word of one piece lasts one frame. Its
        confidence is the geometric mean of its pieces' probabilities.

        Args:
            pieces: the surface of each of ``tokens`` (SentencePiece pieces and task tokens).
            frame_shift: seconds an encoder frame.
        """
        if len(pieces) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens, but {len(pieces)} pieces")
        # `pieces_to_words` takes the first piece's time: with indices as times it says which pieces make a word.
        texts, starts = pieces_to_words(pieces, [float(i) for i in range(len(pieces))])
        bounds = [int(start) for start in starts or []] + [len(pieces)]
        return [self._word(text, a, b, frame_shift) for text, a, b in zip(texts, bounds, bounds[1:])]

    def _word(self, text: str, first: int, end: int, frame_shift: float) -> TimedWord:
        mean = sum(self.log_probs[first:end]) / (end - first)
        return TimedWord(
            text,
            start=self.frames[first] * frame_shift,
            end=(self.frames[end - 1] + 1) * frame_shift,
            confidence=min(1.0, math.exp(mean)),
        )
