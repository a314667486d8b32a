"""Every entry of x W^T + b above its column's threshold, without keeping the others.

A matmul in low precision, or a kernel that never writes its product, says by upper bounds which entries
could be above. These are evaluated again in x's own precision and compared. So nothing is missed,
whatever the threshold, and no room is set aside for results: the kernel writes one bit an entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn_kernels import bounds, routes, selection
from dictlearn_kernels.linear import passing
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threshold_encode import compiled, reference


@torch.no_grad()
def threshold_encode(
    x_RD: Tensor,
    W_CD: Tensor,
    b_C: Tensor,
    threshold_C: Tensor | float,
    matmul_dtype: torch.dtype | None = None,
) -> Selection:
    """The entries with x W^T + b above the threshold of their column, as CSR. No gradient.

    `matmul_dtype` is a lower precision for the matmul, int16 for fixed point; the selected entries and
    their values are those of x's own precision.
    """
    inputs = x_RD, W_CD, b_C, threshold_C

    def dense() -> Selection:
        pre_RC = passing(x_RD[:, None], W_CD[None], b_C[None])
        return reference.select_above(pre_RC, threshold_C)

    implementations = routes.Routes(
        fixed=lambda: compiled.above_fixed(*inputs),
        loop=lambda: compiled.threshold_encode(*inputs),
        dense=dense,
        certified=lambda dtype, how: _certified(*inputs, dtype, how),
        reference=lambda: reference.threshold_encode(*inputs),
    )
    return routes.select("threshold_encode", x_RD, W_CD, matmul_dtype, implementations)


def _certified(
    x_RD: Tensor,
    W_CD: Tensor,
    b_C: Tensor,
    threshold_C: Tensor | float,
    dtype: torch.dtype,
    how: str,
) -> Selection:
    if not isinstance(threshold_C, Tensor):  # made on the device: a copy synchronises with a GPU
        threshold_C = torch.full((), threshold_C, dtype=x_RD.dtype, device=x_RD.device)
    threshold_C = threshold_C.to(x_RD.dtype).expand(len(W_CD)).contiguous()
    if how == "triton":
        rows, columns = _set_bits(contenders(x_RD, W_CD, b_C, threshold_C, dtype, how))
    else:
        upper_RC = bounds.upper_bounds(x_RD, W_CD, b_C, dtype)
        rows, columns = (upper_RC > threshold_C).nonzero(as_tuple=True)
    row_starts = selection.starts(torch.bincount(rows, minlength=len(x_RD)))
    values = bounds.at(x_RD, W_CD, b_C, row_starts, columns)
    return selection.where((row_starts, columns, values), values > threshold_C[columns])


def _set_bits(words_RW: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) of the bits that are set, in order."""
    rows, words = words_RW.nonzero(as_tuple=True)
    bits = torch.arange(32, device=words.device, dtype=torch.int32)
    entries, bit = (words_RW[rows, words][:, None] >> bits & 1).nonzero(as_tuple=True)
    return rows[entries], words[entries] * 32 + bit


@torch.library.custom_op("dictlearn::threshold_contenders", mutates_args=())
def contenders(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, threshold_C: Tensor, dtype: torch.dtype, how: str
) -> Tensor:
    """Which entries could be above their threshold, 32 columns a word: int32 [R, C / 32]."""
    if how == "triton":
        from dictlearn_kernels.threshold_encode import triton

        return triton.contenders(x_RD, W_CD, b_C, threshold_C, dtype)
    return reference.contenders(bounds.upper_bounds(x_RD, W_CD, b_C, dtype), threshold_C)


@contenders.register_fake
def _(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, threshold_C: Tensor, dtype: torch.dtype, how: str
) -> Tensor:
    return x_RD.new_empty((len(x_RD), (len(W_CD) + 31) // 32), dtype=torch.int32)
