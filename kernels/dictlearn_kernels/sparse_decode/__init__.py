"""y = A @ W for a sparse code A: sums of decoder rows, without a dense code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.weight_grad import weight_grad


def sparse_decode(pattern: Pattern, values: Tensor, W_CD: Tensor) -> Tensor:
    """The sums of W's rows weighted by the stored values: [R, D].

    Differentiable in `values` [nnz] and `W_CD`; the gradient of W is summed in a fixed order, so two
    runs agree to the bit. Entries stored at value zero get their gradient too (JumpReLU needs it).
    """
    return _SparseDecode.apply(values, W_CD, pattern)


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_CD: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W_CD)
        ctx.pattern = pattern
        return pattern.matmul(values, W_CD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_RD: Tensor) -> tuple[Tensor | None, ...]:
        values, W_CD = ctx.saved_tensors
        g_RD = g_RD.contiguous()
        g_values = ctx.pattern.sampled(g_RD, W_CD) if ctx.needs_input_grad[0] else None
        g_W = weight_grad(ctx.pattern, values, g_RD, W_CD) if ctx.needs_input_grad[1] else None
        return g_values, g_W, None
