"""The search behind the entry point: a padded batch of encoder output in, hypotheses in the same order out."""

from __future__ import annotations

from typing import List, Optional, Sequence, Union

import torch
from torch import Tensor

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.joiner import Joiner
from tokenverse_pp.model.predictor import StatelessPredictor
from tokenverse_pp.search.automaton import Constraints, Rules
from tokenverse_pp.search.beam import beam_search
from tokenverse_pp.search.bonuses import Earnings
from tokenverse_pp.search.full import full_beam_search
from tokenverse_pp.search.greedy import greedy_search
from tokenverse_pp.search.hypothesis import Hypothesis
from tokenverse_pp.search.k2_fast import k2_fast_beam_search
from tokenverse_pp.search.options import SearchOptions
from tokenverse_pp.search.scorer import Scorer, project

METHODS = {
    "greedy": greedy_search,
    "beam": beam_search,
    "full_beam": full_beam_search,
    "k2_fast_beam": k2_fast_beam_search,
}


def search_frames(
    predictor: StatelessPredictor,
    joiner: Joiner,
    encoder_out: Tensor,
    lens: Tensor,
    options: Optional[SearchOptions] = None,
    constraints: Union[Constraints, Sequence[Constraints], None] = None,
    bonus: Optional[Earnings] = None,
) -> List[List[Hypothesis]]:
    """Decode a batch.

    Args:
        predictor: the stateless predictor, on the device of ``encoder_out``.
        joiner: the joiner.
        encoder_out: (N, T, C), padded.
        lens: (N,) valid frames; 0 gives one empty hypothesis.
        options: how to search.
        constraints: what may be written (`constraints_for`), for all utterances or one for each; None for anything.
        bonus: for hotwords, length, a language model (`bonus_for`): where the options ask for one, and not otherwise.

    Returns:
        For each utterance 1 to ``options.nbest`` distinct hypotheses, the best score first. Fewer than ``nbest`` where
        the beam holds fewer, since hypotheses with the same tokens are one.

    Raises:
        UserError: for an encoder output that holds NaN or infinity in its valid frames.
    """
    options = options or SearchOptions()
    if options.earns != (bonus is not None):
        raise ValueError("hotwords, length_bonus and lm go together with their `bonus_for(options, tokenizer)`")
    # Autocast would cast the weights again at each frame; SearchOptions.joiner_dtype does it once.
    with torch.inference_mode(), torch.autocast(encoder_out.device.type, enabled=False):
        return _search(predictor, joiner, encoder_out, lens, options, constraints, bonus)


def _search(
    predictor: StatelessPredictor,
    joiner: Joiner,
    encoder_out: Tensor,
    lens: Tensor,
    options: SearchOptions,
    constraints: Union[Constraints, Sequence[Constraints], None],
    bonus: Optional[Earnings],
) -> List[List[Hypothesis]]:
    lengths = [int(n) for n in lens.tolist()]
    if not lengths:
        return []
    # The longest first: the utterances still going on are always the first n. The sort is stable.
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest = max(lengths)
    rows = torch.tensor(order, device=encoder_out.device)
    frames = project(joiner, encoder_out.transpose(0, 1)[:longest].index_select(1, rows), options)
    ordered = [lengths[i] for i in order]
    _refuse_nan(frames, ordered, order)
    scorer = Scorer(predictor, joiner, frames, options, bonus)
    rules = None if constraints is None else Rules.arrange(constraints, order, encoder_out.device)
    found = METHODS[options.method](scorer, ordered, options, rules)
    results: List[List[Hypothesis]] = [[] for _ in lengths]
    for i, hypotheses in zip(order, found):
        results[i] = hypotheses
    return results


def _refuse_nan(frames: Tensor, lengths: Sequence[int], order: Sequence[int]) -> None:
    bad = ~torch.isfinite(frames.sum(-1))
    valid = torch.arange(frames.size(0), device=frames.device)[:, None] < torch.tensor(lengths, device=frames.device)
    where = sorted(order[i] for i in (bad & valid).any(0).nonzero().flatten().tolist())
    if where:
        which = ", ".join(map(str, where))
        raise UserError(f"utterance {which} of the batch: the encoder gave NaN or infinity; is the audio valid?")
