"""The plain specification of the selections: a full sort."""

import torch
from torch import Tensor


def row_top_k(pre_RC: Tensor, k: int) -> Tensor:
    """The selected entries as a dense [R, C] matrix, zero elsewhere."""
    ranks = pre_RC.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return torch.where((ranks < k) & (pre_RC > 0), pre_RC, 0)


def batch_top_k(pre_RC: Tensor, budget: int) -> Tensor:
    """The selected entries as a dense [R, C] matrix, zero elsewhere."""
    flat = pre_RC.reshape(1, -1)
    return row_top_k(flat, budget).view_as(pre_RC)
