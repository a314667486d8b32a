"""y = sum of value * U_t V_t x over a token's active transforms, and the norms ||U_t V_t||_F.

U and V are sequences of [n, rank, D] tensors, with transforms of equal rank in one tensor. Row k of V_t
is a direction that the transform reads, and row k of U_t the direction that it writes for it. A
pattern's columns number the transforms through the sequence. Only stored (token, transform) pairs are
computed, a transform's tokens together; above a measured density all pairs are, in two large matmuls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dictlearn_kernels.dispatch import choose
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.transforms import cpu, reference
from dictlearn_kernels.weight_grad import collecting

# Computing all pairs is faster above these fractions of stored ones (scripts/bench_transforms.py).
DENSE_ABOVE, DENSE_ABOVE_LOOPS = 0.3, 0.75
SERVED = (torch.float32, torch.bfloat16, torch.float16)


def transform(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    recompute: bool = False,
) -> Tensor:
    """The sums of value * U_t V_t x over each row's stored entries: [R, D].

    Differentiable in `values` [nnz], x, U and V. All sums run in a fixed order, so two runs agree to the
    bit. `recompute` drops V x after the forward pass and computes it again in the backward pass, so that
    memory doesn't grow with the number of active ranks.
    """
    assert pattern.n_columns == sum(len(U_g) for U_g in U) == sum(len(V_g) for V_g in V)
    loops = _loops_serve(values, x_RD, U, V)
    share = len(pattern.columns) / max(1, pattern.n_rows * pattern.n_columns)
    many = share > (DENSE_ABOVE_LOOPS if loops else DENSE_ABOVE)
    chosen = choose("transforms", x_RD, unserved(values, x_RD, U, V), loops and not many)
    if chosen == "reference":
        return reference.transform(pattern, values, x_RD, U, V)
    order = starts = None
    if many:
        chosen = "dense"
    else:
        order, starts = pattern.by_column
    inputs = [values, x_RD, *U, *V]
    keep = not recompute and torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    positions = pattern.row_starts, pattern.columns, order, starts
    return _forward(values, x_RD, list(U), list(V), *positions, chosen, keep)[0]


def gram_norms(U: Sequence[Tensor], V: Sequence[Tensor]) -> Tensor:
    """||U_t V_t||_F of every transform: [C], differentiable.

    Two Gram matrices of rank x rank give it, without a D x D matrix (derivations.md, section 4). A map
    that is exactly zero has no gradient.
    """
    squares = torch.cat([_squared_norms(U_g, V_g) for U_g, V_g in zip(U, V, strict=True)])
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _squared_norms(U_CKD: Tensor, V_CKD: Tensor) -> Tensor:
    return ((U_CKD @ U_CKD.mT) * (V_CKD @ V_CKD.mT)).sum((1, 2))


def unserved(values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]) -> str | None:
    """Why no kernel of Triton serves these tensors; None where one does."""
    dtypes = {t.dtype for t in (values, x_RD, *U, *V)}
    if len(dtypes) > 1:
        return f"tensors of different dtypes ({', '.join(sorted(map(str, dtypes)))})"
    return None if x_RD.dtype in SERVED else str(x_RD.dtype)


def _loops_serve(values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]) -> bool:
    if x_RD.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    from dictlearn_kernels.transforms import compiled

    return compiled.serves(values, x_RD, U, V)


# --- for autograd and torch.compile -------------------------------------------------------------


@torch.library.custom_op("dictlearn::transform", mutates_args=())
def _forward(
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    row_starts: Tensor,
    columns: Tensor,
    order: Tensor | None,
    column_starts: Tensor | None,
    chosen: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(y, V x or an empty tensor unless `keep`). `chosen` is dense, compiled, cpu or triton."""
    pattern = _pattern(row_starts, columns, order, column_starts, U)
    match chosen:
        case "triton":
            from dictlearn_kernels.transforms.triton import forward
        case "compiled":
            from dictlearn_kernels.transforms.compiled import forward
        case "dense":
            forward = cpu.forward_dense
        case _:
            forward = cpu.forward_grouped
    y_RD, hidden = forward(pattern, values, x_RD, U, V)
    return y_RD, hidden if keep else hidden.new_empty(0)


@_forward.register_fake
def _(values, x_RD, U, V, row_starts, columns, order, column_starts, chosen, keep):
    if not keep:
        n_hidden = 0
    elif chosen == "dense":
        n_hidden = len(x_RD) * _n_ranks(V)
    else:
        n_hidden = torch.library.get_ctx().new_dynamic_size()
    return torch.empty_like(x_RD), x_RD.new_empty(n_hidden)


