"""Entries of sparse matrices, rearranged on a CPU: each function is one loop, where torch takes several.

For tens of thousands of entries torch's overhead exceeds its work, most of all in sorting.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn_kernels.compiled import array, check_csr, loop

Entries = tuple[Tensor, Tensor, Tensor]  # `selection.Selection`: row_starts, columns, values


def by_column(columns: Tensor, n_columns: int) -> tuple[Tensor, Tensor]:
    """(order [nnz], column_starts [n_columns + 1]), int64. Entries of one column stay in order.

    This is a counting sort; torch's sorts compare.
    """
    if columns.ndim != 1:
        raise ValueError(f"columns has the shape {list(columns.shape)}: want one dimension")
    if len(columns):
        lowest, highest = map(int, columns.aminmax())
        if lowest < 0 or highest >= n_columns:
            raise ValueError(f"columns go from {lowest} to {highest}: want 0 to {n_columns - 1}")
    order = torch.empty(len(columns), dtype=torch.int64)
    starts = torch.zeros(n_columns + 2, dtype=torch.int64)
    _sort(array(columns), array(order), array(starts))
    return order, starts[:-1]


def between(
    row_starts: Tensor, columns: Tensor, low: int, high: int, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(row_starts, columns less low, entries, before) of the n entries in columns low to high - 1.

    `entries` are their indices, and before[i] is the number of them before entry i: [nnz + 1]. All but
    the columns are int64.
    """
    check_csr(row_starts, columns, columns, len(row_starts) - 1)
    starts, entries, before = (
        torch.empty(length, dtype=torch.int64) for length in (len(row_starts), n, len(columns) + 1)
    )
    kept = columns.new_empty(n)
    out = array(starts), array(kept), array(entries), array(before)
    _between(array(row_starts.contiguous()), array(columns), low, high, *out)
    if int(starts[-1]) != n:
        raise ValueError(f"columns {low} to {high - 1} have other than {n} entries")
    return starts, kept, entries, before


def interleaved(parts: Sequence[Entries]) -> Entries:
    """Selections over the same rows as one: row r of part p becomes row r * len(parts) + p."""
    for part in parts:
        check_csr(*part, n_rows=len(parts[0][0]) - 1)
    counts_RP = torch.stack([row_starts.diff() for row_starts, _, _ in parts], dim=1)
    starts = torch.nn.functional.pad(counts_RP.flatten().cumsum(0), (1, 0))
    n = sum(len(columns) for _, columns, _ in parts)
    columns, values = (t.new_empty(n) for t in parts[0][1:])
    for p, part in enumerate(parts):
        entries = (array(t.contiguous()) for t in part)
        _spread(*entries, p, len(parts), array(starts), array(columns), array(values))
    return starts, columns, values


@loop
def _sort(columns, order, starts):
    # A column's count stands two places further on, so that writing moves each start into its place.
    for i in range(len(columns)):
        starts[columns[i] + 2] += 1
    for c in range(2, len(starts)):
        starts[c] += starts[c - 1]
    for i in range(len(columns)):
        c = columns[i] + 1
        order[starts[c]] = i
        starts[c] += 1


@loop
def _between(row_starts, columns, low, high, starts, kept, entries, before):
    n = starts[0] = before[0] = 0
    for r in range(len(row_starts) - 1):
        for i in range(row_starts[r], row_starts[r + 1]):
            if columns[i] >= low and columns[i] < high:
                if n < len(kept):
                    kept[n], entries[n] = columns[i] - low, i
                n += 1
            before[i + 1] = n
        starts[r + 1] = n


@loop
def _spread(row_starts, columns, values, part, n_parts, starts, into_columns, into_values):
    for r in range(len(row_starts) - 1):
        j = starts[r * n_parts + part]
        for i in range(row_starts[r], row_starts[r + 1]):
            into_columns[j], into_values[j] = columns[i], values[i]
            j += 1
