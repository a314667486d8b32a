"""Entries in the order of their columns on a CPU: counted and placed, where torch compares."""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn_kernels.compiled import array, loop


def by_column(columns: Tensor, n_columns: int) -> tuple[Tensor, Tensor]:
    """(order [nnz], column_starts [n_columns + 1]), int64; entries of one column stay in order."""
    order = torch.empty(len(columns), dtype=torch.int64)
    starts = torch.zeros(n_columns + 2, dtype=torch.int64)
    _sort(array(columns), array(order), array(starts))
    return order, starts[:-1]


@loop
def _sort(columns, order, starts):
    # Counts stand two places on, so that after placing each column's start is where it belongs.
    for i in range(len(columns)):
        starts[columns[i] + 2] += 1
    for c in range(2, len(starts)):
        starts[c] += starts[c - 1]
    for i in range(len(columns)):
        c = columns[i] + 1
        order[starts[c]] = i
        starts[c] += 1
