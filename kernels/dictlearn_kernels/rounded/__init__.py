"""A matrix in a lower precision, and how far rounding moved its rows: what an error bound is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn_kernels.dispatch import choose
from dictlearn_kernels.rounded import reference

SLACK = 1 + 2.0**-10  # on norms, for the rounding of the norms themselves
LOW = (torch.bfloat16, torch.float16)  # what the kernel rounds to


class Rounded(NamedTuple):
    """A matrix in a lower precision; its rows' norms before, and how far rounding moved them."""

    low_RD: Tensor
    norm_R: Tensor
    error_R: Tensor


def rounded(x_RD: Tensor, dtype: torch.dtype) -> Rounded:
    """`x_RD` in `dtype`, contiguous, with norms that are no smaller than the true ones. No gradient.

    A number too large for `dtype` makes its row's error infinite; where a row has inf or NaN its error
    is not a number. On a GPU rows are read once: 6 bytes a number, where torch's calls take 24.
    """
    if dtype == x_RD.dtype:  # nothing is rounded
        norm_R = torch.linalg.vector_norm(x_RD, dim=1) * SLACK
        return Rounded(x_RD.contiguous(), norm_R, torch.zeros_like(norm_R))
    if choose("rounded", x_RD, _unserved(x_RD, dtype)) == "triton":
        from dictlearn_kernels.rounded import triton

        return Rounded(*triton.rounded(x_RD, dtype, SLACK))
    return Rounded(*reference.rounded(x_RD, dtype, SLACK))


def _unserved(x_RD: Tensor, dtype: torch.dtype) -> str | None:
    served = x_RD.dtype == torch.float32 and dtype in LOW
    return None if served else f"{dtype} of {x_RD.dtype}"
