"""The search: `search_frames` takes a padded batch of encoder output, `search` takes a model and audio or features."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, Inactive, SearchOptions
from tokenverse_pp.decoding.beam import beam_search
from tokenverse_pp.decoding.constraints import NEG_INF, Constraints
from tokenverse_pp.decoding.full_beam import full_beam_search
from tokenverse_pp.decoding.greedy import greedy_search
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.k2_fast_beam import k2_fast_beam_search
from tokenverse_pp.decoding.scorer import BatchConstraints, FusionScorer, Scorer, check_bonus, inference, project
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.predictor import Predictor
from tokenverse_pp.models.transducer import Joiner, Transducer

METHODS = {
    "greedy": greedy_search,
    "beam": beam_search,
    "full_beam": full_beam_search,
    "k2_fast_beam": k2_fast_beam_search,
}


class ConstraintTable:
    """Several `Constraints` in one table, so that utterances with different constraints are searched as one batch.

    A state of the search is a row of the table. Rows are only appended, so states of streams stay valid.
    """

    def __init__(self, vocab_size: int, device: torch.device):
        self.weights = torch.zeros(0, vocab_size, device=device)
        self.following = torch.zeros(0, vocab_size, dtype=torch.int64, device=device)
        self.known: List[Constraints] = []  # kept alive, so that their ids stay unique
        self.first: Dict[int, int] = {}
        self.translations: Dict[Tuple[int, int], List[int]] = {}

    def batch(self, each: Sequence[Constraints]) -> BatchConstraints:
        """Return the table and the first state of each utterance's constraints; new constraints are appended."""
        added = [item for item in {id(item): item for item in each}.values() if id(item) not in self.first]
        if added:
            rows = np.cumsum([len(self.weights)] + [len(item.weights) for item in added]).tolist()
            following = [item.following + row for item, row in zip(added, rows)]
            self.known.extend(added)
            self.first.update((id(item), row) for item, row in zip(added, rows))
            device = self.weights.device
            weights = torch.from_numpy(np.concatenate([item.weights for item in added]))
            self.weights = torch.cat([self.weights, weights.to(device)])
            self.following = torch.cat([self.following, torch.from_numpy(np.concatenate(following)).to(device)])
        start = torch.tensor([self.first[id(item)] for item in each], device=self.weights.device)[:, None]
        return BatchConstraints(self.weights, self.following.flatten(), start)

    def add(self, constraints: Constraints) -> int:
        """Return the first state of these constraints; they are appended if they are new."""
        if id(constraints) not in self.first:
            self.batch([constraints])
        return self.first[id(constraints)]

    def translate(self, state: int, old: Constraints, new: Constraints) -> int:
        """Return the state of ``new`` that corresponds to ``state`` of ``old``.

        It is the state after the shortest text that leads to ``state``, without the symbols that ``new`` suppresses. So
        an open span is given up if ``new`` suppresses its task, and stays open otherwise. A text that has begun
        without the language token that ``new`` expects first goes on without one: it is too late for a language, and
        to wait for one would forbid all words.
        """
        key = (id(old), id(new))
        first, other = self.add(old), self.add(new)
        if key not in self.translations:
            self.translations[key] = [_state_after_allowed(new, text) for text in _shortest_texts(old)]
        return other + self.translations[key][state - first]


def _shortest_texts(constraints: Constraints) -> List[List[int]]:
    """Find for each state a shortest sequence of symbols that leads to it, breadth first."""
    texts: Dict[int, List[int]] = {0: []}
    queue = [0]
    for state in queue:
        for symbol in np.flatnonzero(constraints.weights[state] > NEG_INF).tolist():
            after = int(constraints.following[state, symbol])
            if after not in texts:
                texts[after] = [*texts[state], symbol]
                queue.append(after)
    return [texts[state] for state in range(len(constraints.weights))]


def _state_after_allowed(constraints: Constraints, symbols: Sequence[int]) -> int:
    """Return the state after the symbols, skipping those not allowed. They may lack the token that must come first."""
    state = 0
    for symbol in symbols:
        after = constraints.after([symbol], state)
        if after is None and state == 0:
            after = constraints.after([symbol], constraints.begun)
        state = state if after is None else after
    return state


