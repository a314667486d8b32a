"""The k largest positive entries of every row, in two passes over rows of pre-activations.

The first finds a threshold that at least k entries reach: the k-th largest of the maxima of groups of
columns. The second keeps what reaches it, which is little more than k. Both go by vectors, because
float32 numbers above zero are ordered as the integers of their bits are, and those below zero as
negative ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import selection
from dictlearn_kernels.compiled import array, loop
from dictlearn_kernels.linear import passing
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threads import over
from dictlearn_kernels.topk_encode.cpu import LANES

GROUPS_PER_PICK = 3  # at least so many groups for each entry that is looked for
INFINITY = 0x7F800000  # as an integer; above it nothing is a number


def serves(x_RD: Tensor, n_columns: int) -> bool:
    return x_RD.device.type == "cpu" and x_RD.dtype == torch.float32 and n_columns % LANES == 0


def topk_encode(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int) -> Selection:
    return largest(passing(x_RD[:, None], W_CD[None], b_C[None]), k)


def largest(pre_RC: Tensor, k: int) -> Selection:
    """The k largest positive entries of every row of a float32 matrix, as CSR."""
    n_rows = len(pre_RC)
    values_RK = pre_RC.new_empty(n_rows, k)
    columns_RK = torch.empty(n_rows, k, dtype=torch.int64)
    counts_R = torch.empty(n_rows, dtype=torch.int64)
    bits = array(pre_RC.view(torch.int32).unflatten(1, (-1, LANES)))
    out = array(values_RK.view(torch.int32)), array(columns_RK), array(counts_R)
    over(n_rows, lambda low, high: _largest(bits, low, high, k, *out))
    row_starts = selection.starts(counts_R)
    if int(row_starts[-1]) == n_rows * k:
        return row_starts, columns_RK.flatten(), values_RK.flatten()
    taken = torch.arange(k) < counts_R[:, None]
    return row_starts, columns_RK[taken], values_RK[taken]


@loop
def _largest(bits, low, high, k, values, columns, counts):
    n_blocks = bits.shape[1]
    n_groups = (GROUPS_PER_PICK * k + LANES - 1) // LANES  # of LANES each
    maxima = np.empty((n_groups, LANES), np.int32)
    all_maxima = maxima.reshape(n_groups * LANES)
    kept = np.empty(n_blocks * LANES, np.int32)
    places = np.empty(n_blocks * LANES, np.int32)
    copy = np.empty(n_blocks * LANES, np.int32)
    for r in range(low, high):
        threshold = np.int32(1)  # the smallest number above zero
        if n_blocks >= 2 * n_groups:
            maxima[:] = 0
            for block in range(n_blocks):
                group = block % n_groups
                for j in range(LANES):
                    x = bits[r, block, j]
                    maxima[group, j] = x if x > maxima[group, j] else maxima[group, j]
            threshold = max(threshold, _kth_largest(all_maxima, n_groups * LANES, k))
        n = 0
        for block in range(n_blocks):
            reached = np.int32(0)
            for j in range(LANES):
                reached |= np.int32(bits[r, block, j] >= threshold)
            if reached:
                for j in range(LANES):
                    x = bits[r, block, j]
                    if x >= threshold:
                        kept[n], places[n] = x, block * LANES + j
                        n += 1
        ties = 0  # that may still be taken
        if n > k:
            copy[:n] = kept[:n]
            threshold = _kth_largest(copy, n, k)
            ties = k
            for i in range(n):
                ties -= kept[i] > threshold
        else:
            threshold = np.int32(0)
        count = 0
        for i in range(n):
            x = kept[i]
            if x == threshold and n > k:
                ties -= 1
                if ties < 0:
                    continue
            if x >= threshold and x <= INFINITY:
                values[r, count], columns[r, count] = x, places[i]
                count += 1
        counts[r] = count


@loop
def _kth_largest(numbers, n, k):
    """Of the first n, which it puts in another order (Hoare's quickselect)."""
    low, high = 0, n - 1
    while low < high:
        pivot = numbers[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while numbers[i] > pivot:
                i += 1
            while numbers[j] < pivot:
                j -= 1
            if i <= j:
                numbers[i], numbers[j] = numbers[j], numbers[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    return numbers[k - 1]
