"""Selection of the largest entries of a dense [R, C] matrix, per row or over the whole of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Selection = tuple[Tensor, Tensor, Tensor]  # row_starts [R+1], columns [nnz] ascending, values [nnz]


def row_top_k(pre_RC: Tensor, k: int) -> Selection:
    """The k largest positive entries of every row, as CSR. No gradient.

    Entries at or below zero are left out even where a row has fewer than k others.
    """
    values, columns = pre_RC.topk(k, dim=1, sorted=False)
    columns, order = columns.sort(dim=1)
    values = values.gather(1, order)
    positive = values > 0
    row_starts = _starts(positive.sum(1))
    if positive.all():
        return row_starts, columns.flatten(), values.flatten()
    return row_starts, columns[positive], values[positive]


def batch_top_k(pre_RC: Tensor, budget: int) -> Selection:
    """The `budget` largest positive entries of the whole matrix, as CSR. No gradient.

    Exact: a lower bound on the smallest winner comes from a sample, the few entries above it are
    then sorted; where the bound proves too high, everything is. Ties go to the lowest position.
    """
    flat = pre_RC.reshape(-1)
    positions, values = _candidates(flat, budget)
    if len(values) > budget:
        smallest = values.kthvalue(len(values) - budget + 1).values
        above = values > smallest
        tied = (values == smallest).nonzero().squeeze(1)
        above[tied[: budget - int(above.sum())]] = True
        positions, values = positions[above], values[above]
    rows = positions // pre_RC.shape[1]
    counts = torch.bincount(rows, minlength=pre_RC.shape[0])
    return _starts(counts), positions % pre_RC.shape[1], values


def interleaved(parts: Sequence[Selection]) -> Selection:
    """Selections over the same rows as one: row r of part p becomes row r * len(parts) + p."""
    if len(parts) == 1:
        return parts[0]
    counts_RP = torch.stack([starts.diff() for starts, _, _ in parts], dim=1)
    rows = torch.arange(counts_RP.numel(), device=counts_RP.device).view_as(counts_RP)
    order = torch.cat([rows[:, p].repeat_interleave(counts_RP[:, p]) for p in range(len(parts))])
    order = order.argsort(stable=True)
    columns = torch.cat([columns for _, columns, _ in parts])[order]
    return _starts(counts_RP.flatten()), columns, torch.cat([v for _, _, v in parts])[order]


def _candidates(flat: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """(positions, values) of at least the `budget` largest positive entries, in order of position."""
    stride = 67  # a prime, so that the sample doesn't fall on a few columns
    sample = flat[::stride]
    wanted = 2 * budget // stride + 16
    bound = flat.new_zeros(())
    if wanted < len(sample):
        bound = sample.topk(wanted).values[-1].clamp(min=0)
    positions = (flat > bound).nonzero().squeeze(1)
    if len(positions) < budget and bound > 0:
        positions = (flat > 0).nonzero().squeeze(1)
    return positions, flat[positions]


def _starts(counts_R: Tensor) -> Tensor:
    starts = counts_R.new_zeros(len(counts_R) + 1)
    torch.cumsum(counts_R, 0, out=starts[1:])
    return starts