@torch.library.custom_op("dictlearn::transform_backward", mutates_args=())
def _backward(
    g_RD: Tensor,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    row_starts: Tensor,
    columns: Tensor,
    order: Tensor | None,
    column_starts: Tensor | None,
    hidden: Tensor | None,
    chosen: str,
    wants_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(g_values, g_x or an empty tensor, g_U, g_V). The last two are [all ranks, D]."""
    pattern = _pattern(row_starts, columns, order, column_starts, U)
    inputs = pattern, values, x_RD, U, V, hidden, g_RD.contiguous(), wants_x
    if chosen == "triton":
        from dictlearn_kernels.transforms import triton

        g_values, g_x, g_U, g_V = triton.backward(*inputs)
    else:
        g_U, g_V = (x_RD.new_empty(_n_ranks(maps), x_RD.shape[1]) for maps in (U, V))
        into = cpu.split(g_U, U), cpu.split(g_V, V)
        g_values, g_x = _backward_on_a_cpu(chosen, *inputs, *into)
    return g_values, x_RD.new_empty(0) if g_x is None else g_x, g_U, g_V


def _backward_on_a_cpu(chosen: str, *inputs: Any) -> tuple[Tensor, Tensor | None]:
    match chosen:
        case "compiled":
            from dictlearn_kernels.transforms.compiled import backward
        case "dense":
            backward = cpu.backward_dense
        case _:
            backward = cpu.backward_grouped
    return backward(*inputs)


@_backward.register_fake
def _(g, values, x_RD, U, V, row_starts, columns, order, starts, hidden, chosen, wants_x):
    g_x = torch.empty_like(x_RD) if wants_x else x_RD.new_empty(0)
    g_U, g_V = (x_RD.new_empty(_n_ranks(maps), x_RD.shape[1]) for maps in (U, V))
    return torch.empty_like(values), g_x, g_U, g_V


def _n_ranks(maps: Sequence[Tensor]) -> int:
    return sum(m.shape[0] * m.shape[1] for m in maps)


def _pattern(
    row_starts: Tensor,
    columns: Tensor,
    order: Tensor | None,
    column_starts: Tensor | None,
    U: Sequence[Tensor],
) -> Pattern:
    n_columns = sum(len(U_g) for U_g in U)
    if order is None or column_starts is None:
        return Pattern(row_starts, columns, n_columns)
    by_column = order, column_starts
    return Pattern(row_starts, columns, n_columns, lambda: by_column)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, x_RD, U, V, row_starts, columns, order, column_starts, chosen, keep = inputs
    ctx.set_materialize_grads(False)
    ctx.chosen, ctx.keep, ctx.n_maps, ctx.wants_x = chosen, keep, len(U), x_RD.requires_grad
    sorted_ = [] if order is None else [order, column_starts]
    hidden = [output[1]] if keep else []
    ctx.save_for_backward(values, x_RD, *U, *V, row_starts, columns, *sorted_, *hidden)


def _gradients(ctx: Any, g_RD: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    nothing = [None] * ctx.n_maps
    if g_RD is None:
        return None, None, nothing, nothing, *(None,) * 6
    values, x_RD, *rest = ctx.saved_tensors
    hidden = rest.pop() if ctx.keep else None
    U, V, rest = rest[: ctx.n_maps], rest[ctx.n_maps : 2 * ctx.n_maps], rest[2 * ctx.n_maps :]
    positions = rest if len(rest) == 4 else [*rest, None, None]
    collector = collecting(*U, *V)
    if collector is not None and ctx.chosen != "triton":
        buffers = [collector.buffer(p) for p in (*U, *V)]
        row_starts, columns, order, starts = positions
        pattern = _pattern(row_starts, columns, order, starts, U)
        inputs = pattern, values, x_RD, U, V, hidden, g_RD.contiguous(), ctx.wants_x
        into = buffers[: len(U)], buffers[len(U) :]
        g_values, g_x = _backward_on_a_cpu(ctx.chosen, *inputs, *into)
        for p, g_p in zip((*U, *V), buffers, strict=True):
            collector.add_dense(p, g_p)
        return g_values, g_x, nothing, nothing, *(None,) * 6
    g_values, g_x, g_U, g_V = _backward(
        g_RD, values, x_RD, U, V, *positions, hidden, ctx.chosen, ctx.wants_x
    )
    maps = cpu.split(g_U, U), cpu.split(g_V, V)
    return g_values, g_x if ctx.wants_x else None, *maps, *(None,) * 6


_forward.register_autograd(_gradients, setup_context=_setup)