def search_frames(
    predictor: Predictor,
    joiner: Joiner,
    encoder_out: Tensor,
    lens: Tensor,
    options: Optional[SearchOptions] = None,
    constraints: Union[Constraints, Sequence[Constraints], None] = None,
    bonus: Optional[FusionScorer] = None,
) -> List[List[Hypothesis]]:
    """Decode a batch of encoder output.

    Args:
        predictor: the predictor, on the device of ``encoder_out``.
        encoder_out: (N, T, C), padded.
        lens: (N,) valid frames; 0 gives one empty hypothesis.
        constraints: what may be written (`constraints_for`), for all utterances or one for each; None for anything.
        bonus: for hotwords, length, a language model (`bonus_for`); needed if and only if the options use them.

    Returns:
        For each utterance 1 to ``options.nbest`` distinct hypotheses, best score first. There are fewer than ``nbest``
        if the beam holds fewer, since hypotheses with the same tokens are merged.

    Raises:
        UserError: if valid frames of the encoder output contain NaN or infinity.
    """
    options = options or SearchOptions()
    check_bonus(options, bonus)
    with inference(encoder_out.device):
        lengths = [int(n) for n in lens.tolist()]
        if not lengths:
            return []
        # Longest first: the utterances that still have frames are always the first n. The sort is stable.
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        longest = max(lengths)
        rows = torch.tensor(order, device=encoder_out.device)
        frames = project(joiner, encoder_out.transpose(0, 1)[:longest].index_select(1, rows), options)
        ordered = [lengths[i] for i in order]
        _refuse_nan(frames, ordered, order)
        scorer = Scorer(predictor, joiner, frames, options, bonus)
        batch = None
        if constraints is not None:
            each = [constraints] * len(order) if isinstance(constraints, Constraints) else constraints
            batch = ConstraintTable(scorer.vocab_size, encoder_out.device).batch([each[i] for i in order])
        found = dict(zip(order, METHODS[options.method](scorer, ordered, options, batch)))
        ranked = [sorted(found[i], key=lambda h: (-h.score, h.tokens)) for i in range(len(lengths))]
        return [hypotheses[: options.nbest] for hypotheses in ranked]


def _refuse_nan(frames: Tensor, lengths: Sequence[int], order: Sequence[int]) -> None:
    bad = ~torch.isfinite(frames.sum(-1))
    valid = torch.arange(frames.size(0), device=frames.device)[:, None] < torch.tensor(lengths, device=frames.device)
    refuse_rows(sorted(order[i] for i in (bad & valid).any(0).nonzero().flatten().tolist()))


def refuse_rows(rows: Sequence[int]) -> None:
    """Raise UserError if there are ``rows``: utterances of a batch whose frames hold NaN or infinity."""
    if rows:
        which = ", ".join(map(str, rows))
        raise UserError(f"utterance {which} of the batch: the encoder gave NaN or infinity; is the audio valid?")


def search(
    model: ModelBundle,
    inputs: Sequence[Any],
    tasks: Optional[Sequence[str]] = None,
    options: Optional[SearchOptions] = None,
    inactive: Optional[Inactive] = None,
) -> List[List[Hypothesis]]:
    """Decode utterances in one padded batch. Each result is the same as if the utterance were decoded alone.

    Args:
        model: as returned by `tokenverse_pp.models.bundle.load_model`.
        inputs: arrays or tensors of floats: all 1-D (audio at 16 kHz in [-1, 1]), or all 2-D (frames, F), stored
            features at the encoder's seam (`Encoder.extract`). They are one batch in memory.
        tasks: names of the tasks to decode, None for all of the model's; tokens of others are not returned.
        inactive: how other tasks are handled: see `DecodeOptions.inactive`.

    Returns:
        For each input 1 to ``options.nbest`` hypotheses, best score first. Their frames are those of the encoder's
        output, ``model.model.encoder.output_frame_shift`` seconds each.

    Raises:
        UserError: for a task that the model does not know, a hotword that it cannot write, or an input (named by its
            number) that is not such an array, contains NaN or infinity, or is too short for one frame.
    """
    from tokenverse_pp.decoding.recognizer import Recognizer  # imports this module

    network, known = model.model, model.tasks
    items = [_checked(item, number, network) for number, item in enumerate(inputs)]
    if len({item.dim() for item in items}) > 1:
        raise UserError("inputs: expected all audio (1-D) or all stored features (2-D), got both")
    stored = any(item.dim() == 2 for item in items)
    active = known.names if tasks is None else known.chosen(tasks).names
    decoding = DecodeOptions(options or SearchOptions(), active, stored_features=stored, inactive=inactive)
    recognizer = Recognizer(model, decoding)
    training = network.training
    network.eval()
    try:
        found = recognizer.recognize(items)
    finally:
        network.train(training)
    refuse_rows([row for row, best in enumerate(found) if best is None])
    return [best for best in found if best is not None]


def _checked(item: Any, number: int, network: Transducer) -> Tensor:
    """Input ``number`` as a float32 tensor (S,) or (T, F) (raises UserError)."""
    tensor = torch.as_tensor(item)
    if not tensor.is_floating_point() or tensor.dim() not in (1, 2):
        kind = f"{str(tensor.dtype).replace('torch.', '')} of shape {tuple(tensor.shape)}"
        raise UserError(f"input {number}: expected floats, 1-D audio or 2-D stored features, got {kind}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"input {number}: holds NaN or infinity")
    encoder = network.encoder
    if tensor.dim() == 2 and tensor.size(1) != encoder.feature_dim:
        raise UserError(f"input {number}: expected features of {encoder.feature_dim} numbers, got {tensor.size(1)}")
    frames = torch.tensor([len(tensor)])
    if tensor.dim() == 1:
        frames = encoder.feature_lens(frames)
    if int(frames) < 1:
        raise UserError(f"input {number}: too short for one frame: it holds {len(tensor)}")
    return tensor.float()
