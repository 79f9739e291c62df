"""The learnable vectors of TokenVerse++ (arXiv 2508.19856): X~ = X + v, where v says which tasks are active."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenverse_pp.base.errors import UserError

MAX_COMBINATION_TASKS = 10  # 2^10 rows; beyond that most rows would never be trained


class TaskVectors(nn.Module):
    """One vector a task, summed over the active ones; or one vector a combination of active tasks.

    Both are formed as ``weights @ table``, so that every row is in the graph of every step: under DDP an absent task
    is no unused parameter, and its row's gradient is exactly zero. Rows start at zero: an untrained model equals the
    one without vectors.

    Args:
        num_tasks: K + 1, the first being ``asr``, which is always active.
        dim: d of the embeddings to which the vector is added.
        strategy: ``sum`` (K + 1 rows) or ``combination`` (2^K rows, ASR alone among them).
    """

    trained: Tensor

    def __init__(self, num_tasks: int, dim: int, strategy: str = "sum"):
        super().__init__()
        if strategy not in ("sum", "combination"):
            raise UserError(f"vectors.strategy={strategy!r}: expected sum or combination")
        if strategy == "combination" and num_tasks - 1 > MAX_COMBINATION_TASKS:
            raise UserError(f"vectors.strategy=combination takes at most {MAX_COMBINATION_TASKS} tasks beside asr")
        self.strategy = strategy
        rows = num_tasks if strategy == "sum" else 2 ** (num_tasks - 1)
        self.table = nn.Parameter(torch.zeros(rows, dim))
        # Which combinations training has seen; a row that it has not is a guess nobody should decode with. Bytes, since
        # DDP over gloo cannot send bools before torch 2.
        self.register_buffer("trained", torch.zeros(rows, dtype=torch.uint8))

    def forward(self, active: Tensor) -> Tensor:
        """active (N, K + 1) of 0 and 1 -> v (N, d).

        Raises:
            UserError: in eval mode, for a combination that was never trained (strategy ``combination``).
        """
        if self.strategy == "sum":
            return active.to(self.table.dtype) @ self.table
        bits = 2 ** torch.arange(active.shape[1] - 1, device=active.device)
        rows = (active[:, 1:].long() * bits).sum(dim=1)
        if self.training:
            self.trained[rows] = 1
        elif not bool(self.trained[rows].all()) and bool(self.trained.any()):
            raise UserError(
                "vectors.strategy=combination: this combination of tasks was never active in training; choose one that "
                "was, or train with tasks.activation=subset"
            )
        weights = torch.nn.functional.one_hot(rows, self.table.shape[0]).to(self.table.dtype)
        return weights @ self.table
