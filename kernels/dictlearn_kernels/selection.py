"""Selected entries of an [R, C] matrix, as CSR without a gradient, and what narrows them further."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn_kernels.dispatch import by_loops

Selection = tuple[Tensor, Tensor, Tensor]  # row_starts [R+1], columns [nnz] ascending, values [nnz]


def starts(counts_R: Tensor) -> Tensor:
    """The row_starts [R + 1] of rows with these numbers of entries."""
    row_starts = counts_R.new_zeros(len(counts_R) + 1)
    torch.cumsum(counts_R, 0, out=row_starts[1:])
    return row_starts


def of_positive(columns_RK: Tensor, values_RK: Tensor, n_positive: int | None = None) -> Selection:
    """The positive ones among K entries of each row in any order. `n_positive` is their known number."""
    columns_RK, order = columns_RK.sort(dim=1)
    values_RK = values_RK.gather(1, order)
    positive = values_RK > 0
    row_starts = starts(positive.sum(1))
    if n_positive is None:
        n_positive = int(row_starts[-1])
    if n_positive == positive.numel():
        return row_starts, columns_RK.flatten(), values_RK.flatten()
    return row_starts, columns_RK[positive], values_RK[positive]


def where(selection: Selection, keep: Tensor) -> Selection:
    """The entries for which keep (bool [nnz]) is true."""
    row_starts, columns, values = selection
    running = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
    return running[row_starts], columns[keep], values[keep]


def interleaved(parts: Sequence[Selection]) -> Selection:
    """Selections over the same rows as one: row r of part p becomes row r * len(parts) + p."""
    if len(parts) == 1:
        return parts[0]
    values = parts[0][2]
    if values.dtype == torch.float32 and by_loops(values):
        from dictlearn_kernels import csr

        return csr.interleaved(parts)
    counts_RP = torch.stack([row_starts.diff() for row_starts, _, _ in parts], dim=1)
    rows = torch.arange(counts_RP.numel(), device=counts_RP.device).view_as(counts_RP)
    order = torch.cat(
        [
            rows[:, p].repeat_interleave(counts_RP[:, p], output_size=len(columns))
            for p, (_, columns, _) in enumerate(parts)
        ]
    )
    order = order.argsort(stable=True)
    columns = torch.cat([columns for _, columns, _ in parts])[order]
    return starts(counts_RP.flatten()), columns, torch.cat([v for _, _, v in parts])[order]


def largest(selection: Selection, budget: int) -> Selection:
    """The `budget` largest entries of all rows together. Ties go to the first rows."""
    _, _, values = selection
    if len(values) <= budget:
        return selection
    if budget == 0:
        return where(selection, torch.zeros_like(values, dtype=torch.bool))
    smallest = values.kthvalue(len(values) - budget + 1).values
    above = values > smallest
    tied = (values == smallest).nonzero().squeeze(1)
    above[tied[: budget - int(above.sum())]] = True
    return where(selection, above)


def row_largest(selection: Selection, k: int, together: int = 1) -> Selection:
    """The k largest entries of each `together` consecutive rows."""
    row_starts, _, values = selection
    counts = row_starts[::together].diff()
    longest = int(counts.max()) if len(counts) else 0
    if longest <= k:
        return selection
    row = torch.arange(len(counts), device=values.device)
    row = row.repeat_interleave(counts, output_size=len(values))
    entry = torch.arange(len(values), device=values.device)
    padded = values.new_full((len(counts), longest), -torch.inf)
    position = row, entry - row_starts[::together][row]
    padded[position] = values
    kept = torch.zeros_like(padded, dtype=torch.bool)
    kept.scatter_(1, padded.topk(k, dim=1, sorted=False).indices, True)
    return where(selection, kept[position])
