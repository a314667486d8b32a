"""Every entry of a matrix above its column's threshold, in two passes: counted, then taken."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import selection
from dictlearn_kernels.compiled import array, loop
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threads import over

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
