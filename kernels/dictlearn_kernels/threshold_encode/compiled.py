"""Every entry of a matrix above its column's threshold, in two passes: counted, then taken.

In fixed point upper bounds say which entries could be above; those are evaluated in float32. Where they
are so many that this would take longer than it saves, nothing is returned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import fixed_point, selection
from dictlearn_kernels.compiled import array, loop
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threads import over

CROWDED = 0.03  # of a few rows' entries: evaluating more takes longer than float32 throughout
BLOCK = 16  # entries that are looked at together first: most have none above


def above(pre_RC: Tensor, threshold_C: Tensor | float) -> Selection:
    """The entries of a contiguous float32 matrix above their column's threshold, as CSR."""
    n_rows, n_columns = pre_RC.shape
    threshold_C = torch.as_tensor(threshold_C, dtype=pre_RC.dtype).expand(n_columns).contiguous()
    counts_R = torch.empty(n_rows, dtype=torch.int64)
    pre, threshold, counts = array(pre_RC), array(threshold_C), array(counts_R)
    over(n_rows, lambda low, high: _count(low, high, pre, threshold, counts))
    row_starts = selection.starts(counts_R)
    values = pre_RC.new_empty(int(row_starts[-1]))
    columns = torch.empty(len(values), dtype=torch.int64)
    out = array(row_starts), array(columns), array(values)
    over(n_rows, lambda low, high: _take(low, high, pre, threshold, *out))
    return row_starts, columns, values


def above_fixed(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, threshold_C: Tensor | float
) -> Selection | None:
    """The entries of x W^T + b above their column's threshold, as CSR; None where many could be."""
    of = fixed_point.bounded(x_RD, W_CD, b_C)
    if of is None:
        return None
    threshold_C = torch.as_tensor(threshold_C, dtype=x_RD.dtype).expand(len(W_CD))
    threshold_C = torch.nn.functional.pad(threshold_C, (0, -len(W_CD) % fixed_point.PAD))
    threshold = array(threshold_C)
    crowded = []

    def tiles(low: int, high: int) -> list[tuple[Any, Any, Any]]:
        parts = []
        for rows, bounds, found in fixed_point.upper(of, low, high):
            _contenders(bounds, threshold, found.starts, found.columns)
            if found.starts[-1] > CROWDED * bounds.size:
                crowded.append(rows)
            if crowded:
                break
            found.evaluate(rows)
            _keep(threshold, *found[:3])
            n = found.starts[-1]
            parts.append(
                (np.diff(found.starts), found.columns[:n].copy(), found.entries[:n].copy())
            )
        return parts

    parts = over(fixed_point.n_tiles(of), tiles)
    if crowded:
        return None
    counts_R, columns, values = (
        torch.from_numpy(np.concatenate(several))
        for several in zip(*(one for some in parts for one in some), strict=True)
    )
    return selection.starts(counts_R), columns, values


@loop
def _contenders(bounds, threshold, starts, columns):
    n_columns = bounds.shape[1]
    for r in range(len(bounds)):
        n = starts[r]
        for first in range(0, n_columns, BLOCK):
            reached = np.int32(0)
            for c in range(first, first + BLOCK):
                reached |= np.int32(bounds[r, c] > threshold[c])
            if reached:
                for c in range(first, first + BLOCK):
                    columns[n] = c
                    n += bounds[r, c] > threshold[c]
        starts[r + 1] = n


@loop
def _keep(threshold, starts, columns, entries):
    """Only what is above, in place."""
    n = first = 0
    for r in range(len(starts) - 1):
        last = starts[r + 1]
        for i in range(first, last):
            columns[n], entries[n] = columns[i], entries[i]
            n += entries[n] > threshold[columns[n]]
        first = last
        starts[r + 1] = n


@loop
def _count(low, high, pre, threshold, counts):
    for r in range(low, high):
        n = np.int32(0)
        for c in range(pre.shape[1]):
            n += np.int32(pre[r, c] > threshold[c])
        counts[r] = n


@loop
def _take(low, high, pre, threshold, row_starts, columns, values):
    n_columns = pre.shape[1]
    for r in range(low, high):
        i, stop = row_starts[r], row_starts[r + 1]
        for first in range(0, n_columns, BLOCK):
            if i == stop:
                break
            last = min(first + BLOCK, n_columns)
            reached = np.int32(0)
            for c in range(first, last):
                reached |= np.int32(pre[r, c] > threshold[c])
            if reached:
                for c in range(first, last):
                    if pre[r, c] > threshold[c]:
                        columns[i], values[i] = c, pre[r, c]
                        i += 1
