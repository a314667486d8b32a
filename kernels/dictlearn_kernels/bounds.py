"""Upper bounds of every entry of x W^T + b, from a matmul in low precision (derivations.md, section 1).

Such bounds are a certificate: an entry whose upper bound is below a threshold is below it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.rounded import SLACK, rounded

ROUNDOFF = 2.0**-23  # of a float32 sum that may truncate instead of round, as in tensor cores
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # whose sums are float32


class Terms(NamedTuple):
    """entry (r, c) <= <x'_r, W'_c> + over_R * norm_C + reach_R * error_C + bias_C."""

    x_RD: Tensor  # rounded
    W_CD: Tensor  # rounded
    over_R: Tensor
    reach_R: Tensor
    norm_C: Tensor
    error_C: Tensor
    bias_C: Tensor


def certifies(x_RD: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch's matmul in `dtype` is a lower precision than x's, and its error is known.

    On a GPU torch may sum bfloat16 in bfloat16, and no bound here covers that.
    """
    lower = x_RD.element_size() > dtype.itemsize and x_RD.is_floating_point()
    return lower and dtype in KERNEL_DTYPES and x_RD.device.type == "cpu"


def terms(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, dtype: torch.dtype) -> Terms:
    """The terms of the upper bounds of x W^T + b, for a matmul in `dtype` that sums in float32.

    A number too large for `dtype` makes its row's error infinite, and so the bound.
    """
    x, W = rounded(x_RD, dtype), rounded(W_CD, dtype)
    gamma = (x_RD.shape[1] + 16) * ROUNDOFF
    reach_R = x.norm_R + x.error_R
    over_R = x.error_R + 2 * gamma * reach_R
    norm_C = W.norm_R + W.error_R
    bias_C = b_C + 2.0**-20 * b_C.abs()
    return Terms(x.low_RD, W.low_RD, over_R, reach_R, norm_C, W.error_R, bias_C)


def upper_bounds(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, dtype: torch.dtype) -> Tensor:
    """Upper bounds of all entries of x W^T + b, in x's dtype: [R, C], inf where none is known."""
    t = terms(x_RD, W_CD, b_C, dtype)
    upper_RC = (t.x_RD @ t.W_CD.T).to(x_RD.dtype)
    bias_C = t.bias_C
    if dtype != x_RD.dtype:  # the product was rounded too, or underflowed
        info = torch.finfo(dtype)
        upper_RC.add_(upper_RC.abs(), alpha=info.eps / 2 * SLACK)
        bias_C = bias_C + info.tiny
    left_R3 = torch.stack([t.over_R, t.reach_R, torch.ones_like(t.over_R)], dim=1)
    right_3C = torch.stack([t.norm_C, t.error_C, bias_C])
    upper_RC.addmm_(left_R3, right_3C)
    return upper_RC.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def at(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:
    """The entries of x W^T + b at stored (row, column) pairs, in x's own precision: [nnz]."""
    return Pattern(row_starts, columns, len(W_CD)).sampled(x_RD, W_CD) + b_C[columns]
