"""The decode error row by row: W is read for the error, and again, from the cache, for `along`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels.compiled import array, check_csr, sizes, sums
from dictlearn_kernels.threads import over


def decode_error(
    row_starts: Tensor,
    columns: Tensor,
    values: Tensor,
    W_CD: Tensor,
    y_RD: Tensor,
    bias_SD: Tensor | None,
    wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(||e||^2, e [R, D], <W_c, e_r> at every entry [nnz] or [0] unless wants_values)."""
    bias_SD = y_RD.new_zeros(1, y_RD.shape[-1]) if bias_SD is None else bias_SD
    n_rows = sizes(W_CD=W_CD, y_RD=y_RD, bias_SD=bias_SD)["R"]
    check_csr(row_starts, columns, values, n_rows)
    if not len(bias_SD) or W_CD.dtype != values.dtype:
        raise ValueError("bias_SD is empty, or values and W_CD differ in dtype")
    W_CD, y_RD = W_CD.contiguous(), y_RD.contiguous()  # a CLT's targets lie apart in a batch
    e_RD, squares_R = torch.empty_like(y_RD), y_RD.new_empty(len(y_RD), dtype=torch.float64)
    along = y_RD.new_empty(len(columns) if wants_values else 0)
    arrays = [
        array(t) for t in (row_starts, columns, values, W_CD, y_RD, bias_SD, e_RD, squares_R, along)
    ]
    over(len(y_RD), lambda low, high: _rows(low, high, *arrays))
    return squares_R.sum().to(y_RD.dtype), e_RD, along


@sums
def _rows(low, high, row_starts, columns, values, W, y, bias, e, squares, along):
    D, S = W.shape[1], bias.shape[0]
    left = np.empty(D, W.dtype)
    for r in range(low, high):
        s, i, stop = r % S, row_starts[r], row_starts[r + 1]
        for d in range(D):
            left[d] = y[r, d] - bias[s, d]
        while i + 4 <= stop:  # four rows at a time, so that four are on their way from memory
            w0, w1 = W[columns[i]], W[columns[i + 1]]
            w2, w3 = W[columns[i + 2]], W[columns[i + 3]]
            a0, a1, a2, a3 = values[i], values[i + 1], values[i + 2], values[i + 3]
            for d in range(D):
                left[d] -= a0 * w0[d] + a1 * w1[d] + a2 * w2[d] + a3 * w3[d]
            i += 4
        while i < stop:
            w, a = W[columns[i]], values[i]
            for d in range(D):
                left[d] -= a * w[d]
            i += 1
        square = np.float32(0)
        for d in range(D):
            e[r, d] = left[d]
            square += left[d] * left[d]
        squares[r] = square
        if len(along) == 0:
            continue
        i = row_starts[r]
        while i + 4 <= stop:
            w0, w1 = W[columns[i]], W[columns[i + 1]]
            w2, w3 = W[columns[i + 2]], W[columns[i + 3]]
            t0 = t1 = t2 = t3 = np.float32(0)
            for d in range(D):
                x = left[d]
                t0 += x * w0[d]
                t1 += x * w1[d]
                t2 += x * w2[d]
                t3 += x * w3[d]
            along[i], along[i + 1], along[i + 2], along[i + 3] = t0, t1, t2, t3
            i += 4
        while i < stop:
            w = W[columns[i]]
            t = np.float32(0)
            for d in range(D):
                t += left[d] * w[d]
            along[i] = t
            i += 1
