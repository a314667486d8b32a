"""Pre-activations in full, where nothing less will do."""

from __future__ import annotations

import torch
from torch import Tensor


def pre_activations(x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor) -> Tensor:
    """x_s W_s^T + b_s of every source: [R * S, C], row r of source s at r * S + s."""
    if len(W_SCD) == 1:
        return torch.addmm(b_SC[0], x_RSD[:, 0], W_SCD[0].T)
    pre_RSC = x_RSD.new_empty(len(x_RSD), *b_SC.shape)
    for s in range(len(W_SCD)):  # straight into its place: no copy of the largest tensor
        torch.mm(x_RSD[:, s], W_SCD[s].T, out=pre_RSC[:, s])
    return pre_RSC.add_(b_SC).flatten(0, 1)
