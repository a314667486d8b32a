"""y = sum of value * U_t V_t x over a token's active transforms, and the norms ||U_t V_t||_F.

Transforms of equal rank are stored together: U and V are sequences of [n, rank, D] tensors, row k of
U_t a direction written and row k of V_t the direction it reads. Columns of a pattern number the
transforms through the sequence. Only stored (token, transform) pairs are computed, a transform's
tokens together; past a measured density all of them are, in two large matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictlearn_kernels.pattern import Pattern

# scripts/bench_transforms.py: above this fraction of stored pairs, computing all of them wins.
DENSE_ABOVE = 0.3


def transform(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    recompute: bool = False,
) -> Tensor:
    """Sum over a row's stored entries of value * U_t V_t x: [R, D].

    Differentiable in `values` [nnz], x, U and V; all sums run in a fixed order, so two runs agree to
    the bit. `recompute` gives up V x after the forward pass and computes it again in the backward
    pass: memory then doesn't grow with the number of active ranks.
    """
    assert pattern.n_columns == sum(len(U_g) for U_g in U) == sum(len(V_g) for V_g in V)
    return _Transform.apply(pattern, recompute, values, x_RD, *U, *V)  # type: ignore[return-value]


def gram_norms(U: Sequence[Tensor], V: Sequence[Tensor]) -> Tensor:
    """||U_t V_t||_F of every transform: [C], differentiable.

    By <U U', V V'> over the rank, never a D x D matrix. A map that is exactly zero has no gradient.
    """
    squares = torch.cat([_squared_norms(U_g, V_g) for U_g, V_g in zip(U, V, strict=True)])
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _squared_norms(U_CKD: Tensor, V_CKD: Tensor) -> Tensor:
    return ((U_CKD @ U_CKD.mT) * (V_CKD @ V_CKD.mT)).sum((1, 2))


class _Transform(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pattern: Pattern, recompute: bool, values: Tensor, x_RD: Tensor, *UV: Tensor
    ) -> Tensor:
        U, V = _halves(UV)
        if _prefers_dense(pattern):
            y_RD, hidden = _forward_dense(pattern, values, x_RD, U, V)
        else:
            y_RD, hidden = _forward_grouped(pattern, values, x_RD, U, V)
        ctx.pattern, ctx.n_hidden = pattern, 0 if recompute else len(hidden)
        ctx.save_for_backward(values, x_RD, *UV, *hidden[: ctx.n_hidden])
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_RD: Tensor) -> tuple[Tensor | None, ...]:
        values, x_RD, *rest = ctx.saved_tensors
        hidden = rest[len(rest) - ctx.n_hidden :]
        U, V = _halves(rest[: len(rest) - ctx.n_hidden])
        backward = _backward_dense if _prefers_dense(ctx.pattern) else _backward_grouped
        wants_x = ctx.needs_input_grad[3]
        g_values, g_x, *g_UV = backward(
            ctx.pattern, values, x_RD, U, V, hidden, g_RD.contiguous(), wants_x
        )
        return None, None, g_values, g_x if wants_x else None, *g_UV


def _halves(UV: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return UV[: len(UV) // 2], UV[len(UV) // 2 :]


def _prefers_dense(pattern: Pattern) -> bool:
    return len(pattern.columns) > DENSE_ABOVE * pattern.n_rows * pattern.n_columns


# --- a transform's tokens together ------------------------------------------------------------


def _groups(pattern: Pattern, U: Sequence[Tensor]) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(place in the sequence, number there, entries, rows) of every transform that has tokens."""
    order, starts = pattern.by_column
    rows = pattern.rows[order]
    ends = starts.tolist()
    column = 0
    for g, U_g in enumerate(U):
        for t in range(len(U_g)):
            low, high = ends[column], ends[column + 1]
            column += 1
            if high > low:
                yield g, t, order[low:high], rows[low:high]


