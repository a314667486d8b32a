"""Rounding in one pass on a GPU: a program reads a row, rounds it and sums both norms."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# A launch takes numbers where the kernel says constexpr, and options of its own.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.shipped import Variant

WIDEST = 1024  # numbers of a row at once: 4 in a thread


@triton.jit
def rounded_kernel(x_ptr, low_ptr, norm_ptr, error_ptr, stride, D, slack, SIZE: tl.constexpr):
    """Writes a row's copy, its norm and the copy's error. Rows of x are `stride` numbers apart."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros((SIZE,), tl.float32)
    error_square = tl.zeros((SIZE,), tl.float32)
    for start in range(0, D, SIZE):
        d = start + tl.arange(0, SIZE)
        inside = d < D
        x = tl.load(x_ptr + row * stride + d, mask=inside, other=0.0)
        low = x.to(low_ptr.dtype.element_ty)
        tl.store(low_ptr + row * D + d, low, mask=inside)
        error = x - low.to(tl.float32)
        square += x * x
        error_square += error * error
    tl.store(norm_ptr + row, tl.sqrt_rn(tl.sum(square)) * slack)
    tl.store(error_ptr + row, tl.sqrt_rn(tl.sum(error_square)) * slack)


def rounded(x_RD: Tensor, dtype: torch.dtype, slack: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x in `dtype` [R, D], norms of its rows [R], norms of their rounding errors [R])."""
    R, D = x_RD.shape
    if x_RD.stride(1) != 1:  # rows may lie apart, but not the numbers of a row
        x_RD = x_RD.contiguous()
    low_RD = x_RD.new_empty(R, D, dtype=dtype)
    norm_R, error_R = x_RD.new_empty(R), x_RD.new_empty(R)
    if R:
        size = min(WIDEST, triton.next_power_of_2(D))
        rounded_kernel[(R,)](
            x_RD, low_RD, norm_R, error_R, x_RD.stride(0), D, slack,
            SIZE=size, num_warps=warps(size),
        )  # fmt: skip
    return low_RD, norm_R, error_R


def warps(size: int) -> int:
    return max(1, size // 128)


def shipped() -> list[Variant]:
    sizes = {"stride": "i32", "D": "i32", "slack": "fp32"}
    norms = {"norm_ptr": "*fp32", "error_ptr": "*fp32"}
    return [
        Variant(
            rounded_kernel,
            {"x_ptr": "*fp32", "low_ptr": f"*{low}", **norms, **sizes},
            {"SIZE": size},
            warps(size),
        )
        for low in ("fp16", "bf16")
        for size in (64, WIDEST)
    ]
