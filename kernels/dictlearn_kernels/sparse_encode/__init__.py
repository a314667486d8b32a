"""Pre-activations at chosen (token, feature) pairs, with gradients for those pairs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.weight_grad import weight_grad


def sparse_encode(
    pattern: Pattern, x_RD: Tensor, W_CD: Tensor, b_C: Tensor, known: Tensor | None = None
) -> Tensor:
    """<x_r, W_c> + b_c at every stored (r, c) of the pattern: [nnz].

    `known` gives the values when the selection has computed them already; they are returned as they
    are. Differentiable in x, W and b, in a fixed order of summation.
    """
    return _SparseEncode.apply(x_RD, W_CD, b_C, pattern, known)


class _SparseEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, W_CD: Tensor, b_C: Tensor, pattern: Pattern, known: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x_RD, W_CD)
        ctx.pattern = pattern
        if known is not None:
            return known.clone()
        return pattern.sampled(x_RD, W_CD) + b_C[pattern.columns]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, W_CD = ctx.saved_tensors
        g = g.contiguous()
        pattern: Pattern = ctx.pattern
        g_x = pattern.matmul(g, W_CD) if ctx.needs_input_grad[0] else None
        g_W = weight_grad(pattern, g, x_RD, W_CD) if ctx.needs_input_grad[1] else None
        g_b = pattern.column_sums(g) if ctx.needs_input_grad[2] else None
        return g_x, g_W, g_b, None, None
