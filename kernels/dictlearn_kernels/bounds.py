"""What a matmul in low precision can be wrong by at most, entry for entry.

With x' and W' the operands after rounding, e their rows' distances from what they were:

    <x, W> - <x', W'> = <x - x', W> + <x', W - W'>   <=   e_x |W| + (|x| + e_x) e_W

by Cauchy and Schwarz: the distances are measured, not derived from the number format. The sum over D
products adds at most D unit roundoffs of |x'| |W'|. An upper bound of every entry is then an exact
certificate: what lies below a threshold by its upper bound lies below it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.rounded import SLACK, rounded

# Of a float32 accumulation that may cut off where it should round, as tensor cores do.
ROUNDOFF = 2.0**-23
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
    """Whether torch's own matmul in `dtype` is worth a certificate, and its error known.

    On a GPU torch may sum bfloat16 in bfloat16, which no bound here covers.
    """
    lower = x_RD.element_size() > dtype.itemsize and x_RD.is_floating_point()
    return lower and dtype in KERNEL_DTYPES and x_RD.device.type == "cpu"


def terms(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, dtype: torch.dtype) -> Terms:
    """The parts of the upper bounds of x W^T + b, for a matmul in `dtype` that sums in float32.

    A number too large for `dtype` makes its row's error infinite, and with it the bound.
    """
    x, W = rounded(x_RD, dtype), rounded(W_CD, dtype)
    gamma = (x_RD.shape[1] + 16) * ROUNDOFF
    reach_R = x.norm_R + x.error_R
    over_R = x.error_R + 2 * gamma * reach_R
    norm_C = W.norm_R + W.error_R
    bias_C = b_C + 2.0**-20 * b_C.abs()
    return Terms(x.low_RD, W.low_RD, over_R, reach_R, norm_C, W.error_R, bias_C)


def upper_bounds(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, dtype: torch.dtype) -> Tensor:
    """An upper bound, in x's dtype, of every entry of x W^T + b: [R, C], inf where none is known."""
    t = terms(x_RD, W_CD, b_C, dtype)
    upper_RC = (t.x_RD @ t.W_CD.T).to(x_RD.dtype)
    bias_C = t.bias_C
    if dtype != x_RD.dtype:  # then the product was rounded as well, or was too small to be kept
        info = torch.finfo(dtype)
        upper_RC.add_(upper_RC.abs(), alpha=info.eps / 2 * SLACK)
        bias_C = bias_C + info.tiny
    left_R3 = torch.stack([t.over_R, t.reach_R, torch.ones_like(t.over_R)], dim=1)
    right_3C = torch.stack([t.norm_C, t.error_C, bias_C])
    upper_RC.addmm_(left_R3, right_3C)
    return upper_RC.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def at(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:
    """The entries of x W^T + b at chosen places, in x's own precision: [nnz]."""
    return Pattern(row_starts, columns, len(W_CD)).sampled(x_RD, W_CD) + b_C[columns]
