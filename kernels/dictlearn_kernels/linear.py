"""Pre-activations in full, where nothing less will do."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

# glibc gives freed memory of this size or more back to the system. Every page of such a tensor is new
# each time, and the faults cost about a seventh of a selection (2048 rows, 8192 columns of width 512).
GIVEN_BACK = 2**25  # bytes


class _Kept(threading.local):
    room: Tensor | None = None


_kept = _Kept()


def pre_activations(
    x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor, out: Tensor | None = None
) -> Tensor:
    """x_s W_s^T + b_s of every source: [R * S, C], row r of source s at r * S + s."""
    if len(W_SCD) == 1:
        return torch.addmm(b_SC[0], x_RSD[:, 0], W_SCD[0].T, out=out)  # type: ignore[call-overload]
    pre_RSC = x_RSD.new_empty(len(x_RSD), *b_SC.shape) if out is None else out
    pre_RSC = pre_RSC.view(len(x_RSD), *b_SC.shape)
    for s in range(len(W_SCD)):  # straight into its place: no copy of the largest tensor
        torch.mm(x_RSD[:, s], W_SCD[s].T, out=pre_RSC[:, s])
    return pre_RSC.add_(b_SC).flatten(0, 1)


def passing(x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor) -> Tensor:
    """The same without a graph, in memory that this thread's next call overwrites."""
    rows = len(x_RSD) * len(W_SCD)
    return pre_activations(x_RSD, W_SCD, b_SC, _room(rows, W_SCD.shape[1], x_RSD))


def _room(rows: int, columns: int, like: Tensor) -> Tensor | None:
    """Memory for a large [rows, columns] on a CPU, one piece a thread, kept from call to call."""
    numbers = rows * columns
    if like.device.type != "cpu" or numbers * like.element_size() < GIVEN_BACK:
        return None
    kept = _kept.room
    if kept is None or kept.dtype != like.dtype or len(kept) < numbers:
        _kept.room = None  # the old piece goes before the new one comes
        kept = _kept.room = torch.empty(numbers, dtype=like.dtype)
    return kept[:numbers].view(rows, columns)
