"""Sampled dot products on a GPU: one program for every 8 consecutive pairs.

Programs do equal work however unequal rows are. Pairs of one row are neighbours, so that all but the
first read the row from the first cache.
"""

# pyright: reportArgumentType=false
# A launch passes numbers where the kernel says constexpr.

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.bag.triton import TYPES
from dictlearn_kernels.shipped import Variant


@triton.jit(do_not_specialize=["nnz"])
def _sampled_kernel(
    out,  # [nnz]
    g,
    W,
    rows,
    columns,
    nnz,
    D,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    row = tl.load(rows + i, mask=i < nnz, other=0).to(tl.int64)
    column = tl.load(columns + i, mask=i < nnz, other=0).to(tl.int64)
    acc = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        inside = (i < nnz)[:, None] & (d < D)[None, :]
        g_KD = tl.load(g + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        W_KD = tl.load(W + column[:, None] * D + d[None, :], mask=inside, other=0.0)
        acc += g_KD * W_KD.to(tl.float32)
    tl.store(out + i, tl.sum(acc, 1).to(out.dtype.element_ty), mask=i < nnz)


def config(D: int) -> dict[str, int]:
    """8 pairs and 256 of the width: a thread has 16 numbers of each of three tiles."""
    block_d = 32 if D <= 32 else 256
    return {"BLOCK_K": 8, "BLOCK_D": block_d, "num_warps": max(1, block_d // 64)}


def sampled(
    g_RD: Tensor, W_CD: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype
) -> Tensor:
    nnz, D = len(rows), W_CD.shape[1]
    out = g_RD.new_empty(nnz, dtype=dtype)
    sizes = config(D)
    _sampled_kernel[(triton.cdiv(nnz, sizes["BLOCK_K"]),)](
        out,
        g_RD.contiguous(),
        W_CD.contiguous(),
        rows.contiguous(),
        columns.contiguous(),
        nnz,
        D,
        **sizes,
    )
    return out


def shipped() -> list[Variant]:
    variants = []
    for (g, W, index), D in product(TYPES, (32, 256)):
        sizes = config(D)
        warps = sizes.pop("num_warps")
        signature = {
            "out": f"*{g}",
            "g": f"*{g}",
            "W": f"*{W}",
            "rows": f"*{index}",
            "columns": f"*{index}",
            "nnz": "i32",
            "D": "i32",
        }
        variants.append(Variant(_sampled_kernel, signature, sizes, num_warps=warps))
    return variants
