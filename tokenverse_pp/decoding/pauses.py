"""The probability of an endpoint in a pause, whether or not the search wrote ``[ENDP]`` there.

For each encoder frame t the model gives h_t, the probability of ``[ENDP]`` at that frame after the tokens written
before it (without ``[ENDP]`` itself, so that h_t keeps its meaning after one was written). If the last word piece was
written at frame s, then

    P_t = 1 - (1 - h_{s+1}) (1 - h_{s+2}) .. (1 - h_t)

is the probability that the model writes ``[ENDP]`` by frame t if no word follows: it grows while a pause lasts, and
restarts at 0 with each word piece. Bonuses of word lists and language models are not part of h_t. But they delay the
``[ENDP]`` of a search: hypotheses with a bonus for more words displace the one that ends early. `retimed` moves the
token to the frame at which the model alone would write it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.scorer import History, PredictorStates, biased_joiner, inference, joiner_dtype, project
from tokenverse_pp.models.predictor import LstmPredictor, Predictor, StatelessPredictor
from tokenverse_pp.models.transducer import Joiner
from tokenverse_pp.tasks.endp import Endpoint
from tokenverse_pp.tasks.transcript import is_task_token

if TYPE_CHECKING:
    from tokenverse_pp.models.bundle import ModelBundle

ROWS = 4096  # frames whose logits are in memory at once
BEFORE = -1  # the frame of tokens written before the given frames


class Written(NamedTuple):
    """Some tokens of a hypothesis, in order, and the frame of each."""

    tokens: Sequence[int]
    frames: Sequence[int]


class PauseMemory(NamedTuple):
    """The state of a stream between two chunks.

    history: the last final tokens, as many as a stateless predictor sees, or for an LSTM one `History` of all. last: id
    and frame of the last word piece, None before the first. log_silence: the sum of log(1 - h) since then. final: the
    last word piece that is final.
    """

    history: Tuple[Any, ...] = ()
    last: Optional[Tuple[int, int]] = None
    log_silence: float = 0.0
    final: Optional[Tuple[int, int]] = None


class PauseReader:
    """Computes endpoint probabilities from encoder output.

    Args:
        options: search options; ``temperature``, ``blank_penalty`` and ``joiner_dtype`` apply here too. ``token_bias``
            is part of the joiner (`tokenverse_pp.decoding.scorer.biased_joiner`).
        pieces: pieces of the whole vocabulary.
        endpoint: the id of ``[ENDP]``.
    """

    def __init__(
        self, predictor: Predictor, joiner: Joiner, options: SearchOptions, pieces: Sequence[str], endpoint: int
    ):
        self.predictor, self.joiner, self.options, self.endpoint = predictor, joiner, options, endpoint
        self.states: Optional[PredictorStates] = None
        if isinstance(predictor, LstmPredictor):
            with inference(joiner.output.weight.device):
                self.states = PredictorStates(predictor, joiner, joiner_dtype(joiner, options))
        self.is_word = [not is_task_token(piece) and i != predictor.blank_id for i, piece in enumerate(pieces)]

    def contexts(self, written: Written, frames: int, history: Sequence[Any] = ()) -> np.ndarray:
        """The predictor's context at each frame: the last tokens written before it, without ``[ENDP]``.

        Args:
            written: tokens and their frames.
            frames: T.
            history: tokens before ``written`` (`PauseMemory`).

        Returns:
            (T, context size) int64, the newest token last; for an LSTM (T,), the `History` of all tokens.
        """
        kept = [(i, t) for i, t in zip(written.tokens, written.frames) if i != self.endpoint]
        tokens = [i for i, _ in kept]
        before = np.searchsorted([t for _, t in kept], np.arange(frames), side="left")
        if self.states is not None:
            return np.array(self._histories(tokens, history), dtype=object)[before]
        size = self.predictor.context_size
        earlier = [i for i in history if i != self.endpoint][-size:]
        every = np.array([*[self.predictor.blank_id] * size, *earlier, *tokens], dtype=np.int64)
        return every[(before + size + len(earlier))[:, None] + np.arange(-size, 0)]

    def _histories(self, tokens: Sequence[int], history: Sequence[Any]) -> List[History]:
        """Return the U + 1 histories of an LSTM, with their states: before each of U tokens, and after the last."""
        assert self.states is not None
        found: List[History] = [history[0] if history else self.states.start]
        with inference(self.joiner.output.weight.device):
            for token in tokens:
                found.append(self.states.after(found[-1], token))
                self.states.look_up(found[-1:])
        return found

    def _distinct(self, contexts: np.ndarray, device: torch.device) -> Tuple[Tensor, np.ndarray]:
        """Return the predictor's outputs (M, D) in distinct contexts, and the row of each of ``contexts``, (T,)."""
        if isinstance(self.predictor, StatelessPredictor):
            distinct, numbers = np.unique(contexts, axis=0, return_inverse=True)
            return self.predictor.step(torch.from_numpy(distinct).to(device)), numbers.reshape(-1)
        number: Dict[History, int] = {}
        rows = np.array([number.setdefault(one, len(number)) for one in contexts.tolist()])
        # An LSTM's output is the hidden state of its highest layer.
        states: List[Any] = [one.state for one in number]
        return torch.stack([state[0, -1] for state in states]), rows

    def log_remaining(self, encoder_out: Tensor, contexts: np.ndarray) -> np.ndarray:
        """Compute log(1 - h) of all frames, (T,) float64, with one synchronisation with the device.

        ``encoder_out``: (T, C), of one utterance or of several concatenated. ``contexts``: (T, ..), see `contexts`.
        """
        if not len(contexts):
            return np.zeros(0)
        device = self.joiner.output.weight.device
        found = []
        with inference(device):
            outputs, numbers = self._distinct(contexts, device)
            states = self.joiner.predictor_proj(outputs)
            which = torch.from_numpy(numbers).to(device)
            for frames, index in zip(project(self.joiner, encoder_out, self.options).split(ROWS), which.split(ROWS)):
                logits = self.joiner(frames.to(states.dtype), states[index]).double()
                logits[:, self.predictor.blank_id] -= self.options.blank_penalty
                log_probs = (logits / self.options.temperature).log_softmax(-1)[:, self.endpoint]
                found.append(torch.log1p(-log_probs.exp().clamp(max=1 - 1e-12)))
            return torch.cat(found).cpu().numpy()

    def curve(self, written: Written, log_remaining: np.ndarray) -> np.ndarray:
        """P_t of each frame, (T,): 0 before the first word piece, and at each frame that writes one."""
        words = [t for i, t in zip(written.tokens, written.frames) if self.is_word[i]]
        total = np.cumsum(log_remaining)
        number = np.searchsorted(words, np.arange(len(total)), side="right")
        last = np.array([0, *words], dtype=np.int64)[number]
        return np.where(number > 0, -np.expm1(total - total[last]) if len(total) else total, 0.0)

    def read(self, encoder_out: Tensor, lens: Sequence[int], found: Sequence[Hypothesis]) -> List[np.ndarray]:
        """`curve` of the best hypothesis of each utterance: encoder_out (N, T, C), with ``lens`` valid frames."""
        parts = self.remaining(encoder_out, lens, found)
        return [self.curve(Written(best.tokens, best.frames), part) for best, part in zip(found, parts)]

    def remaining(self, encoder_out: Tensor, lens: Sequence[int], found: Sequence[Hypothesis]) -> List[np.ndarray]:
        """`log_remaining` of each utterance's frames, (T_i,) each; see `read`."""
        contexts = [self.contexts(Written(best.tokens, best.frames), n) for n, best in zip(lens, found)]
        frames = torch.cat([out[:n] for out, n in zip(encoder_out, lens)])
        return np.split(self.log_remaining(frames, np.concatenate(contexts)), np.cumsum(lens)[:-1])

    def with_pauses(self, best: Hypothesis, log_remaining: np.ndarray) -> Hypothesis:
        """Return the hypothesis with ``pauses``: for each word piece, P at the last frame before the next one."""
        curve = self.curve(Written(best.tokens, best.frames), log_remaining)
        words = [t for i, t in zip(best.tokens, best.frames) if self.is_word[i]]
        ends = iter([t - 1 for t in words[1:]] + [len(curve) - 1])
        # Two pieces at one frame (full_beam) have no frame between them.
        pauses = [
            float(curve[end]) if self.is_word[i] and (end := next(ends)) > t else 0.0
            for i, t in zip(best.tokens, best.frames)
        ]
        return replace(best, pauses=tuple(pauses))

    def retimed(self, best: Hypothesis, log_remaining: np.ndarray) -> Hypothesis:
        """Return the hypothesis with each ``[ENDP]`` moved to the most probable frame between its neighbours."""
        frames, log_probs = list(best.frames), list(best.log_probs)
        for k, token in enumerate(best.tokens):
            if token != self.endpoint:
                continue
            first = frames[k - 1] + 1 if k else 0
            stop = frames[k + 1] if k + 1 < len(frames) else len(log_remaining)
            inside = log_remaining[first:stop]
            if len(inside):
                at_frame = np.log(np.maximum(-np.expm1(inside), np.finfo(float).tiny))
                at = int(np.argmax(at_frame + np.cumsum(inside) - inside))  # the first [ENDP] is written at this frame
                frames[k], log_probs[k] = first + at, float(at_frame[at])
        return replace(best, frames=tuple(frames), log_probs=tuple(log_probs))

    def step(
        self, outs: Sequence[Tensor], first_frames: Sequence[int], found: Sequence[Any], memories: Sequence[PauseMemory]
    ) -> Tuple[List[Optional[float]], List[PauseMemory]]:
        """Return the pauses of streams after their next chunks.

        A beam's best hypothesis may change its last word in a later chunk. Frames of earlier chunks then no longer
        count, because their probabilities were those after another word.

        Args:
            outs: encoder output of each, (T_i, C).
            first_frames: the number of the chunk's first frame.
            found: what the search found in the chunk (`tokenverse_pp.decoding.streaming.search.Found`).

        Returns:
            P at the last frame of each, None if no pause lasts: before the first word piece, and if the last frame
            wrote one; and the new memories.
        """
        contexts = []
        for out, first, one, memory in zip(outs, first_frames, found, memories):
            line = Written(
                [token.id for token in (*one.settled, *one.open)],
                [max(token.frame - first, BEFORE) for token in (*one.settled, *one.open)],
            )
            contexts.append(self.contexts(line, len(out), memory.history))
        remaining = self.log_remaining(torch.cat(list(outs)), np.concatenate(contexts))
        parts = np.split(remaining, np.cumsum([len(out) for out in outs])[:-1])
        pauses: List[Optional[float]] = []
        after: List[PauseMemory] = []
        for part, first, one, memory in zip(parts, first_frames, found, memories):
            heard = self.follow(one, memory)
            last = heard.last
            begin = 0 if last is None else max(0, last[1] + 1 - first)
            silence = float(part[begin:].sum()) + (memory.log_silence if last == memory.last else 0.0)
            after.append(heard._replace(log_silence=silence))
            pauses.append(None if last is None or last[1] >= first + len(part) - 1 else float(-np.expm1(silence)))
        return pauses, after

    def follow(self, one: Any, memory: PauseMemory) -> PauseMemory:
        """Return a stream's memory after a chunk, with ``one`` found, whose frames do not count (no ``endp``)."""
        settled_words, open_words = (
            [(token.id, token.frame) for token in part if self.is_word[token.id]] for part in (one.settled, one.open)
        )
        # Words that were open may be gone, also all of them.
        final = settled_words[-1] if settled_words else memory.final
        last = open_words[-1] if open_words else final
        settled = [token.id for token in one.settled if token.id != self.endpoint]
        history = [*memory.history, *settled] if self.states is None else self._histories(settled, memory.history)
        return PauseMemory(tuple(history[-self.predictor.context_size :]), last, final=final)


def pause_reader_of(loaded: ModelBundle, search: SearchOptions) -> Optional[PauseReader]:
    """Return the `PauseReader` of a model, or None if it does not know the task ``endp``."""
    if "endp" not in loaded.tasks:
        return None
    model, tokenizer = loaded.model, loaded.tokenizer
    pieces = tokenizer.pieces()
    joiner = biased_joiner(model.joiner, search, tokenizer)
    return PauseReader(model.predictor, joiner, search, pieces, tokenizer.id_of(Endpoint.token))
