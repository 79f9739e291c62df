"""The one entry point of the search: a model and audio (or stored features) in, n-best hypotheses out."""

from __future__ import annotations

from typing import Any, List, Optional, Protocol, Sequence

import torch
from torch import Tensor

from tokenverse_pp.dataset import collate
from tokenverse_pp.errors import UserError
from tokenverse_pp.model.transducer import Transducer
from tokenverse_pp.search.bonuses import bonus_for
from tokenverse_pp.search.filters import constraints_for
from tokenverse_pp.search.frames import search_frames
from tokenverse_pp.search.hypothesis import Hypothesis
from tokenverse_pp.search.options import SearchOptions
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tokenizer import Tokenizer


class SearchModel(Protocol):
    """A model with what belongs to it, such as `tokenverse_pp.training.setup.load_model` gives."""

    @property
    def model(self) -> Transducer:
        """The transducer."""

    @property
    def tasks(self) -> TaskSet:
        """All tasks that it knows."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary."""


def search(
    model: SearchModel,
    inputs: Sequence[Any],
    tasks: Optional[Sequence[str]] = None,
    options: Optional[SearchOptions] = None,
) -> List[List[Hypothesis]]:
    """Decode utterances, as one padded batch, which gives what each gives alone.

    Args:
        model: see `SearchModel`.
        inputs: arrays or tensors of floats: all 1-D (audio at 16 kHz in [-1, 1]), or all 2-D (frames, F), features at
            the encoder's seam that were stored before (`Encoder.extract`). They are one batch in memory.
        tasks: names of the tasks to decode, None for all that the model knows; the tokens of others are barred.
        options: how to search.

    Returns:
        For each input 1 to ``options.nbest`` hypotheses, the best score first. Their frames are those of the encoder's
        output, ``model.model.encoder.output_frame_shift`` seconds each.

    Raises:
        UserError: for a task that the model does not know, a hotword that it cannot write, and, naming the input by its
            number, for one that is no such array, holds NaN or infinity, or is too short for one frame.
    """
    options = options or SearchOptions()
    active = model.tasks.names if tasks is None else tuple(tasks)
    constraints = constraints_for(model.tasks, active, model.tokenizer, options.languages, options.force_language)
    bonus = bonus_for(options, model.tokenizer, model.tasks.subset(active))
    network = model.model
    items = [_checked(item, number, network) for number, item in enumerate(inputs)]
    if not items:
        return []
    if len({item.dim() for item in items}) > 1:
        raise UserError("inputs: expected all audio (1-D) or all stored features (2-D), got both")
    device = next(network.parameters()).device
    padded, lens = collate(items)
    mask = torch.tensor(model.tasks.mask(active), dtype=torch.float32, device=device)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            stored = items[0].dim() == 2
            out, lens = network.encode(padded.to(device), lens.to(device), mask.expand(len(items), -1), stored)
    finally:
        network.train(training)
    return search_frames(network.predictor, network.joiner, out.float(), lens, options, constraints, bonus)


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
