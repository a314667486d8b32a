"""The squared error of decoding a sparse code, and all that its gradients need, in one pass.

    e = y - bias - A W,    error = ||e||^2,    d error / d a_rc = -2 <W_c, e_r>

The gradients of the values need the rows of W that decoding has just gathered, and only a factor from
the backward pass. So the forward pass computes them, and neither y_hat nor its gradient exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictlearn_kernels.bag import unserved
from dictlearn_kernels.dispatch import choose, loops_serve
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.weight_grad import weight_grad


def decode_error(
    pattern: Pattern,
    values: Tensor,
    W_CD: Tensor,
    y_RD: Tensor,
    bias_SD: Tensor | None = None,
    weights: Sequence[float] = (1.0,),
) -> tuple[Tensor, Tensor]:
    """(sum_g weights[g] ||e_g||^2, e [R, D] of the last g without gradient).

    With one weight e = y - bias - A W, where row r has bias r % S. With G weights the pattern has G * R
    rows, first those of part 0 of a code, then those of part 1 and so on (`Pattern.stacked`), and e_g
    subtracts the first g + 1 parts from y: these are nested prefixes of one code.

    Differentiable in `values` [nnz], W, y and bias, in a fixed order of summation. Entries stored at
    value zero get their gradient too (JumpReLU needs it).
    """
    assert pattern.n_rows == len(weights) * len(y_RD)
    return _DecodeError.apply(values, W_CD, y_RD, bias_SD, pattern, tuple(weights))  # type: ignore[return-value]


class _DecodeError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        W_CD: Tensor,
        y_RD: Tensor,
        bias_SD: Tensor | None,
        pattern: Pattern,
        weights: tuple[float, ...],
    ) -> tuple[Tensor, Tensor]:
        wants_values = ctx.needs_input_grad[0]
        if len(weights) == 1:
            error, e_RD, along = _one(
                pattern.row_starts, pattern.columns, pattern.rows, values, W_CD, y_RD, bias_SD,
                wants_values,
            )  # fmt: skip
            error, direction = error * weights[0], e_RD
        else:
            error, e_RD, direction, along = _nested(
                pattern, values, W_CD, y_RD, bias_SD, weights, wants_values
            )
        ctx.save_for_backward(values, W_CD, direction, along)
        ctx.pattern = pattern
        ctx.scale = -2 * (weights[0] if len(weights) == 1 else 1.0)
        ctx.n_bias = 0 if bias_SD is None else len(bias_SD)
        ctx.n_rows = len(y_RD)
        ctx.mark_non_differentiable(e_RD)
        return error, e_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        values, W_CD, direction, along = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        scale = ctx.scale * g
        wants_values, wants_W, wants_y, wants_bias = ctx.needs_input_grad[:4]
        g_values = (along * scale).to(values.dtype) if wants_values else None
        g_W = g_y = g_bias = None
        if wants_W:  # the factor goes to the values, which are fewer than the rows or the gradient
            g_W = weight_grad(pattern, values * scale, direction, W_CD)
        total_RD = direction[: ctx.n_rows]
        if wants_y:
            g_y = total_RD * -scale
        if wants_bias:
            g_bias = total_RD.view(-1, ctx.n_bias, total_RD.shape[1]).sum(0) * scale
        return g_values, g_W, g_y, g_bias, None, None


@torch.library.custom_op("dictlearn::decode_error", mutates_args=())
def _one(
    row_starts: Tensor,
    columns: Tensor,
    rows: Tensor,
    values: Tensor,
    W_CD: Tensor,
    y_RD: Tensor,
    bias_SD: Tensor | None,
    wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(||e||^2, e [R, D], <W_c, e_r> at every entry [nnz] or [0] unless wants_values)."""
    pattern = Pattern(row_starts, columns, len(W_CD), rows=rows)
    tensors = [t for t in (values, W_CD, y_RD, bias_SD) if t is not None]
    if not pattern.prefers_dense and y_RD.numel() > 0:
        inputs = row_starts, columns, values, W_CD, y_RD, bias_SD, wants_values
        match choose("decode_error", W_CD, unserved(*tensors), loops_serve(*tensors)):
            case "triton":
                from dictlearn_kernels.decode_error import triton

                return triton.decode_error(*inputs, _dtype(*tensors))
            case "compiled":
                from dictlearn_kernels.decode_error import compiled

                return compiled.decode_error(*inputs)
    e_RD = pattern.matmul(values, W_CD)
    if bias_SD is not None:
        e_RD.view(-1, *bias_SD.shape).add_(bias_SD)
    e_RD = torch.sub(y_RD, e_RD, out=e_RD if e_RD.dtype == _dtype(*tensors) else None)
    along = pattern.sampled(e_RD, W_CD) if wants_values else e_RD.new_empty(0)
    return e_RD.square().sum(), e_RD, along


@_one.register_fake
def _(
    row_starts: Tensor,
    columns: Tensor,
    rows: Tensor,
    values: Tensor,
    W_CD: Tensor,
    y_RD: Tensor,
    bias_SD: Tensor | None,
    wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _dtype(*(t for t in (values, W_CD, y_RD, bias_SD) if t is not None))
    e_RD = y_RD.new_empty(y_RD.shape, dtype=dtype)
    return e_RD.new_empty(()), e_RD, e_RD.new_empty(columns.shape[0] if wants_values else 0)


def _nested(
    pattern: Pattern,
    values: Tensor,
    W_CD: Tensor,
    y_RD: Tensor,
    bias_SD: Tensor | None,
    weights: tuple[float, ...],
    wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(sum_g weights[g] ||e_g||^2, the last e, direction, along).

    direction [G * R, D], with rows like the pattern's, is the sum over h >= g of weights[h] e_h; the
    error's gradient in part g's reconstruction is -2 times that. along [nnz] is <W_c, direction_r>.
    """
    parts_GRD = pattern.matmul(values, W_CD).view(len(weights), *y_RD.shape)
    e_RD = _without_bias(y_RD, bias_SD)
    error = parts_GRD.new_zeros(())
    for weight, part_RD in zip(weights, parts_GRD, strict=True):
        e_RD = e_RD - part_RD
        error = error + weight * e_RD.square().sum()
        torch.mul(e_RD, weight, out=part_RD)
    for g in reversed(range(len(weights) - 1)):
        parts_GRD[g] += parts_GRD[g + 1]
    direction = parts_GRD.flatten(0, 1)
    along = pattern.sampled(direction, W_CD) if wants_values else direction.new_empty(0)
    return error, e_RD, direction, along


def _without_bias(y_RD: Tensor, bias_SD: Tensor | None) -> Tensor:
    if bias_SD is None:
        return y_RD
    return (y_RD.unflatten(0, (-1, len(bias_SD))) - bias_SD).flatten(0, 1)


def _dtype(*tensors: Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
