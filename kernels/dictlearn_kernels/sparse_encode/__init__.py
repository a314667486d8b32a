"""Pre-activations at selected (token, feature) pairs, with gradients for only those pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.weight_grad import weight_grad

PARTS = 32  # of the product of a row with a matrix, which torch gives to one thread as a whole


def sparse_encode(
    pattern: Pattern,
    x_RD: Tensor,
    W_CD: Tensor,
    b_C: Tensor,
    known: Tensor | None = None,
    centre_SD: Tensor | None = None,
) -> Tensor:
    """<x_r, W_c> + b_c at every stored (r, c) of the pattern: [nnz].

    `known` are the values if the selection has computed them already; they are returned as they are.
    `centre_SD` is what the caller subtracted from x: centre s from the rows r with r % S = s, whose
    entries lie in the s-th of S equal ranges of columns. It gets its gradient here, by one product with
    W, whereas a gradient through x would gather rows of W for each row of x. Differentiable in x, W, b
    and centre, in a fixed order of summation.
    """
    return _SparseEncode.apply(x_RD, W_CD, b_C, centre_SD, pattern, known)


class _SparseEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        W_CD: Tensor,
        b_C: Tensor,
        centre_SD: Tensor | None,
        pattern: Pattern,
        known: Tensor | None,
    ) -> Tensor:
        ctx.n_centres = 0 if centre_SD is None else len(centre_SD)
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
        wants_b, wants_centre = ctx.needs_input_grad[2:4]
        g_b = g_centre = None
        if wants_b or wants_centre:
            sums = pattern.column_sums(g)
            g_b = sums if wants_b else None
        if wants_centre:
            n = ctx.n_centres
            n_parts = n * math.gcd(len(sums) // n, PARTS)
            parts = torch.bmm(sums.view(n_parts, 1, -1), W_CD.view(n_parts, -1, W_CD.shape[1]))
            g_centre = -parts.view(n, -1, W_CD.shape[1]).sum(1)
        return g_x, g_W, g_b, g_centre, None, None
