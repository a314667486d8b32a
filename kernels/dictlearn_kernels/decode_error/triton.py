"""decode_error on a GPU: one program for every row gathers the rows of W once.

The program goes over slices of the width. The slices of the first BLOCK_K entries stay in registers from
the reconstruction to the products with the error. Further entries are read again, from the first cache.
No two programs write to one address.
"""

# pyright: reportArgumentType=false
# A launch passes numbers where the kernel says constexpr.

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.bag.triton import TYPES
from dictlearn_kernels.shipped import Variant


@triton.jit
def _tile(W, columns, i, end, d, D):
    """The rows of W for entries i, at d, zero outside: fp32 [BLOCK_K, BLOCK_D]."""
    column = tl.load(columns + i, mask=i < end, other=0).to(tl.int64)
    inside = (i < end)[:, None] & (d < D)[None, :]
    return tl.load(W + column[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _values(values, i, end):
    return tl.load(values + i, mask=i < end, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["y_stride", "n_bias"])
def _decode_error_kernel(
    errors,  # fp32 [R]
    e,  # [R, D]
    along,  # fp32 [nnz]
    row_starts,
    columns,
    values,
    W,
    y,
    bias,  # [n_bias, D], or None
    y_stride,
    n_bias,
    D,
    WANTS_VALUES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(row_starts + row).to(tl.int64)
    end = tl.load(row_starts + row + 1).to(tl.int64)
    head = begin + tl.arange(0, BLOCK_K)
    head_values = _values(values, head, end)
    head_along = tl.zeros((BLOCK_K,), tl.float32)
    squares = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        head_tile = _tile(W, columns, head, end, d, D)
        sums = tl.sum(head_values[:, None] * head_tile, 0)
        for more in range(begin + BLOCK_K, end, BLOCK_K):
            i = more + tl.arange(0, BLOCK_K)
            sums += tl.sum(_values(values, i, end)[:, None] * _tile(W, columns, i, end, d, D), 0)
        target = tl.load(y + row * y_stride + d, mask=d < D, other=0.0).to(tl.float32)
        if bias is not None:
            b = tl.load(bias + (row % n_bias) * D + d, mask=d < D, other=0.0)
            target -= b.to(tl.float32)
        error = target - sums  # zero outside, like both
        squares += error * error
        tl.store(e + row * D + d, error.to(e.dtype.element_ty), mask=d < D)
        if WANTS_VALUES:
            head_along += tl.sum(head_tile * error[None, :], 1)
            for more in range(begin + BLOCK_K, end, BLOCK_K):
                i = more + tl.arange(0, BLOCK_K)
                # The sums of earlier slices were stored before the barrier.
                before = tl.load(along + i, mask=(i < end) & (first > 0), other=0.0)
                product = tl.sum(_tile(W, columns, i, end, d, D) * error[None, :], 1)
                tl.store(along + i, before + product, mask=i < end)
            tl.debug_barrier()
    tl.store(errors + row, tl.sum(squares, 0))
    if WANTS_VALUES:
        tl.store(along + head, head_along, mask=head < end)


# 64 entries are more than most codes have, and 64 of the width fill whole lines of the cache. A thread
# has 16 numbers: with 32, unaligned addresses spill registers.
SIZES = {"BLOCK_K": 64, "BLOCK_D": 64}
WARPS = {"num_warps": 8}


def decode_error(
    row_starts: Tensor,
    columns: Tensor,
    values: Tensor,
    W_CD: Tensor,
    y_RD: Tensor,
    bias_SD: Tensor | None,
    wants_values: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    R, D = y_RD.shape
    if y_RD.stride(1) != 1:
        y_RD = y_RD.contiguous()
    errors_R = y_RD.new_empty(R, dtype=torch.float32)
    e_RD = y_RD.new_empty(R, D, dtype=dtype)
    along = y_RD.new_empty(len(columns) if wants_values else 0, dtype=torch.float32)
    _decode_error_kernel[(R,)](
        errors_R,
        e_RD,
        along,
        row_starts.contiguous(),
        columns.contiguous(),
        values.contiguous(),
        W_CD.contiguous(),
        y_RD,
        None if bias_SD is None else bias_SD.contiguous(),
        y_RD.stride(0),
        1 if bias_SD is None else len(bias_SD),
        D,
        WANTS_VALUES=wants_values,
        **SIZES,
        **WARPS,
    )
    return errors_R.sum().to(dtype), e_RD, along.to(dtype)


def shipped() -> list[Variant]:
    variants = []
    for value, table, index in TYPES:
        everything = {
            "errors": "*fp32",
            "e": f"*{value}",
            "along": "*fp32",
            "row_starts": f"*{index}",
            "columns": f"*{index}",
            "values": f"*{value}",
            "W": f"*{table}",
            "y": f"*{value}",
            "bias": f"*{value}",
            "y_stride": "i32",
            "n_bias": "i32",
            "D": "i32",
        }
        for has_bias, wants_values in product((False, True), (False, True)):
            signature = dict(everything)
            constants: dict[str, Any] = {"WANTS_VALUES": wants_values, **SIZES}
            if not has_bias:
                del signature["bias"]
                constants["bias"] = None
            variants.append(Variant(_decode_error_kernel, signature, constants, **WARPS))
    return variants
