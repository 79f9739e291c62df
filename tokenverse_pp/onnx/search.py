"""Greedy and modified beam search in NumPy, one utterance at a time, with the results of `tokenverse_pp.decoding`.

A context is what the predictor has read: the last tokens for a stateless predictor (`LastTokens`), all tokens for an
LSTM (`AllTokens`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union, cast

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.constraints import Constraints
from tokenverse_pp.decoding.hypothesis import Hypothesis

Join = Callable[[np.ndarray, np.ndarray], np.ndarray]
BLOCK = 8  # frames that greedy search scores at once
MOST_STATES = 4096  # outputs of a stateless predictor that are cached


class LastTokens:
    """Contexts of a stateless predictor: tuples of the last tokens, the newest last.

    Args:
        run: the predictor and the joiner's projection, contexts (M, size) int64 -> states (M, J).
        size: tokens in a context.
        blank: id that stands before the first token.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], size: int, blank: int = 0):
        self.run, self.size = run, size
        self.start = (blank,) * size
        self._states: Dict[Tuple[int, ...], np.ndarray] = {}

    def longer(self, context: Tuple[int, ...], token: int) -> Tuple[int, ...]:
        """The context after one more token."""
        return (*context[1:], token)

    def look_up(self, contexts: Sequence[Tuple[int, ...]]) -> np.ndarray:
        """Contexts -> states (M, J)."""
        missing = [context for context in dict.fromkeys(contexts) if context not in self._states]
        if missing:
            if len(self._states) > MOST_STATES:
                self._states.clear()
                missing = list(dict.fromkeys(contexts))
            self._states.update(zip(missing, self.run(np.array(missing, dtype=np.int64))))
        return np.stack([self._states[context] for context in contexts])


class LstmContext:
    """All tokens so far: the last token, and the LSTM's state before it, or after it once the LSTM has read it."""

    __slots__ = ("cell", "hidden", "state", "token")

    def __init__(self, token: int, hidden: np.ndarray, cell: np.ndarray):
        self.token, self.hidden, self.cell = token, hidden, cell  # hidden and cell (layers, D)
        self.state: Optional[np.ndarray] = None  # (J,)


class AllTokens:
    """Contexts of an LSTM predictor.

    Args:
        run: the predictor and the joiner's projection, tokens (M,) int64, hidden and cell states (M, layers, D)
            -> states (M, J), hidden and cell states after the tokens.
        dim: D, its dimension.
        blank: id that it reads first.
    """

    size = 1  # see `tokenverse_pp.models.predictor.LstmPredictor.context_size`

    def __init__(self, run: Callable[..., Sequence[np.ndarray]], layers: int, dim: int, blank: int = 0):
        nothing = np.zeros((layers, dim), dtype=np.float32)
        self.run, self.start = run, LstmContext(blank, nothing, nothing)

    def longer(self, context: LstmContext, token: int) -> LstmContext:
        """The context after one more token. The LSTM must have read the last one (`look_up`)."""
        return LstmContext(token, context.hidden, context.cell)

    def look_up(self, contexts: Sequence[LstmContext]) -> np.ndarray:
        """Contexts -> states (M, J)."""
        missing = [context for context in dict.fromkeys(contexts) if context.state is None]
        if missing:
            tokens = np.array([context.token for context in missing], dtype=np.int64)
            hidden, cell = np.stack([c.hidden for c in missing]), np.stack([c.cell for c in missing])
            for context, *found in zip(missing, *self.run(tokens, hidden, cell)):
                context.state, context.hidden, context.cell = found
        return np.stack([cast(np.ndarray, context.state) for context in contexts])


Contexts = Union[LastTokens, AllTokens]


@dataclass(frozen=True)
class Path:
    """A partial hypothesis. ``context``: what the predictor has read; ``state``: state of the constraints."""

    context: Any
    state: int = 0
    score: float = 0.0  # log-probability, float64
    alignment: float = 0.0  # that of these frames alone
    tokens: Tuple[int, ...] = ()
    frames: Tuple[int, ...] = ()
    log_probs: Tuple[float, ...] = ()


