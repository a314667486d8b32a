"""Every entry of x W^T + b above its column's threshold, without keeping the others.

A matmul in low precision, or a kernel that never writes its results, says by upper bounds which entries
could be above; these are evaluated again in the operands' own precision and compared. So nothing is
missed, whatever the threshold, and nothing needs room set aside: the kernel writes one bit an entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn_kernels import bounds, dispatch, fixed_point, selection
from dictlearn_kernels.linear import passing
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threshold_encode import reference


def threshold_encode(
    x_RD: Tensor,
    W_CD: Tensor,
    b_C: Tensor,
    threshold_C: Tensor | float,
    matmul_dtype: torch.dtype | None = None,
) -> Selection:
    """The entries with x W^T + b > threshold of their column, as CSR. No gradient.

    `matmul_dtype` is a lower precision for the matmul, int16 for 16-bit fixed point; which entries are
    taken, and their values, are those of x's own.
    """
    dtype = matmul_dtype or x_RD.dtype
    fixed = dtype == torch.int16 and fixed_point.serves(x_RD, W_CD) and len(x_RD) > 0
    if dtype == torch.int16:  # where it doesn't serve, float32 is next
        dtype = x_RD.dtype
    loops = dtype == x_RD.dtype and loops_serve(x_RD)
    how = dispatch.choose("threshold_encode", x_RD, _unserved(x_RD, dtype), loops, fixed)
    with torch.no_grad():
        if how == "fixed":
            from dictlearn_kernels.threshold_encode import compiled

            found = compiled.above_fixed(x_RD, W_CD, b_C, threshold_C)
            if found is not None:
                return found
            how = dispatch.choose("threshold_encode", x_RD, _unserved(x_RD, dtype), loops)
        if how == "reference" or len(x_RD) == 0:
            return reference.threshold_encode(x_RD, W_CD, b_C, threshold_C)
        if how == "compiled":
            from dictlearn_kernels.threshold_encode import compiled

            return compiled.threshold_encode(x_RD, W_CD, b_C, threshold_C)
        if how == "cpu" and not bounds.certifies(x_RD, dtype):
            pre_RC = passing(x_RD[:, None], W_CD[None], b_C[None])
            return reference.select_above(pre_RC, threshold_C)
        if not isinstance(threshold_C, Tensor):  # made there: a GPU would be waited for
            threshold_C = torch.full((), threshold_C, dtype=x_RD.dtype, device=x_RD.device)
        threshold_C = threshold_C.to(x_RD.dtype).expand(len(W_CD)).contiguous()
        if how == "triton":
            rows, columns = _places(contenders(x_RD, W_CD, b_C, threshold_C, dtype, how))
        else:
            upper_RC = bounds.upper_bounds(x_RD, W_CD, b_C, dtype)
            rows, columns = (upper_RC > threshold_C).nonzero(as_tuple=True)
        row_starts = selection.starts(torch.bincount(rows, minlength=len(x_RD)))
        values = bounds.at(x_RD, W_CD, b_C, row_starts, columns)
        return selection.where((row_starts, columns, values), values > threshold_C[columns])


def loops_serve(x: Tensor) -> bool:
    """Whether a compiled loop finds what is above a threshold."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and not torch.compiler.is_compiling()


def _places(words_RW: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) of the bits that are set, in order."""
    rows, words = words_RW.nonzero(as_tuple=True)
    bits = torch.arange(32, device=words.device, dtype=torch.int32)
    found, bit = (words_RW[rows, words][:, None] >> bits & 1).nonzero(as_tuple=True)
    return rows[found], words[found] * 32 + bit


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


def _unserved(x_RD: Tensor, dtype: torch.dtype) -> str | None:
    served = x_RD.dtype == torch.float32 and dtype in bounds.KERNEL_DTYPES
    return None if served else f"{dtype} of {x_RD.dtype}"
