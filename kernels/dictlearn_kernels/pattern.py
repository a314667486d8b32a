"""The positions of a sparse matrix's entries, and the three products that training needs.

Let A be the [R, C] sparse matrix, with tokens as rows and features as columns:

    A @ W           decoding
    A.T @ g         weight gradients of decoder and encoder
    <g_r, W_c>      for every stored (r, c): gradients of the stored values

Above a measured density dense matmuls are faster (an untrained ReLU code is half full). Each product
chooses by the pattern alone, and both ways give the same result. Sums run in a fixed order, so two runs
agree to the bit. W and g may have a lower precision than the values: products are then summed and
returned in the values' precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from dictlearn_kernels.bag import bag
from dictlearn_kernels.dispatch import by_loops, mode
from dictlearn_kernels.sampled import sampled

# A dense matmul is faster above this fraction of stored entries (scripts/bench_crossover.py). It was
# measured on a CPU and serves GPUs too, whose crossover is not measured.
DENSE_ABOVE = 0.15
# A CPU's cache does not hold a matrix of more numbers than this. Reading its rows in their order, each
# once, is then 2 to 4 times faster than token by token, with the same bits (from 8,192 x 512 on).
UNCACHED = 2**21


class Pattern:
    """CSR positions of a sparse [R, C] matrix. They are sorted by column once, for all products."""

    def __init__(
        self,
        row_starts: Tensor,
        columns: Tensor,
        n_columns: int,
        sort: Callable[[], tuple[Tensor, Tensor]] | None = None,
        rows: Tensor | None = None,
    ):
        self._sort = sort  # gives `by_column` where another pattern's order is known
        self.row_starts = row_starts  # int64, or int32 like the columns: [R + 1]
        self.columns = columns  # [nnz], ascending within a row
        self.n_columns = n_columns
        self._derived: dict[str, Any] = {} if rows is None else {"rows": rows}

    @property
    def n_rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def prefers_dense(self) -> bool:
        """Whether products take a dense A. They never do in a mode that forces an implementation."""
        full = self.n_rows * self.n_columns
        return mode() == "auto" and len(self.columns) > DENSE_ABOVE * full

    @property
    def rows(self) -> Tensor:
        """The row of every entry: [nnz]."""
        return self._once("rows", self._rows)

    @property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """(order, column_starts): entries in a stable order by column, which makes sums repeatable."""
        return self._once("by_column", self._sort or self._sorted)

    @property
    def sorted_rows(self) -> Tensor:
        """The row of every entry, in `by_column`'s order: [nnz]."""
        return self._once("sorted_rows", lambda: self.rows.index_select(0, self.by_column[0]))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name in self._derived:
            return self._derived[name]
        value = make()
        if not is_compiling():  # an autograd function may not cache anything there
            self._derived[name] = value
        return value

    def _rows(self) -> Tensor:
        counts = self.row_starts.diff()
        ids = torch.arange(len(counts), dtype=counts.dtype, device=counts.device)
        return torch.repeat_interleave(ids, counts, output_size=len(self.columns))

    def _sorted(self) -> tuple[Tensor, Tensor]:
        if by_loops(self.columns):
            from dictlearn_kernels import csr

            order, starts = csr.by_column(self.columns, self.n_columns)
            return order, starts.to(self.row_starts.dtype)
        # int32 has half as many digits to sort by. bincount would synchronise with a GPU.
        narrow = self.columns.int() if self.n_columns < 2**31 else self.columns
        columns, order = narrow.sort(stable=True)
        edges = torch.arange(self.n_columns + 1, dtype=columns.dtype, device=columns.device)
        starts = torch.searchsorted(columns, edges)
        return order, starts.to(self.row_starts.dtype)

    def merged(self, n: int, low: int, high: int) -> tuple[Pattern, Tensor | slice]:
        """(pattern, entries): each n consecutive rows as one, restricted to columns low to high - 1.

        Row i of each n rows must have entries only in the i-th of n equal ranges of columns, as in a
        block diagonal, and `low` and `high` must be ends of such ranges. `entries` are the indices of
        the entries that are in the result. Nothing is sorted again.
        """
        row_starts = self.row_starts[::n]
        if (low, high) == (0, self.n_columns):
            return Pattern(row_starts, self.columns, high, lambda: self.by_column), slice(None)
        first, last = self._ends(n, low), self._ends(n, high)
        if by_loops(self.columns):
            from dictlearn_kernels import csr

            row_starts, columns, entries, before = csr.between(
                row_starts, self.columns, low, high, last - first
            )
        else:
            kept = (self.columns >= low) & (self.columns < high)
            before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
            torch.cumsum(kept, 0, out=before[1:])
            entries = torch.nonzero_static(kept, size=last - first).squeeze(1)
            row_starts, columns = before[row_starts], self.columns[entries] - low

        def sort() -> tuple[Tensor, Tensor]:
            order, starts = self.by_column
            return before.index_select(0, order[first:last]), starts[low : high + 1] - first

        return Pattern(row_starts, columns, high - low, sort), entries

    def _ends(self, n: int, column: int) -> int:
        """The number of entries before a column that begins one of n blocks of a block diagonal.

        All blocks are read at once, since each reading synchronises with a GPU.
        """

        def count() -> list[int]:
            counts_RN = self.row_starts.diff().view(-1, n)
            return [0, *counts_RN.sum(0).cumsum(0).tolist()]

        block, rest = divmod(column * n, self.n_columns)
        assert rest == 0
        return self._once(f"ends of {n}", count)[block]

    def stacked(self, group: Tensor, n_groups: int) -> tuple[Pattern, Tensor]:
        """(pattern, order): a copy of the rows for each group of entries, one below the other.

        `group` (int [nnz]) is each entry's group. The result is a sparse [n_groups * R, C] matrix, and
        its entries are this one's in `order`.
        """
        order = group.argsort(stable=True)
        row = (group * self.n_rows + self.rows)[order]
        counts = torch.bincount(row, minlength=n_groups * self.n_rows)
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return Pattern(starts.to(self.row_starts.dtype), self.columns[order], self.n_columns), order

    def dense(self, values: Tensor) -> Tensor:
        """A as a dense [R, C] tensor."""
        A_RC = values.new_zeros(self.n_rows, self.n_columns)
        return A_RC.index_put_((self.rows, self.columns), values)

    def matmul(self, values: Tensor, W_CD: Tensor) -> Tensor:
        """A @ W: [R, D]."""
        if self.prefers_dense:
            return _dense_product(self.dense(values), W_CD)
        return bag(self.columns, self.row_starts, values, W_CD)

    def transposed_matmul(self, values: Tensor, g_RD: Tensor) -> Tensor:
        """A.T @ g: [C, D]."""
        if self.prefers_dense:
            return _dense_product(self.dense(values).T, g_RD)
        order, starts = self.by_column
        return bag(self.sorted_rows, starts, values.index_select(0, order), g_RD)

    def column_sums(self, values: Tensor) -> Tensor:
        """A.T @ 1: [C]."""
        if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
            # One thread adds these, in order.
            return values.new_zeros(self.n_columns).index_add_(0, self.columns, values)
        order, starts = self.by_column
        ones = values.new_ones(self.n_rows, 1)
        return bag(self.sorted_rows, starts, values.index_select(0, order), ones).squeeze(1)

    def sampled(self, g_RD: Tensor, W_CD: Tensor) -> Tensor:
        """<g_r, W_c> at every stored (r, c): [nnz]."""
        if self.prefers_dense:
            return _dense_product(g_RD, W_CD.T)[self.rows, self.columns]
        if W_CD.device.type == "cpu" and W_CD.numel() >= UNCACHED:
            order, starts = self.by_column
            products = sampled(W_CD, g_RD, self.columns[order], self.sorted_rows, starts)
            return torch.empty_like(products).index_copy_(0, order.long(), products)
        return sampled(g_RD, W_CD, self.rows, self.columns, self.row_starts)


def _dense_product(A: Tensor, B: Tensor) -> Tensor:
    dtype = torch.promote_types(A.dtype, B.dtype)
    return A.to(dtype) @ B.to(dtype)
