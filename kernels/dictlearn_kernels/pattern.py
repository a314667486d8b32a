"""Where the nonzeros of a sparse matrix are, and the three products that training needs of it.

With A the [R, C] sparse matrix (rows are tokens, columns are features):

    A @ W           decoding
    A.T @ g         weight gradients of decoder and encoder
    <g_r, W_c>      for every stored (r, c): gradients of the stored values

Past a measured density the dense route is faster (an untrained ReLU code is half full), so each
product picks its route from the pattern alone; both give the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

# scripts/bench_crossover.py: above this fraction of stored entries a dense matmul wins.
DENSE_ABOVE = 0.15


class Pattern:
    """CSR positions of a sparse [R, C] matrix; the column order is sorted once and then shared."""

    def __init__(
        self,
        row_starts: Tensor,
        columns: Tensor,
        n_columns: int,
        sort: Callable[[], tuple[Tensor, Tensor]] | None = None,
    ):
        self._sort = sort  # what `by_column` is, where another pattern's order gives it
        self.row_starts = row_starts  # int64 [R + 1]
        self.columns = columns  # int64 [nnz], ascending within a row
        self.n_columns = n_columns

    @property
    def n_rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def prefers_dense(self) -> bool:
        return len(self.columns) > DENSE_ABOVE * self.n_rows * self.n_columns

    @cached_property
    def rows(self) -> Tensor:
        """The row of every entry: int64 [nnz]."""
        counts = self.row_starts.diff()
        ids = torch.arange(len(counts), device=counts.device)
        return torch.repeat_interleave(ids, counts, output_size=len(self.columns))

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """(order, column_starts): entries sorted by column, stably, so that sums are repeatable."""
        if self._sort is not None:
            return self._sort()
        order = torch.argsort(self.columns, stable=True)
        counts = torch.bincount(self.columns, minlength=self.n_columns)
        starts = torch.zeros(self.n_columns + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=starts[1:])
        return order, starts

    @cached_property
    def sorted_rows(self) -> Tensor:
        """The row of every entry in the order of `by_column`: int64 [nnz]."""
        return self.rows[self.by_column[0]]

    def merged(self, n: int, low: int, high: int) -> tuple[Pattern, Tensor | slice]:
        """(pattern, entries): every n rows put together in one, with the columns low to high - 1.

        Of each n rows in turn the columns must ascend from one to the next, as in a block diagonal.
        `entries` says which of this pattern's entries, in order, are in it. Nothing is sorted again.
        """
        row_starts = self.row_starts[::n]
        if (low, high) == (0, self.n_columns):
            return Pattern(row_starts, self.columns, high, lambda: self.by_column), slice(None)
        kept = (self.columns >= low) & (self.columns < high)
        before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
        torch.cumsum(kept, 0, out=before[1:])

        def sort() -> tuple[Tensor, Tensor]:
            order, starts = self.by_column
            starts = starts[low : high + 1]
            return before[order[starts[0] : starts[-1]]], starts - starts[0]

        entries = kept.nonzero().squeeze(1)
        columns = self.columns[entries] - low
        return Pattern(before[row_starts], columns, high - low, sort), entries

    def dense(self, values: Tensor) -> Tensor:
        """A as a dense [R, C] tensor."""
        A_RC = values.new_zeros(self.n_rows, self.n_columns)
        return A_RC.index_put_((self.rows, self.columns), values)

    def matmul(self, values: Tensor, W_CD: Tensor) -> Tensor:
        """A @ W: [R, D]."""
        if self.prefers_dense:
            return self.dense(values) @ W_CD
        return bags(self.columns, self.row_starts, values, W_CD)

    def transposed_matmul(self, values: Tensor, g_RD: Tensor) -> Tensor:
        """A.T @ g: [C, D], summed in a fixed order."""
        if self.prefers_dense:
            return self.dense(values).T @ g_RD
        order, starts = self.by_column
        return bags(self.sorted_rows, starts, values[order], g_RD)

    def column_sums(self, values: Tensor) -> Tensor:
        """A.T @ 1: [C], summed in a fixed order."""
        order, starts = self.by_column
        ones = values.new_ones(self.n_rows, 1)
        return bags(self.sorted_rows, starts, values[order], ones).squeeze(1)

    def sampled(self, g_RD: Tensor, W_CD: Tensor) -> Tensor:
        """<g_r, W_c> at every stored (r, c): [nnz]."""
        if self.prefers_dense:
            return (g_RD @ W_CD.T)[self.rows, self.columns]
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            g_RD, W_CD, self.columns, self.row_starts, self.rows, 0, -1
        )


def bags(indices: Tensor, starts: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    return F.embedding_bag(
        indices, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