def _forward_grouped(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    y_RD = torch.zeros_like(x_RD)
    hidden = []  # V x of each transform, at its tokens
    for g, t, entries, rows in _groups(pattern, U):
        h_MK = x_RD.index_select(0, rows) @ V[g][t].T
        # A transform has a token once, so this adds without collisions.
        y_RD.index_add_(0, rows, (values.index_select(0, entries)[:, None] * h_MK) @ U[g][t])
        hidden.append(h_MK)
    return y_RD, hidden


def _backward_grouped(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    hidden: Sequence[Tensor],
    g_RD: Tensor,
    wants_x: bool,
) -> tuple[Tensor, ...]:
    g_values, g_x = torch.zeros_like(values), torch.zeros_like(x_RD)
    g_U, g_V = [torch.zeros_like(t) for t in U], [torch.zeros_like(t) for t in V]
    for place, (g, t, entries, rows) in enumerate(_groups(pattern, U)):
        x_MD, g_MD = x_RD.index_select(0, rows), g_RD.index_select(0, rows)
        value_M1 = values.index_select(0, entries)[:, None]
        h_MK = hidden[place] if hidden else x_MD @ V[g][t].T
        read_MK = g_MD @ U[g][t].T
        g_values[entries] = torch.linalg.vecdot(h_MK, read_MK)
        torch.mm((value_M1 * h_MK).T, g_MD, out=g_U[g][t])
        read_MK.mul_(value_M1)
        torch.mm(read_MK.T, x_MD, out=g_V[g][t])
        if wants_x:
            g_x.index_add_(0, rows, read_MK @ V[g][t])
    return g_values, g_x, *g_U, *g_V


# --- all of them --------------------------------------------------------------------------------


def _gates(pattern: Pattern, values: Tensor, U: Sequence[Tensor]) -> list[Tensor]:
    """The values as dense [R, n, 1], per place of the sequence."""
    return [g_RC[..., None] for g_RC in pattern.dense(values).split([len(t) for t in U], dim=1)]


def _forward_dense(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    y_RD = torch.zeros_like(x_RD)
    hidden = []
    for gate_RC1, U_CKD, V_CKD in zip(_gates(pattern, values, U), U, V, strict=True):
        h_RP = x_RD @ V_CKD.flatten(0, 1).T  # P: all ranks of the transforms
        gated_RCK = gate_RC1 * h_RP.view(len(h_RP), *U_CKD.shape[:2])
        y_RD.addmm_(gated_RCK.flatten(1), U_CKD.flatten(0, 1))
        hidden.append(h_RP)
    return y_RD, hidden


def _backward_dense(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    hidden: Sequence[Tensor],
    g_RD: Tensor,
    wants_x: bool,
) -> tuple[Tensor, ...]:
    g_x = torch.zeros_like(x_RD)
    g_gates, g_U, g_V = [], [], []
    gates = _gates(pattern, values, U)
    for g, (gate_RC1, U_CKD, V_CKD) in enumerate(zip(gates, U, V, strict=True)):
        h_RP = hidden[g] if hidden else x_RD @ V_CKD.flatten(0, 1).T
        h_RCK = h_RP.view(len(h_RP), *U_CKD.shape[:2])
        read_RCK = (g_RD @ U_CKD.flatten(0, 1).T).view_as(h_RCK)
        g_gates.append(torch.linalg.vecdot(h_RCK, read_RCK))
        g_U.append(((gate_RC1 * h_RCK).flatten(1).T @ g_RD).view_as(U_CKD))
        read_RCK.mul_(gate_RC1)
        g_V.append((read_RCK.flatten(1).T @ x_RD).view_as(V_CKD))
        if wants_x:
            g_x.addmm_(read_RCK.flatten(1), V_CKD.flatten(0, 1))
    g_values = torch.cat(g_gates, dim=1)[pattern.rows, pattern.columns]
    return g_values, g_x, *g_U, *g_V
