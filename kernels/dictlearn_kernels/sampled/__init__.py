"""Dot products of the rows of two matrices at stored pairs: the gradient of a code's values."""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn_kernels.bag import unserved
from dictlearn_kernels.dispatch import choose
from dictlearn_kernels.sampled import reference


@torch.library.custom_op("dictlearn::sampled", mutates_args=())
def sampled(
    g_RD: Tensor, W_CD: Tensor, rows: Tensor, columns: Tensor, row_starts: Tensor
) -> Tensor:
    """<g_r, W_c> at every pair (rows[i], columns[i]): [nnz].

    The pairs are the entries of a CSR matrix: rows ascend, and `row_starts` [R + 1] has where each
    begins. All three are int32, or all int64. Sums are taken in float32 or better; the output has the
    dtype that g and W promote to. No gradient: `sparse_encode` has one.
    """
    dtype = torch.promote_types(g_RD.dtype, W_CD.dtype)
    if min(len(rows), g_RD.shape[1]) == 0:
        return g_RD.new_zeros(len(rows), dtype=dtype)
    match choose("sampled", g_RD, unserved(g_RD, W_CD)):
        case "triton":
            from dictlearn_kernels.sampled import triton

            return triton.sampled(g_RD, W_CD, rows, columns, dtype)
        case "reference":
            return reference.sampled(g_RD.to(dtype), W_CD.to(dtype), rows, columns)
    # This is torch's gradient of an embedding bag's weights, which sums in the precision of its inputs.
    wide = torch.promote_types(dtype, torch.float32)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        g_RD.to(wide), W_CD.to(wide), columns, row_starts, rows, 0, -1
    ).to(dtype)


@sampled.register_fake
def _(g_RD: Tensor, W_CD: Tensor, rows: Tensor, columns: Tensor, row_starts: Tensor) -> Tensor:
    dtype = torch.promote_types(g_RD.dtype, W_CD.dtype)
    return g_RD.new_empty(rows.shape[0], dtype=dtype)
