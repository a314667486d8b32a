"""The gradient A.T @ g of a weight matrix that a sparse code multiplies: made, or kept in its parts.

As a dense tensor it is as large as the matrix: written once, then read and written again by the
projection, the norm, the clipping and the optimiser. A `Collector` keeps the three factors instead
(pattern, values, g: what the batch has, not what the matrix has), and whoever wants the gradient
sums the rows it is about to use, in a fixed order, from one sort per pattern. A gradient that is dense
by nature is written into memory that it keeps from step to step: new pages of a large tensor cost a
CPU more than filling them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from dictlearn_kernels.bag import bag
from dictlearn_kernels.pattern import Pattern

_active: Collector | None = None


def weight_grad(pattern: Pattern, values: Tensor, g_RD: Tensor, W_CD: Tensor) -> Tensor | None:
    """A.T @ g: [C, D], the gradient of W in y = A @ W; None where a collector has taken it.

    `W_CD` is the matrix that was multiplied: a parameter, or some of a parameter's rows.
    """
    if _active is not None and _active.takes(W_CD) and not pattern.prefers_dense:
        _active.add(W_CD, pattern, values, g_RD)
        return None
    return pattern.transposed_matmul(values, g_RD)


def collecting(*parameters: Tensor) -> Collector | None:
    """The active collector, where it takes the gradients of all these parameters."""
    return _active if _active is not None and all(map(_active.takes, parameters)) else None


@dataclass(eq=False)
class Product:
    """A.T @ g for some rows of a parameter."""

    first_row: int  # of the parameter, seen as [rows, D]
    pattern: Pattern
    values: Tensor
    g_RD: Tensor

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """(row of g, value) of every entry in the order of columns, and where columns start."""
        order, starts = self.pattern.by_column
        return self.pattern.sorted_rows, self.values.index_select(0, order), starts

    @cached_property
    def _starts(self) -> list[int]:
        return self.by_column[2].tolist()

    def rows(self, low: int, high: int) -> Tensor | None:
        """Rows low to high - 1 of the product, [high - low, D]; None where they are all zero."""
        rows, values, starts = self.by_column
        first, last = self._starts[low], self._starts[high]
        if first == last:
            return None
        local = starts[low : high + 1] - first
        weights = values[first:last]
        if self.g_RD.is_cuda:
            return bag(rows[first:last], local, weights, self.g_RD)
        # What bag comes to on a CPU, without an operator's overhead: there are many small ones.
        return F.embedding_bag(
            rows[first:last],
            self.g_RD,
            local,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )

    def sorted(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Entries by column: (rows of g, values, columns), each [nnz], and where columns start."""
        order, starts = self.pattern.by_column
        return (
            self.pattern.sorted_rows,
            self.values.index_select(0, order),
            self.pattern.columns[order],
            starts,
        )


@final
class RowGradient:
    """The gradient of one parameter, seen as [rows, D]: a sum of products, made where it is read."""

    def __init__(self, dense: Tensor | None, products: list[Product], width: int):
        self.dense_RD = None if dense is None else dense.reshape(-1, width)
        self.products, self.width = products, width
        self.prepared: Any = None  # what an implementation has made of it and will need again

    def whole(self, n_rows: int) -> Product:
        """All the products as one, over all of the parameter's rows."""
        if len(self.products) == 1:
            (only,) = self.products
            if (only.first_row, only.pattern.n_columns) == (0, n_rows):
                return only
        device = self.dense_RD.device if self.dense_RD is not None else self.products[0].g_RD.device
        starts, offset = [torch.zeros(1, dtype=torch.int64, device=device)], 0
        for product in self.products:
            starts.append(product.pattern.row_starts[1:] + offset)
            offset += len(product.values)
        columns = [product.pattern.columns + product.first_row for product in self.products]
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        pattern = Pattern(torch.cat(starts), torch.cat([empty, *columns]), n_rows)
        values = torch.cat([torch.zeros(0, device=device), *(p.values for p in self.products)])
        none = torch.zeros(0, self.width, device=device)
        return Product(0, pattern, values, torch.cat([none, *(p.g_RD for p in self.products)]))

    def rows(self, low: int, high: int) -> Tensor | None:
        """Rows low to high - 1, a tensor of the caller's own; None where they are all zero."""
        total = None if self.dense_RD is None else self.dense_RD[low:high].clone()
        for product in self.products:
            start = max(low, product.first_row)
            stop = min(high, product.first_row + product.pattern.n_columns)
            if start >= stop:
                continue
            part = product.rows(start - product.first_row, stop - product.first_row)
            if part is None:
                continue
            if total is None and (start, stop) == (low, high):
                total = part
                continue
            if total is None:
                total = part.new_zeros(high - low, self.width)
            total[start - low : stop - low] += part
        return total


@final
class Collector:
    """Takes the weight gradients of the given parameters while it is active.

    The parameters must be contiguous, their last dimension a row. Gradients that reach them by other
    ways (a penalty on norms, a nearly dense code) are in `.grad` as always and are added.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self.parameters = list(parameters)
        self._given = {id(p) for p in self.parameters}
        self._products: dict[int, list[Product]] = {}
        self._rooms: dict[int, Tensor] = {}  # memory for dense gradients
        self._dense: dict[int, Tensor] = {}  # those of this step

    def takes(self, W_CD: Tensor) -> bool:
        return W_CD.untyped_storage().data_ptr() in self._products

    def has(self, parameter: Tensor) -> bool:
        """Whether this is one of the parameters given, itself."""
        return id(parameter) in self._given

    def add(self, W_CD: Tensor, pattern: Pattern, values: Tensor, g_RD: Tensor) -> None:
        key, first_row = W_CD.untyped_storage().data_ptr(), W_CD.storage_offset() // W_CD.shape[1]
        self._products[key].append(Product(first_row, pattern, values.detach(), g_RD))

    def room(self, parameter: Tensor) -> Tensor:
        """Where to write a dense gradient for `add_dense`: kept memory, once in a step."""
        key = parameter.untyped_storage().data_ptr()
        if key not in self._rooms:
            self._rooms[key] = torch.empty_like(parameter, requires_grad=False)
        return torch.empty_like(self._rooms[key]) if key in self._dense else self._rooms[key]

    def add_dense(self, parameter: Tensor, g: Tensor) -> None:
        key = parameter.untyped_storage().data_ptr()
        self._dense[key] = self._dense[key].add_(g) if key in self._dense else g

    def gradient(self, parameter: Tensor) -> RowGradient | None:
        """What has come for a parameter, here or in its `.grad`; None where nothing has."""
        key = parameter.untyped_storage().data_ptr()
        products, dense = self._products.get(key, []), self._dense.get(key)
        if dense is None:
            dense = parameter.grad
        elif parameter.grad is not None:
            dense.add_(parameter.grad)
            parameter.grad = None
        if dense is None and not products:
            return None
        return RowGradient(dense, products, parameter.shape[-1] if parameter.ndim else 1)

    def clear(self) -> None:
        self._dense.clear()
        for products in self._products.values():
            products.clear()

    def start(self) -> None:
        """Becomes the active collector of the process. Memory may have moved since the last time."""
        global _active
        keys = [p.untyped_storage().data_ptr() for p in self.parameters]
        if list(self._products) != keys:
            collected = self._dense or any(self._products.values())
            assert not collected, "parameters moved within one step"
            self._products = {key: [] for key in keys}
            self._rooms.clear()
        _active = self

    def stop(self) -> None:
        global _active
        if _active is self:
            _active = None
