"""Transforms by torch: each on its own tokens together (grouped), or all on all tokens (dense).

A call keeps V x for its backward pass, flat (`hidden`). The grouped route has a number for each stored
entry, in the order of `Pattern.by_column`, and each rank of its transform. The dense route has one for
each token and rank, tensor by tensor of the sequence. Gradients of U and V are written into the
caller's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn_kernels.pattern import Pattern

# --- grouped ------------------------------------------------------------------------------------


class _Work:
    """The transforms, each with its entries."""

    def __init__(self, pattern: Pattern, values: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]):
        self.order, starts = pattern.by_column
        self.counts: list[int] = starts.diff().tolist()
        ranks = [V_g.shape[1] for V_g in V for _ in range(len(V_g))]
        self.sizes = [n * rank for n, rank in zip(self.counts, ranks, strict=True)]
        self.ranks = ranks
        self.rows = pattern.sorted_rows.split(self.counts)
        self.values = values[self.order][:, None].split(self.counts)
        self.U, self.V = _one_by_one(U), _one_by_one(V)

    def hidden(self, flat: Tensor) -> list[Tensor]:
        """Each transform's part of V x: [M, K]."""
        parts = flat.split(self.sizes)
        return [part.view(-1, rank) for part, rank in zip(parts, self.ranks, strict=True)]


@torch.no_grad()
def forward_grouped(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(y [R, D], V x)."""
    work = _Work(pattern, values, U, V)
    flat = x_RD.new_empty(sum(work.sizes))
    y_RD = torch.zeros_like(x_RD)
    for t, h_MK in enumerate(work.hidden(flat)):
        rows = work.rows[t]
        torch.mm(x_RD.index_select(0, rows), work.V[t].T, out=h_MK)
        # A transform has each token at most once, so no two rows are added to one.
        y_RD.index_add_(0, rows, (work.values[t] * h_MK) @ work.U[t])
    return y_RD, flat


@torch.no_grad()
def backward_grouped(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    flat: Tensor | None,
    g_RD: Tensor,
    wants_x: bool,
    g_U: Sequence[Tensor],
    g_V: Sequence[Tensor],
) -> tuple[Tensor, Tensor | None]:
    """(g_values, g_x). The maps' gradients are written into g_U and g_V."""
    work = _Work(pattern, values, U, V)
    hidden = None if flat is None else work.hidden(flat)
    into_U, into_V = _one_by_one(g_U), _one_by_one(g_V)
    g_sorted = torch.empty_like(values)
    g_parts = g_sorted.split(work.counts)
    g_x = torch.zeros_like(x_RD) if wants_x else None
    for t, (rows, value_M1) in enumerate(zip(work.rows, work.values, strict=True)):
        x_MD, g_MD = x_RD.index_select(0, rows), g_RD.index_select(0, rows)
        h_MK = x_MD @ work.V[t].T if hidden is None else hidden[t]
        read_MK = g_MD @ work.U[t].T
        torch.linalg.vecdot(h_MK, read_MK, out=g_parts[t])
        torch.mm((value_M1 * h_MK).T, g_MD, out=into_U[t])
        read_MK.mul_(value_M1)
        torch.mm(read_MK.T, x_MD, out=into_V[t])
        if g_x is not None:
            g_x.index_add_(0, rows, read_MK @ work.V[t])
    g_values = torch.empty_like(values)
    g_values[work.order] = g_sorted
    return g_values, g_x


def _one_by_one(maps: Sequence[Tensor]) -> list[Tensor]:
    return [map_KD for maps_CKD in maps for map_KD in maps_CKD.detach().unbind()]


def split(flat_PD: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """The views of a tensor [all ranks, D] that have the shapes of the maps."""
    rows = flat_PD.split([m.shape[0] * m.shape[1] for m in maps])
    return [part.view(m.shape) for part, m in zip(rows, maps, strict=True)]


# --- dense ----------------------------------------------------------------------------------------


def _gates(pattern: Pattern, values: Tensor, U: Sequence[Tensor]) -> list[Tensor]:
    """The values as dense [R, n, 1], for each tensor of the sequence."""
    return [g_RC[..., None] for g_RC in pattern.dense(values).split([len(t) for t in U], dim=1)]


def _hidden_dense(x_RD: Tensor, V: Sequence[Tensor]) -> Tensor:
    hidden = x_RD.new_empty(len(x_RD) * sum(V_g.shape[0] * V_g.shape[1] for V_g in V))
    for V_CKD, h_RP in zip(V, _by_tensor(hidden, V, len(x_RD)), strict=True):
        torch.mm(x_RD, V_CKD.flatten(0, 1).T, out=h_RP)
    return hidden


def _by_tensor(hidden: Tensor, maps: Sequence[Tensor], n_rows: int) -> list[Tensor]:
    """The parts [R, all ranks] of V x, for each tensor of the sequence."""
    ranks = [m.shape[0] * m.shape[1] for m in maps]
    parts = hidden.split([n_rows * n for n in ranks])
    return [part.view(n_rows, n) for part, n in zip(parts, ranks, strict=True)]


def forward_dense(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(y [R, D], V x)."""
    y_RD = torch.zeros_like(x_RD)
    hidden = _hidden_dense(x_RD, V)
    by_tensor = _by_tensor(hidden, V, len(x_RD))
    for gate_RC1, U_CKD, h_RP in zip(_gates(pattern, values, U), U, by_tensor, strict=True):
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
    g_U: Sequence[Tensor],
    g_V: Sequence[Tensor],
) -> tuple[Tensor, Tensor | None]:
    """(g_values, g_x). The maps' gradients are written into g_U and g_V."""
    if hidden is None:
        hidden = _hidden_dense(x_RD, V)
    g_x = torch.zeros_like(x_RD) if wants_x else None
    g_gates = []
    by_tensor = _by_tensor(hidden, V, len(x_RD))
    gates = _gates(pattern, values, U)
    for g, (gate_RC1, U_CKD, V_CKD, h_RP) in enumerate(zip(gates, U, V, by_tensor, strict=True)):
        h_RCK = h_RP.view(len(h_RP), *U_CKD.shape[:2])
        read_RCK = (g_RD @ U_CKD.flatten(0, 1).T).view_as(h_RCK)
        g_gates.append(torch.linalg.vecdot(h_RCK, read_RCK))
        torch.mm((gate_RC1 * h_RCK).flatten(1).T, g_RD, out=g_U[g].flatten(0, 1))
        read_RCK.mul_(gate_RC1)
        torch.mm(read_RCK.flatten(1).T, x_RD, out=g_V[g].flatten(0, 1))
        if g_x is not None:
            g_x.addmm_(read_RCK.flatten(1), V_CKD.flatten(0, 1))
    g_values = torch.cat(g_gates, dim=1)[pattern.rows, pattern.columns]
    return g_values, g_x
