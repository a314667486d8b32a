"""Where the nonzeros of a sparse matrix are, and the three products that training needs of it.

With A the [R, C] sparse matrix (rows are tokens, columns are features):

    A @ W           decoding
    A.T @ g         weight gradients of decoder and encoder
    <g_r, W_c>      for every stored (r, c): gradients of the stored values

Past a measured density the dense route is faster (an untrained ReLU code is half full), so each
product picks its route from the pattern alone; both give the same result. Sums run in a fixed order:
two runs agree to the bit. Tables may be of lower precision than values: products are then summed and
returned in the values' own.
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

# scripts/bench_crossover.py: above this fraction of stored entries a dense matmul wins. Measured on
# a CPU; where a GPU's crossover lies nobody has measured, and it uses the same.
DENSE_ABOVE = 0.15
# Numbers in a matrix that a CPU's cache does not hold: its rows are then better read in their order,
# each once, than a token's at a time. Same products, same bits; 2 to 4 times faster (8,192 x 512 up).
FAR = 2**21


class Pattern:
    """CSR positions of a sparse [R, C] matrix; the column order is sorted once and then shared."""

    def __init__(
        self,
        row_starts: Tensor,
        columns: Tensor,
        n_columns: int,
        sort: Callable[[], tuple[Tensor, Tensor]] | None = None,
        rows: Tensor | None = None,
    ):
        self._sort = sort  # what `by_column` is, where another pattern's order gives it
        self.row_starts = row_starts  # int64, or int32 like the columns: [R + 1]
        self.columns = columns  # [nnz], ascending within a row
        self.n_columns = n_columns
        self._derived: dict[str, Any] = {} if rows is None else {"rows": rows}

    @property
    def n_rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def prefers_dense(self) -> bool:
        """Whether products go by a dense A. A mode that forces an implementation forces it here too."""
        full = self.n_rows * self.n_columns
        return mode() == "auto" and len(self.columns) > DENSE_ABOVE * full

    @property
    def rows(self) -> Tensor:
        """The row of every entry: [nnz]."""
        return self._once("rows", self._rows)

    @property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """(order, column_starts): entries sorted by column, stably, so that sums are repeatable."""
        return self._once("by_column", self._sort or self._sorted)

    @property
    def sorted_rows(self) -> Tensor:
        """The row of every entry, in `by_column`'s order: [nnz]."""
        return self._once("sorted_rows", lambda: self.rows.index_select(0, self.by_column[0]))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name in self._derived:
            return self._derived[name]
        made = make()
        if not is_compiling():  # which forbids an autograd function to keep things
            self._derived[name] = made
        return made

    def _rows(self) -> Tensor:
        counts = self.row_starts.diff()
        ids = torch.arange(len(counts), dtype=counts.dtype, device=counts.device)
        return torch.repeat_interleave(ids, counts, output_size=len(self.columns))

    def _sorted(self) -> tuple[Tensor, Tensor]:
        if by_loops(self.columns):
            from dictlearn_kernels import csr

            order, starts = csr.by_column(self.columns, self.n_columns)
            return order, starts.to(self.row_starts.dtype)
        # Half as many digits to sort by; and bincount would make the host wait for a GPU.
        narrow = self.columns.int() if self.n_columns < 2**31 else self.columns
        columns, order = narrow.sort(stable=True)
        edges = torch.arange(self.n_columns + 1, dtype=columns.dtype, device=columns.device)
        starts = torch.searchsorted(columns, edges)
        return order, starts.to(self.row_starts.dtype)

    def merged(self, n: int, low: int, high: int) -> tuple[Pattern, Tensor | slice]:
        """(pattern, entries): every n rows put together in one, with the columns low to high - 1.

        Of each n rows in turn row i holds only the i-th n-th of the columns, as in a block diagonal;
        low and high are ends of such parts.
        `entries` says which of this pattern's entries, in order, are in it. Nothing is sorted again.
        """
        row_starts = self.row_starts[::n]
        if (low, high) == (0, self.n_columns):
            return Pattern(row_starts, self.columns, high, lambda: self.by_column), slice(None)
        first, last = self._ends(n, low), self._ends(n, high)
        if by_loops(self.columns):
            from dictlearn_kernels import csr

            given = row_starts, self.columns, low, high, last - first
            row_starts, columns, entries, before = csr.between(*given)
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
        """How many entries of a block diagonal, n blocks, come before a column that begins one.

        The host asks once for all blocks: each question waits for a GPU.
        """

        def count() -> list[int]:
            counts_RN = self.row_starts.diff().view(-1, n)
            return [0, *counts_RN.sum(0).cumsum(0).tolist()]

        block, rest = divmod(column * n, self.n_columns)
        assert rest == 0
        return self._once(f"ends of {n}", count)[block]

    def stacked(self, group: Tensor, n_groups: int) -> tuple[Pattern, Tensor]:
        """(pattern, order): the entries of group 0 (int [nnz]), below them those of group 1, ...

        A sparse [n_groups * R, C] matrix whose entries are this one's in `order`.
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
            # By one thread, in order.
            return values.new_zeros(self.n_columns).index_add_(0, self.columns, values)
        order, starts = self.by_column
        ones = values.new_ones(self.n_rows, 1)
        return bag(self.sorted_rows, starts, values.index_select(0, order), ones).squeeze(1)

    def sampled(self, g_RD: Tensor, W_CD: Tensor) -> Tensor:
        """<g_r, W_c> at every stored (r, c): [nnz]."""
        if self.prefers_dense:
            return _dense_product(g_RD, W_CD.T)[self.rows, self.columns]
        if W_CD.device.type == "cpu" and W_CD.numel() >= FAR:
            order, starts = self.by_column
            products = sampled(W_CD, g_RD, self.columns[order], self.sorted_rows, starts)
            return torch.empty_like(products).index_copy_(0, order.long(), products)
        return sampled(g_RD, W_CD, self.rows, self.columns, self.row_starts)


def _dense_product(A: Tensor, B: Tensor) -> Tensor:
    dtype = torch.promote_types(A.dtype, B.dtype)
    return A.to(dtype) @ B.to(dtype)
