"""Dense pre-activations, for routes that need all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn_kernels.memory import kept


def pre_activations(
    x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor, out: Tensor | None = None
) -> Tensor:
    """x_s W_s^T + b_s of every source: [R * S, C], row r of source s at r * S + s."""
    if len(W_SCD) == 1:
        return torch.addmm(b_SC[0], x_RSD[:, 0], W_SCD[0].T, out=out)  # type: ignore[call-overload]
    pre_RSC = x_RSD.new_empty(len(x_RSD), *b_SC.shape) if out is None else out
    pre_RSC = pre_RSC.view(len(x_RSD), *b_SC.shape)
    for s in range(len(W_SCD)):  # written where it belongs: the largest tensor is not copied
        torch.mm(x_RSD[:, s], W_SCD[s].T, out=pre_RSC[:, s])
    return pre_RSC.add_(b_SC).flatten(0, 1)


def passing(x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor) -> Tensor:
    """The same without a graph, on a CPU in a buffer that this thread's next call overwrites."""
    rows, columns = len(x_RSD) * len(W_SCD), W_SCD.shape[1]
    if x_RSD.device.type != "cpu":
        return pre_activations(x_RSD, W_SCD, b_SC)
    out = kept(rows * columns, x_RSD.dtype).view(rows, columns)
    return pre_activations(x_RSD, W_SCD, b_SC, out)