class Search:
    """The search of one utterance: call `advance` for each piece of its frames, then `best`.

    Args:
        join: frames (M, J), states (M, J) -> logits (M, V).
        constraints: which tokens may be emitted.
        options: search options, with ``method`` greedy or beam.
        symbols: most symbols that greedy search emits per frame.

    Raises:
        UserError: for a method or an option that the runtime does not support.
    """

    def __init__(
        self,
        contexts: Contexts,
        join: Join,
        constraints: Constraints,
        options: SearchOptions,
        blank: int = 0,
        symbols: int = 1,
    ):
        check_options(options)
        self.contexts, self.join, self.constraints = contexts, join, constraints
        self.options, self.blank, self.symbols = options, blank, symbols
        self.paths = [Path(contexts.start)]
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
            score = self.options.normalised(p.score, self.settled + len(p.tokens) + self.contexts.size)
            found.append(Hypothesis(p.tokens, p.frames, p.log_probs, p.score, score))
        return sorted(found, key=lambda h: (-h.score, h.tokens))[: self.options.nbest]

    def _greedy(self, frames: np.ndarray) -> None:
        """Score blocks of frames with one context, which is valid up to the first token that is emitted."""
        first, written_here = 0, 0
        while first < len(frames):
            path, block = self.paths[0], frames[first : first + BLOCK]
            scores = self._log_probs(block, [path.context] * len(block), [path.state] * len(block))
            best = scores.argmax(1)
            written = np.flatnonzero(best != self.blank)
            count = int(written[0]) if len(written) else len(block)  # blanks before it
            if count:
                written_here = 0
            total = float(scores[:count, self.blank].sum(dtype=np.float64))
            path = self._extend(path, self.blank, path.score + total, 0.0)
            self.frame += count
            if count < len(block):
                log_prob = float(scores[count, best[count]])
                path = self._extend(path, int(best[count]), path.score + log_prob, log_prob)
                written_here += 1
                if written_here == self.symbols:  # otherwise a blank ends the frame
                    written_here = 0
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
            else:  # the frames of the more probable alignment are kept
                likelier = path if path.alignment > twin.alignment else twin
                merged[path.tokens] = replace(likelier, score=float(np.logaddexp(twin.score, path.score)))
        self.paths = list(merged.values())

    def _log_probs(self, frames: np.ndarray, contexts: Sequence[Any], states: Sequence[int]) -> np.ndarray:
        """Log-probabilities (M, V) of the next symbol, -inf where the constraints forbid it."""
        logits = self.join(frames, self.contexts.look_up(contexts))
        if self.options.blank_penalty:
            logits[:, self.blank] -= self.options.blank_penalty
        if self.options.temperature != 1:
            logits /= self.options.temperature
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return logits + self.constraints.weights[list(states)]

    def _extend(self, path: Path, token: int, score: float, log_prob: float) -> Path:
        alignment = path.alignment + log_prob
        if token == self.blank:
            return replace(path, score=score, alignment=alignment)
        return Path(
            self.contexts.longer(path.context, token),
            int(self.constraints.following[path.state, token]),
            score,
            alignment,
            (*path.tokens, token),
            (*path.frames, self.frame),
            (*path.log_probs, min(log_prob, 0.0)),
        )


def check_options(options: SearchOptions) -> None:
    """Check that the runtime supports the options (raises UserError)."""
    if options.method not in ("greedy", "beam"):
        raise UserError(f"search option 'method': the runtime has greedy and beam, not {options.method}")
    given = [name for name in ("hotwords", "length_bonus", "lm", "joiner_dtype") if getattr(options, name)]
    given += [name for name in ("lm_scale", "lm_bonus") if getattr(options, name) is not None]
    for name in given:
        raise UserError(f"search option {name!r}: the runtime has none; decode with tokenverse_pp.decoding")
