"""Fast beam search with k2 (``RnntDecodingStreams``), and n-best lists from its lattices.

k2 builds a lattice over the trivial graph with at most one symbol per frame, like icefall's ``fast_beam_search``: it
prunes by score (``lattice_beam``), states and contexts, and cannot follow constraints that look further back than a
context. So while the lattice is built, a symbol is suppressed if no sequence with this context may continue with it
(this covers at least the tokens of inactive tasks). Then a beam of token sequences that follow all constraints and earn
all bonuses walks the lattice; the alignments of a sequence are log-added. An utterance whose lattice has no allowed
path is decoded by the modified beam search instead.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.beam import beam_search
from tokenverse_pp.decoding.constraints import NEG_INF
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.scorer import BatchConstraints, Scorer
from tokenverse_pp.losses.k2 import k2_problem, load_k2


def k2_fast_beam_search(
    scorer: Scorer, lengths: Sequence[int], options: SearchOptions, constraints: Optional[BatchConstraints]
) -> List[List[Hypothesis]]:
    """Decode utterances sorted by length, longest first (raises UserError if k2 cannot be used)."""
    if not scorer.stateless:
        raise UserError("search option 'method': k2_fast_beam needs a stateless predictor, this model's is an LSTM")
    problem = k2_problem(scorer.frames.device)
    if problem is not None:
        raise UserError(
            f"search option 'method': k2_fast_beam needs the package k2, which is missing or broken: {problem}"
        )
    k2 = load_k2()
    spoken = [length for length in lengths if length]
    found = [[scorer.hypothesis((), (), (), 0.0)] for _ in lengths]
    if not spoken:
        return found
    lattices = _lattices(k2, scorer, spoken, options, constraints)
    without: List[int] = []
    for i, length in enumerate(spoken):
        with torch.inference_mode(False):
            arcs, scores = lattices[i].arcs.values().tolist(), lattices[i].scores.tolist()
        start = 0 if constraints is None else int(constraints.start[i])
        found[i] = _walk(zip(arcs, scores), length, scorer, constraints, _Path(0.0, 0, start, 0, (), ()), options)
        if not found[i]:
            without.append(i)
    if without:
        index = torch.tensor(without, device=scorer.frames.device)
        part = copy.copy(scorer)
        part.frames = scorer.frames.index_select(1, index)
        if constraints is not None:
            constraints = constraints._replace(start=constraints.start.index_select(0, index))
        for i, hypotheses in zip(without, beam_search(part, [lengths[i] for i in without], options, constraints)):
            found[i] = hypotheses
    return found


def _lattices(
    k2: Any, scorer: Scorer, lengths: Sequence[int], options: SearchOptions, constraints: Optional[BatchConstraints]
) -> Any:
    """Run the streams. Return an FsaVec of lattices in which each path covers all frames and may continue."""
    size, base = scorer.contexts.size, scorer.vocab_size
    config = k2.RnntDecodingConfig(
        vocab_size=base,
        decoder_history_len=size,
        beam=options.lattice_beam,
        max_contexts=options.max_contexts,
        max_states=options.max_states,
    )
    with torch.inference_mode(False):  # an Fsa tracks the versions of its tensors
        graph = k2.trivial_graph(base - 1).to(scorer.frames.device)
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(graph) for _ in lengths], config)
    # With allow_partial k2 1.23.4 turns the arcs of the last frame into final arcs, so it gets one extra frame. The
    # streams of shorter utterances go on too, over any values but NaN.
    frames = torch.cat([scorer.frames[: lengths[0]], torch.ones_like(scorer.frames[:1])])
    for i, length in enumerate(lengths):
        frames[length:, i] = 1.0
    suppressed = None if constraints is None else _Suppressed(constraints, base, scorer.blank_id)
    digits = torch.tensor([base**i for i in reversed(range(size))], device=scorer.frames.device)
    for frame in frames:
        shape, contexts = streams.get_contexts()
        utterance = shape.row_ids(1).long()
        numbers = (contexts.long() * digits).sum(1).tolist()
        log_probs = scorer.log_probs(frame.index_select(0, utterance), scorer.contexts.look_up(numbers))
        if suppressed is not None:
            log_probs += suppressed.rows(utterance.tolist(), contexts.tolist())
        streams.advance(log_probs)
    streams.terminate_and_flush_to_streams()
    with torch.inference_mode(False):
        # Without allow_partial every path to a state that is not final in the graph scores -inf.
        return k2.connect(streams.format_output([length + 1 for length in lengths], allow_partial=True))


class _Suppressed:
    """Log-weights after the last tokens of an utterance: -inf for what no state of the constraints allows there."""

    def __init__(self, constraints: BatchConstraints, vocab_size: int, blank_id: int):
        self.weights, self.blank_id = constraints.weights, blank_id
        self.following = constraints.following.view(-1, vocab_size)
        self.start = constraints.start.flatten().tolist()
        self.reached: Dict[int, List[int]] = {}
        self.row_of: Dict[Tuple[int, Tuple[int, ...]], Tensor] = {}

    def rows(self, utterances: Sequence[int], contexts: Sequence[Sequence[int]]) -> Tensor:
        """Return log-weights (M, V) for M contexts."""
        return torch.stack([self._row(self.start[i], tuple(context)) for i, context in zip(utterances, contexts)])

    def _row(self, start: int, context: Tuple[int, ...]) -> Tensor:
        if (start, context) not in self.row_of:
            written = [token for token in context if token != self.blank_id]
            # A context padded with blanks is the whole sequence; any other may follow any prefix.
            states = {start}
            if len(written) == len(context):
                if start not in self.reached:
                    found = [start]
                    for state in found:
                        after = self.following[state][self.weights[state] > NEG_INF].tolist()
                        found.extend(sorted(set(after) - set(found)))
                    self.reached[start] = found
                states = set(self.reached[start])
            for token in written:
                allowed = [s for s in states if self.weights[s, token] > NEG_INF]
                states = {int(self.following[s, token]) for s in allowed}
            row = self.weights.new_full((self.weights.size(1),), NEG_INF)
            row[self.blank_id] = 0.0
            for state in states:
                row = torch.maximum(row, self.weights[state])
            self.row_of[start, context] = row
        return self.row_of[start, context]


class _Path(NamedTuple):
    """A token sequence in a lattice, with its states in the lattice, the constraints and the bonus."""

    log_prob: float
    state: int
    constraint: int
    earning: int
    frames: Tuple[int, ...]
    log_probs: Tuple[float, ...]


def _walk(
    arcs: Iterable[Tuple[Sequence[int], float]],
    length: int,
    scorer: Scorer,
    constraints: Optional[BatchConstraints],
    start: _Path,
    options: SearchOptions,
) -> List[Hypothesis]:
    """Return the best token sequences in the arcs of a lattice that the constraints allow; empty if they allow none.

    A token sequence is in one state of the lattice at each frame, because a state is a frame and a context.
    """
    leaving: Dict[int, List[Tuple[int, int, float]]] = {}
    for (source, target, label, _), score in arcs:
        leaving.setdefault(source, []).append((target, label, score))
    beam: Dict[Tuple[int, ...], _Path] = {(): start}
    for frame in range(length):
        longer: Dict[Tuple[int, ...], _Path] = {}
        for tokens, path in beam.items():
            for target, label, score in leaving.get(path.state, ()):
                if label == scorer.blank_id:
                    _add(longer, tokens, path._replace(log_prob=path.log_prob + score, state=target))
                    continue
                moved = _written(path, label, score, frame, scorer, constraints)
                if moved is not None:
                    _add(longer, (*tokens, label), moved._replace(state=target))
        beam = dict(sorted(longer.items(), key=lambda item: (-item[1].log_prob, item[0]))[: options.beam])
    hypotheses = [scorer.hypothesis(k, p.frames, p.log_probs, p.log_prob) for k, p in beam.items()]
    return sorted(hypotheses, key=lambda h: (-h.score, h.tokens))[: options.nbest]


def _written(
    path: _Path, token: int, score: float, frame: int, scorer: Scorer, constraints: Optional[BatchConstraints]
) -> Optional[_Path]:
    """Return a path with one more token, or None if the constraints do not allow it."""
    constraint, earning = path.constraint, path.earning
    if constraints is not None:
        if constraints.weights[constraint, token] == NEG_INF:
            return None
        constraint = int(constraints.following[constraint * scorer.vocab_size + token])
    if scorer.bonus is not None:
        score += scorer.bonus.gain(earning, token)
        earning = scorer.bonus.advance(earning, token)
    written = (*path.frames, frame), (*path.log_probs, score)
    return _Path(path.log_prob + score, path.state, constraint, earning, *written)


def _add(paths: Dict[Tuple[int, ...], _Path], tokens: Tuple[int, ...], path: _Path) -> None:
    """Add a path. If one has the same tokens, keep the better one, with the sum of both probabilities."""
    other = paths.get(tokens)
    if other is None:
        paths[tokens] = path
        return
    high, low = max(other, path, key=lambda p: p.log_prob), min(other, path, key=lambda p: p.log_prob)
    paths[tokens] = high._replace(log_prob=high.log_prob + math.log1p(math.exp(low.log_prob - high.log_prob)))
