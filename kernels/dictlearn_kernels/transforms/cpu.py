"""A few calls of torch for each transform's tokens together, or all transforms on all tokens.

What a call keeps for its backward pass is V x, flat: of every stored entry in the order of
`Pattern.by_column`, as many numbers as its transform has ranks; on the dense route of every token,
one place of the sequence after the other. Gradients of U and V are written where the caller says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.threads import each

T = TypeVar("T")

# --- a transform's tokens together ------------------------------------------------------------


class _Work:
    """The transforms, each with its entries; whole transforms are shared out among threads.

    One is a few calls of torch on what a core's cache holds: threads inside a call would wait for
    each other more than they would help.
    """

    def __init__(self, pattern: Pattern, values: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]):
        self.order, starts = pattern.by_column
        self.counts: list[int] = starts.diff().tolist()
        self.ranks = [V_g.shape[1] for V_g in V for _ in range(len(V_g))]
        self.rows = pattern.sorted_rows.split(self.counts)
        self.values = values[self.order][:, None].split(self.counts)
        self.U, self.V = _one_by_one(U), _one_by_one(V)

    def hidden(self, flat: Tensor) -> list[Tensor]:
        """Of what is kept, each transform's [M, K]."""
        parts = flat.split(self._sizes())
        return [part.view(-1, rank) for part, rank in zip(parts, self.ranks, strict=True)]

    def n_hidden(self) -> int:
        return sum(self._sizes())

    def _sizes(self) -> list[int]:
        return [n * rank for n, rank in zip(self.counts, self.ranks, strict=True)]

    def by_thread(self, work: Callable[[list[int]], T]) -> list[T]:
        """What `work` returns for each thread's transforms.

        Who has which depends on the pattern and the number of threads alone, so that what a thread
        adds up is the same each time.
        """
        n_threads = 1 if self.values[0].is_cuda else torch.get_num_threads()
        shares: list[list[int]] = [[] for _ in range(n_threads)]
        loads = [0] * len(shares)
        sizes = self._sizes()
        for t in sorted(range(len(sizes)), key=lambda t: -sizes[t]):
            lightest = loads.index(min(loads))
            shares[lightest].append(t)
            loads[lightest] += sizes[t]
        return each([partial(work, share) for share in shares if share])


def forward_grouped(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(y [R, D], V x)."""
    work = _Work(pattern, values, U, V)
    flat = x_RD.new_empty(work.n_hidden())
    hidden = work.hidden(flat)

    def add(transforms: list[int]) -> Tensor:
        y_RD = torch.zeros_like(x_RD)
        for t in transforms:
            rows, h_MK = work.rows[t], hidden[t]
            torch.mm(x_RD.index_select(0, rows), work.V[t].T, out=h_MK)
            # A transform has a token once, so this adds without collisions.
            y_RD.index_add_(0, rows, (work.values[t] * h_MK) @ work.U[t])
        return y_RD

    return _total(work.by_thread(add)), flat


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
    """(g_values, g_x); the maps' gradients are written where the caller says."""
    work = _Work(pattern, values, U, V)
    hidden = None if flat is None else work.hidden(flat)
    into_U, into_V = _one_by_one(g_U), _one_by_one(g_V)
    g_sorted = torch.empty_like(values)
    g_parts = g_sorted.split(work.counts)

    def differentiate(transforms: list[int]) -> Tensor | None:
        g_x = torch.zeros_like(x_RD) if wants_x else None
        for t in transforms:
            rows, value_M1 = work.rows[t], work.values[t]
            x_MD, g_MD = x_RD.index_select(0, rows), g_RD.index_select(0, rows)
            h_MK = x_MD @ work.V[t].T if hidden is None else hidden[t]
            read_MK = g_MD @ work.U[t].T
            torch.linalg.vecdot(h_MK, read_MK, out=g_parts[t])
            torch.mm((value_M1 * h_MK).T, g_MD, out=into_U[t])
            read_MK.mul_(value_M1)
            torch.mm(read_MK.T, x_MD, out=into_V[t])
            if g_x is not None:
                g_x.index_add_(0, rows, read_MK @ work.V[t])
        return g_x

    g_x = [part for part in work.by_thread(differentiate) if part is not None]
    g_values = torch.empty_like(values)
    g_values[work.order] = g_sorted
    return g_values, _total(g_x) if wants_x else None


def _one_by_one(maps: Sequence[Tensor]) -> list[Tensor]:
    return [one_KD for maps_CKD in maps for one_KD in maps_CKD.detach().unbind()]


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


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
    g_U: Sequence[Tensor],
    g_V: Sequence[Tensor],
) -> tuple[Tensor, Tensor | None]:
    """(g_values, g_x); the maps' gradients are written where the caller says."""
    if hidden is None:
        hidden = _hidden_dense(x_RD, V)
    g_x = torch.zeros_like(x_RD) if wants_x else None
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
    return g_values, g_x
