"""Fast beam search by k2 (``RnntDecodingStreams``), and n-best lists out of its lattices.

k2 builds a lattice over the trivial graph, one symbol a frame at most, as icefall's ``fast_beam_search``: it prunes by
score (``lattice_beam``), states and contexts, and cannot know rules that look further back than a context. So while the
lattice is built, a symbol is barred where no sequence with this context may go on by it (the tokens of inactive tasks
at least). Then the lattice is walked by a beam of token sequences that follow all rules and earn all bonuses, with the
alignments of a sequence log-added. An utterance whose lattice holds no allowed path is decoded by the modified beam
search instead.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.beam import beam_search
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.scorer import Rules, Scorer
from tokenverse_pp.losses.entry import k2_problem, load_k2

NEG_INF = -math.inf


def k2_fast_beam_search(
    scorer: Scorer, lengths: Sequence[int], options: SearchOptions, rules: Optional[Rules]
) -> List[List[Hypothesis]]:
    """Decode utterances that are ordered by length, the longest first (see `search_frames`).

    Raises:
        UserError: where k2 cannot be used.
    """
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
    lattices = _lattices(k2, scorer, spoken, options, rules)
    without: List[int] = []
    for i, length in enumerate(spoken):
        with torch.inference_mode(False):
            arcs, scores = lattices[i].arcs.values().tolist(), lattices[i].scores.tolist()
        start = 0 if rules is None else int(rules.start[i])
        found[i] = _walk(zip(arcs, scores), length, scorer, rules, _Path(0.0, 0, start, 0, (), ()), options)
        if not found[i]:
            without.append(i)
    if without:
        for i, hypotheses in zip(without, _modified(scorer, without, lengths, options, rules)):
            found[i] = hypotheses
    return found


def _modified(
    scorer: Scorer, which: Sequence[int], lengths: Sequence[int], options: SearchOptions, rules: Optional[Rules]
) -> List[List[Hypothesis]]:
    """The modified beam search over some of the utterances."""
    index = torch.tensor(which, device=scorer.frames.device)
    part = copy.copy(scorer)
    part.frames = scorer.frames.index_select(1, index)
    if rules is not None:
        rules = Rules(rules.weights, rules.following, rules.start.index_select(0, index))
    return beam_search(part, [lengths[i] for i in which], options, rules)


def _lattices(k2: Any, scorer: Scorer, lengths: Sequence[int], options: SearchOptions, rules: Optional[Rules]) -> Any:
    """Run the streams; -> an FsaVec of lattices, in which each path goes through all frames and may go on."""
    size, base = scorer.contexts.size, scorer.vocab_size
    config = k2.RnntDecodingConfig(
        vocab_size=base,
        decoder_history_len=size,
        beam=options.lattice_beam,
        max_contexts=options.max_contexts,
        max_states=options.max_states,
    )
    with torch.inference_mode(False):  # an Fsa watches the versions of its tensors
        graph = k2.trivial_graph(base - 1).to(scorer.frames.device)
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(graph) for _ in lengths], config)
    # Under allow_partial k2 1.23.4 makes final arcs of the last frame's, so it gets one frame more than there is. The
    # streams of shorter utterances go on too, over anything but NaN.
    frames = torch.cat([scorer.frames[: lengths[0]], torch.ones_like(scorer.frames[:1])])
    for i, length in enumerate(lengths):
        frames[length:, i] = 1.0
    barred = None if rules is None else _Barred(rules, base, scorer.blank_id)
    digits = torch.tensor([base**i for i in reversed(range(size))], device=scorer.frames.device)
    for frame in frames:
        shape, contexts = streams.get_contexts()
        utterance = shape.row_ids(1).long()
        numbers = (contexts.long() * digits).sum(1).tolist()
        log_probs = scorer.log_probs(frame.index_select(0, utterance), scorer.contexts.look_up(numbers))
        if barred is not None:
            log_probs += barred.rows(utterance.tolist(), contexts.tolist())
        streams.advance(log_probs)
    streams.terminate_and_flush_to_streams()
    with torch.inference_mode(False):
        # Without allow_partial every path to a state that is not final in the graph scores -inf.
        return k2.connect(streams.format_output([length + 1 for length in lengths], allow_partial=True))


class _Barred:
    """For an utterance and the tokens last written: log-weights of what no state of the rules allows there."""

    def __init__(self, rules: Rules, vocab_size: int, blank_id: int):
        self.weights, self.blank_id = rules.weights, blank_id
        self.following = rules.following.view(-1, vocab_size)
        self.start = rules.start.flatten().tolist()
        self.reached: Dict[int, List[int]] = {}
        self.row_of: Dict[Tuple[int, Tuple[int, ...]], Tensor] = {}

    def rows(self, utterances: Sequence[int], contexts: Sequence[Sequence[int]]) -> Tensor:
        """(M, V) for M contexts."""
        return torch.stack([self._row(self.start[i], tuple(context)) for i, context in zip(utterances, contexts)])

    def _row(self, start: int, context: Tuple[int, ...]) -> Tensor:
        if (start, context) not in self.row_of:
            written = [token for token in context if token != self.blank_id]
            # A context that blanks fill up is the whole sequence; another may stand behind anything.
            states = {start} if len(written) < len(context) else set(self._reachable(start))
            for token in written:
                allowed = [s for s in states if self.weights[s, token] > NEG_INF]
                states = {int(self.following[s, token]) for s in allowed}
            everything = self.weights.new_full((self.weights.size(1),), NEG_INF)
            everything[self.blank_id] = 0.0
            for state in states:
                everything = torch.maximum(everything, self.weights[state])
            self.row_of[start, context] = everything
        return self.row_of[start, context]

    def _reachable(self, start: int) -> List[int]:
        if start not in self.reached:
            found, seen = [start], {start}
            for state in found:
                after: Set[int] = set(self.following[state][self.weights[state] > NEG_INF].tolist())
                found.extend(sorted(after - seen))
                seen |= after
            self.reached[start] = found
        return self.reached[start]


class _Path(NamedTuple):
    """A token sequence on its way through a lattice: its state there, that of the rules and of the bonus."""

    log_prob: float
    state: int
    rule: int
    earning: int
    frames: Tuple[int, ...]
    log_probs: Tuple[float, ...]


def _walk(
    arcs: Iterable[Tuple[Sequence[int], float]],
    length: int,
    scorer: Scorer,
    rules: Optional[Rules],
    start: _Path,
    options: SearchOptions,
) -> List[Hypothesis]:
    """The best token sequences in the arcs of a lattice that the rules allow, none where they allow none.

    A token sequence leads to one state of the lattice at each frame, because a state is a frame and a context.
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
                moved = _written(path, label, score, frame, scorer, rules)
                if moved is not None:
                    _add(longer, (*tokens, label), moved._replace(state=target))
        beam = dict(sorted(longer.items(), key=lambda item: (-item[1].log_prob, item[0]))[: options.beam])
    hypotheses = [scorer.hypothesis(k, p.frames, p.log_probs, p.log_prob) for k, p in beam.items()]
    return sorted(hypotheses, key=lambda h: (-h.score, h.tokens))[: options.nbest]


def _written(
    path: _Path, token: int, score: float, frame: int, scorer: Scorer, rules: Optional[Rules]
) -> Optional[_Path]:
    """A path with one more token, or None where the rules bar it."""
    rule, earning = path.rule, path.earning
    if rules is not None:
        if rules.weights[rule, token] == NEG_INF:
            return None
        rule = int(rules.following[rule * scorer.vocab_size + token])
    if scorer.bonus is not None:
        score += scorer.bonus.gain(earning, token)
        earning = scorer.bonus.advance(earning, token)
    written = (*path.frames, frame), (*path.log_probs, score)
    return _Path(path.log_prob + score, path.state, rule, earning, *written)


def _add(paths: Dict[Tuple[int, ...], _Path], tokens: Tuple[int, ...], path: _Path) -> None:
    """Put a path in; where one with its tokens is, the better one stays, with the probability of both."""
    other = paths.get(tokens)
    if other is None:
        paths[tokens] = path
        return
    high, low = max(other, path, key=lambda p: p.log_prob), min(other, path, key=lambda p: p.log_prob)
    paths[tokens] = high._replace(log_prob=high.log_prob + math.log1p(math.exp(low.log_prob - high.log_prob)))
