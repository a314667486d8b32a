"""A few calls of torch for each transform's tokens together, or all transforms on all tokens.

What a call keeps for its backward pass is V x, flat: of every stored entry in the order of
`Pattern.by_column`, as many numbers as its transform has ranks; on the dense route of every token,
one place of the sequence after the other. Gradients of U and V are flat too: [all ranks, D].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dictlearn_kernels.pattern import Pattern

# --- a transform's tokens together ------------------------------------------------------------


def _groups(pattern: Pattern, maps: Sequence[Tensor]) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(place in the sequence, number there, entries, rows) of every transform that has tokens."""
    order, starts = pattern.by_column
    rows = pattern.rows[order]
    ends = starts.tolist()
    column = 0
    for g, map_CKD in enumerate(maps):
        for t in range(len(map_CKD)):
            low, high = ends[column], ends[column + 1]
            column += 1
            if high > low:
                yield g, t, order[low:high], rows[low:high]


def _parts(
    pattern: Pattern, maps: Sequence[Tensor], hidden: Tensor
) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """`_groups`, each with its [M, K] of what is kept."""
    start = 0
    for g, t, entries, rows in _groups(pattern, maps):
        shape = len(rows), maps[g].shape[1]
        yield g, t, entries, rows, hidden[start : start + shape[0] * shape[1]].view(shape)
        start += shape[0] * shape[1]


def forward_grouped(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(y [R, D], V x)."""
    y_RD = torch.zeros_like(x_RD)
    hidden = _hidden_grouped(pattern, x_RD, V)
    for g, t, entries, rows, h_MK in _parts(pattern, V, hidden):
        # A transform has a token once, so this adds without collisions.
        y_RD.index_add_(0, rows, (values.index_select(0, entries)[:, None] * h_MK) @ U[g][t])
    return y_RD, hidden


def _hidden_grouped(pattern: Pattern, x_RD: Tensor, V: Sequence[Tensor]) -> Tensor:
    ranks = [V_g.shape[1] for V_g in V for _ in range(len(V_g))]
    counts = pattern.by_column[1].diff().tolist()
    hidden = x_RD.new_empty(sum(n * rank for n, rank in zip(counts, ranks, strict=True)))
    for g, t, _, rows, h_MK in _parts(pattern, V, hidden):
        torch.mm(x_RD.index_select(0, rows), V[g][t].T, out=h_MK)
    return hidden


def backward_grouped(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    hidden: Tensor | None,
    g_RD: Tensor,
    wants_x: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(g_values, g_x, g_U, g_V)."""
    if hidden is None:
        hidden = _hidden_grouped(pattern, x_RD, V)
    g_values, g_x = torch.zeros_like(values), torch.zeros_like(x_RD) if wants_x else None
    (g_U_PD, g_U), (g_V_PD, g_V) = _zeros(U), _zeros(V)
    for g, t, entries, rows, h_MK in _parts(pattern, V, hidden):
        x_MD, g_MD = x_RD.index_select(0, rows), g_RD.index_select(0, rows)
        value_M1 = values.index_select(0, entries)[:, None]
        read_MK = g_MD @ U[g][t].T
        g_values[entries] = torch.linalg.vecdot(h_MK, read_MK)
        torch.mm((value_M1 * h_MK).T, g_MD, out=g_U[g][t])
        read_MK.mul_(value_M1)
        torch.mm(read_MK.T, x_MD, out=g_V[g][t])
        if g_x is not None:
            g_x.index_add_(0, rows, read_MK @ V[g][t])
    return g_values, g_x, g_U_PD, g_V_PD


def _zeros(maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """[all ranks, D], and the views of it that are shaped like the maps."""
    flat_PD = maps[0].new_zeros(sum(m.shape[0] * m.shape[1] for m in maps), maps[0].shape[2])
    return flat_PD, split(flat_PD, maps)


def split(flat_PD: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Of [all ranks, D] the views that are shaped like the maps."""
    rows = flat_PD.split([m.shape[0] * m.shape[1] for m in maps])
    return [part.view(m.shape) for part, m in zip(rows, maps, strict=True)]


# --- all of them --------------------------------------------------------------------------------


def _gates(pattern: Pattern, values: Tensor, U: Sequence[Tensor]) -> list[Tensor]:
    """The values as dense [R, n, 1], per place of the sequence."""
    return [g_RC[..., None] for g_RC in pattern.dense(values).split([len(t) for t in U], dim=1)]


def _hidden_dense(x_RD: Tensor, V: Sequence[Tensor]) -> Tensor:
    hidden = x_RD.new_empty(len(x_RD) * sum(V_g.shape[0] * V_g.shape[1] for V_g in V))
    for V_CKD, h_RP in zip(V, _by_place(hidden, V, len(x_RD)), strict=True):
        torch.mm(x_RD, V_CKD.flatten(0, 1).T, out=h_RP)
    return hidden


def _by_place(hidden: Tensor, maps: Sequence[Tensor], n_rows: int) -> list[Tensor]:
    """[R, ranks of the transforms] of every place of the sequence."""
    ranks = [m.shape[0] * m.shape[1] for m in maps]
    parts = hidden.split([n_rows * n for n in ranks])
    return [part.view(n_rows, n) for part, n in zip(parts, ranks, strict=True)]


def forward_dense(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(y [R, D], V x)."""
    y_RD = torch.zeros_like(x_RD)
    hidden = _hidden_dense(x_RD, V)
    by_place = _by_place(hidden, V, len(x_RD))
    for gate_RC1, U_CKD, h_RP in zip(_gates(pattern, values, U), U, by_place, strict=True):
        gated_RCK = gate_RC1 * h_RP.view(len(h_RP), *U_CKD.shape[:2])
        y_RD.addmm_(gated_RCK.flatten(1), U_CKD.flatten(0, 1))
    return y_RD, hidden


def backward_dense(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    hidden: Tensor | None,
    g_RD: Tensor,
    wants_x: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(g_values, g_x, g_U, g_V)."""
    if hidden is None:
        hidden = _hidden_dense(x_RD, V)
    g_x = torch.zeros_like(x_RD) if wants_x else None
    (g_U_PD, g_U), (g_V_PD, g_V) = _zeros(U), _zeros(V)
    g_gates = []
    by_place = _by_place(hidden, V, len(x_RD))
    gates = _gates(pattern, values, U)
    for g, (gate_RC1, U_CKD, V_CKD, h_RP) in enumerate(zip(gates, U, V, by_place, strict=True)):
        h_RCK = h_RP.view(len(h_RP), *U_CKD.shape[:2])
        read_RCK = (g_RD @ U_CKD.flatten(0, 1).T).view_as(h_RCK)
        g_gates.append(torch.linalg.vecdot(h_RCK, read_RCK))
        torch.mm((gate_RC1 * h_RCK).flatten(1).T, g_RD, out=g_U[g].flatten(0, 1))
        read_RCK.mul_(gate_RC1)
        torch.mm(read_RCK.flatten(1).T, x_RD, out=g_V[g].flatten(0, 1))
        if g_x is not None:
            g_x.addmm_(read_RCK.flatten(1), V_CKD.flatten(0, 1))
    g_values = torch.cat(g_gates, dim=1)[pattern.rows, pattern.columns]
    return g_values, g_x, g_U_PD, g_V_PD
