"""Training only what is new after a task transfer: whole tensors are frozen, of others some rows are trained."""

from __future__ import annotations

from typing import Dict, Iterator, Sequence, Tuple

import torch
from torch import Tensor, nn

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.transducer import Transducer
from tokenverse_pp.training.transfer import VOCABULARY_ROWS, Before, old_row_of_each


class TrainedRows:
    """Which rows of which parameters are trained.

    All other parameters get ``requires_grad`` false when this is made, so that optimiser and DDP leave them out. Of a
    parameter that is trained in part, the gradients of the other rows are set to zero before each update; AdamW then
    does not move them by a bit, as long as it does not decay the weights of this parameter (`partly`).

    Args:
        model: not wrapped.
        before: what the model was before the run.
        tasks: the tasks of the run, in order.
        mode: ``new``: rows of new tokens (predictor's embedding, joiner's output, simple and CTC outputs), and vectors
            of new tasks; ``new_and_joiner``: the whole joiner besides.

    Raises:
        UserError: where nothing is new.
    """

    def __init__(self, model: Transducer, before: Before, tasks: Sequence[str], mode: str):
        self.frozen: Dict[str, Tensor] = {}  # of parameters trained in part: True for rows that are not
        self.parameters: Dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            frozen = _frozen_rows(model, name, parameter, before, tasks)
            if mode == "new_and_joiner" and name.startswith("joiner."):
                continue
            if bool(frozen.all()):
                parameter.requires_grad_(False)
            elif bool(frozen.any()):
                self.frozen[name], self.parameters[name] = frozen, parameter
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"--training.train_only={mode}: no task or token is new, there is nothing to train")

    @property
    def partly(self) -> Tuple[str, ...]:
        """Names of the parameters that are trained in part: weight decay must leave them alone."""
        return tuple(self.frozen)

    def mask_gradients(self) -> None:
        """Set the gradients of rows that are not trained to zero (also where they are not finite)."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.frozen[name] = frozen = self.frozen[name].to(parameter.grad.device)
                parameter.grad[frozen] = 0

    def count(self, model: nn.Module) -> int:
        """How many numbers of a model are trained."""
        return sum(self._counts(model))

    def _counts(self, model: nn.Module) -> Iterator[int]:
        for name, parameter in model.named_parameters():
            if name in self.frozen:
                yield int((~self.frozen[name]).sum()) * (parameter.numel() // len(parameter))
            elif parameter.requires_grad:
                yield parameter.numel()


def _frozen_rows(model: Transducer, name: str, parameter: nn.Parameter, before: Before, tasks: Sequence[str]) -> Tensor:
    """A flag for each row of a parameter: True where the model had it before the run."""
    rows = len(parameter) if parameter.ndim else 1
    if name in VOCABULARY_ROWS:
        if name.startswith("ctc.") and not before.ctc:
            return torch.zeros(rows, dtype=torch.bool)
        return torch.arange(rows) < before.vocabulary
    table, _, kind = name.partition(".")
    if kind == "table" and table.endswith("vectors"):
        if table not in before.tables:
            return torch.zeros(rows, dtype=torch.bool)
        return ~old_row_of_each(getattr(model, table).strategy, before.tasks, tasks)[1]
    return torch.ones(rows, dtype=torch.bool)
