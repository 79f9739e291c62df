"""Greedy and modified beam search in NumPy, one utterance at a time, with the results of `tokenverse_pp.decoding`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.constraints import Constraints
from tokenverse_pp.decoding.hypothesis import Hypothesis

Context = Tuple[int, ...]
Predict = Callable[[Sequence[Context]], np.ndarray]
Join = Callable[[np.ndarray, np.ndarray], np.ndarray]
BLOCK = 8  # frames that greedy search scores at once


@dataclass(frozen=True)
class Path:
    """A partial hypothesis. ``context``: input of the predictor; ``state``: of the constraints."""

    context: Context
    state: int = 0
    score: float = 0.0  # log-probability, float64
    tokens: Tuple[int, ...] = ()
    frames: Tuple[int, ...] = ()
    log_probs: Tuple[float, ...] = ()


class Search:
    """The search of one utterance: call `advance` for each piece of its frames, then `best`.

    Args:
        predict: contexts -> states (M, J).
        join: frames (M, J), states (M, J) -> logits (M, V).
        constraints: what may be written.
        context_size: tokens that the predictor sees.
        options: ``method`` greedy or beam.
        blank: id of the blank.

    Raises:
        UserError: for a method or an option that the runtime does not support.
    """

    def __init__(
        self,
        predict: Predict,
        join: Join,
        constraints: Constraints,
        context_size: int,
        options: SearchOptions,
        blank: int = 0,
    ):
        check_options(options)
        self.predict, self.join, self.constraints = predict, join, constraints
        self.options, self.context_size, self.blank = options, context_size, blank
        self.paths = [Path((blank,) * context_size)]
        self.frame, self.settled = 0, 0

    def advance(self, frames: np.ndarray) -> None:
        """Continue with projected encoder frames (T, J)."""
        if self.options.method == "greedy":
            self._greedy(frames)
        else:
            for frame in frames:
                self._step(frame)
                self.frame += 1

    def settle(self) -> Hypothesis:
        """Return the tokens that all paths share, and remove them from the paths."""
        count = 0
        for written in zip(*(zip(path.tokens, path.frames) for path in self.paths)):
            if len(set(written)) > 1:
                break
            count += 1
        first = self.paths[0]
        settled = Hypothesis(first.tokens[:count], first.frames[:count], first.log_probs[:count], 0.0, 0.0)
        self.settled += count
        self.paths = [
            replace(p, tokens=p.tokens[count:], frames=p.frames[count:], log_probs=p.log_probs[count:])
            for p in self.paths
        ]
        return settled

    def best(self) -> List[Hypothesis]:
        """The ``nbest`` hypotheses so far, without settled tokens; the best score first."""
        found = []
        for p in self.paths:
            scale = self.settled + len(p.tokens) + self.context_size if self.options.length_norm else 1
            found.append(Hypothesis(p.tokens, p.frames, p.log_probs, p.score, p.score / scale))
        return sorted(found, key=lambda h: (-h.score, h.tokens))[: self.options.nbest]

    def _greedy(self, frames: np.ndarray) -> None:
        """Score blocks of frames with one context, which is right up to the first token that is emitted."""
        first = 0
        while first < len(frames):
            path, block = self.paths[0], frames[first : first + BLOCK]
            scores = self._log_probs(block, [path.context] * len(block), [path.state] * len(block))
            best = scores.argmax(1)
            written = np.flatnonzero(best != self.blank)
            count = int(written[0]) if len(written) else len(block)  # blanks before it
            total = float(scores[:count, self.blank].sum(dtype=np.float64))
            path = self._extend(path, self.blank, path.score + total, 0.0)
            self.frame += count
            if count < len(block):
                log_prob = float(scores[count, best[count]])
                path = self._extend(path, int(best[count]), path.score + log_prob, log_prob)
                self.frame += 1
                count += 1
            self.paths, first = [path], first + count

    def _step(self, frame: np.ndarray) -> None:
        """Extend all paths by one frame (J,), keep the best, and merge those with the same tokens."""
        paths, beam = self.paths, self.options.beam
        scores = self._log_probs(
            np.repeat(frame[None], len(paths), 0), [path.context for path in paths], [path.state for path in paths]
        )
        totals = (scores + np.array([path.score for path in paths])[:, None]).ravel()  # float64
        kept = np.argpartition(-totals, beam)[:beam] if beam < len(totals) else np.arange(len(totals))
        kept = kept[np.lexsort((kept, -totals[kept]))]  # equal scores in the order of paths and symbols
        merged: Dict[Tuple[int, ...], Path] = {}
        for at in kept[np.isfinite(totals[kept])].tolist():
            parent, token = divmod(at, scores.shape[1])
            path = self._extend(paths[parent], token, float(totals[at]), float(scores[parent, token]))
            twin = merged.get(path.tokens)
            if twin is None:
                merged[path.tokens] = path
            else:  # the better one came first: its frames are kept
                merged[path.tokens] = replace(twin, score=float(np.logaddexp(twin.score, path.score)))
        self.paths = list(merged.values())

    def _log_probs(self, frames: np.ndarray, contexts: Sequence[Context], states: Sequence[int]) -> np.ndarray:
        """Log-probabilities (M, V) of the next symbol, -inf where the constraints forbid it."""
        logits = self.join(frames, self.predict(contexts))
        if self.options.blank_penalty:
            logits[:, self.blank] -= self.options.blank_penalty
        if self.options.temperature != 1:
            logits /= self.options.temperature
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return logits + self.constraints.weights[list(states)]

    def _extend(self, path: Path, token: int, score: float, log_prob: float) -> Path:
        if token == self.blank:
            return replace(path, score=score)
        return Path(
            (*path.context[1:], token),
            int(self.constraints.following[path.state, token]),
            score,
            (*path.tokens, token),
            (*path.frames, self.frame),
            (*path.log_probs, min(log_prob, 0.0)),
        )


def check_options(options: SearchOptions) -> None:
    """Check that the runtime supports the options (raises UserError)."""
    if options.method not in ("greedy", "beam"):
        raise UserError(f"search option 'method': the runtime has greedy and beam, not {options.method}")
    for name in ("hotwords", "length_bonus", "lm", "joiner_dtype"):
        if getattr(options, name):
            raise UserError(f"search option {name!r}: the runtime has none; decode with tokenverse_pp.decoding")
