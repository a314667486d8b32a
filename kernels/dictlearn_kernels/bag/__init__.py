"""Weighted sums of table rows: the product of a sparse matrix in CSR with a dense one.

With entries in the order of rows it decodes (A @ W). With entries in the order of columns it gives the
gradient of the weights (A.T @ g). Both sum in a fixed order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dictlearn_kernels.bag import reference
from dictlearn_kernels.dispatch import choose

SERVED = (torch.float32, torch.bfloat16, torch.float16)


@torch.library.custom_op("dictlearn::bag", mutates_args=())
def bag(indices: Tensor, starts: Tensor, weights: Tensor, table_CD: Tensor) -> Tensor:
    """out_b = sum over i from starts[b] to starts[b + 1] - 1 of weights[i] table[indices[i]]: [B, D].

    `starts` [B + 1] ascends from 0 to len(indices) and has the dtype of `indices`, int32 or int64.
    Sums are taken in float32 or better; the output has the dtype that weights and table promote to.
    Two runs agree to the bit. No gradient: `sparse_decode` has one.
    """
    dtype = torch.promote_types(weights.dtype, table_CD.dtype)
    if min(len(indices), len(starts) - 1, table_CD.shape[1]) == 0:
        return table_CD.new_zeros(len(starts) - 1, table_CD.shape[1], dtype=dtype)
    match choose("bag", table_CD, unserved(weights, table_CD)):
        case "triton":
            from dictlearn_kernels.bag import triton

            return triton.bag(indices, starts, weights, table_CD, dtype)
        case "reference":
            return reference.bag(indices, starts, weights.to(dtype), table_CD.to(dtype))
    return F.embedding_bag(
        indices,
        table_CD.to(dtype),
        starts,
        mode="sum",
        per_sample_weights=weights.to(dtype),
        include_last_offset=True,
    )


@bag.register_fake
def _(indices: Tensor, starts: Tensor, weights: Tensor, table_CD: Tensor) -> Tensor:
    dtype = torch.promote_types(weights.dtype, table_CD.dtype)
    return table_CD.new_empty(starts.shape[0] - 1, table_CD.shape[1], dtype=dtype)


def unserved(*tensors: Tensor) -> str | None:
    """Why no kernel of sparse products takes these tensors; None where one does."""
    others = [tensor.dtype for tensor in tensors if tensor.dtype not in SERVED]
    return f"{str(others[0]).removeprefix('torch.')}" if others else None
