"""The gradient A.T @ g of a weight matrix that a sparse code multiplies: dense, or as its factors.

A dense gradient is as large as the matrix. It is written once, then read and written again by the
projection, the norm, the clipping and the optimiser. A `Collector` keeps the factors instead (pattern,
values and g), whose size depends on the batch and not on the matrix. The optimiser sums the rows that it
is about to use, in a fixed order, from one sort per pattern.

The collector writes gradients that are dense by nature into memory that it keeps from step to step: on a
CPU the new pages of a large tensor cost more than filling them.
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
    """A.T @ g: [C, D], the gradient of W in y = A @ W; None where the active collector has taken it.

    `W_CD` is the matrix that was multiplied: a parameter, or some of its rows.
    """
    if _active is not None and _active.takes(W_CD) and not pattern.prefers_dense:
        _active.add(W_CD, pattern, values, g_RD)
        return None
    return pattern.transposed_matmul(values, g_RD)


def collecting(*parameters: Tensor) -> Collector | None:
    """The active collector if it takes the gradients of all these parameters, or None."""
    return _active if _active is not None and all(map(_active.takes, parameters)) else None


@dataclass(eq=False)
class Product:
    """A.T @ g, the gradient of some rows of a parameter."""

    first_row: int  # of the parameter, seen as [rows, D]
    pattern: Pattern
    values: Tensor
    g_RD: Tensor

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """(row of g, value) of every entry in the order of columns, and the columns' starts."""
        order, starts = self.pattern.by_column
        return self.pattern.sorted_rows, self.values.index_select(0, order), starts

    @cached_property
    def _starts(self) -> list[int]:
        return self.by_column[2].tolist()

    def rows(self, low: int, high: int) -> Tensor | None:
        """Rows low to high - 1 of the product, [high - low, D]; None if they are all zero."""
        rows, values, starts = self.by_column
        first, last = self._starts[low], self._starts[high]
        if first == last:
            return None
        local = starts[low : high + 1] - first
        weights = values[first:last]
        if self.g_RD.is_cuda:
            return bag(rows[first:last], local, weights, self.g_RD)
        # `bag` does this on a CPU, but its overhead counts in many small calls.
        return F.embedding_bag(
            rows[first:last],
            self.g_RD,
            local,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )

    def sorted(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(rows of g, values, columns), each [nnz] in the order of columns, and the columns' starts."""
        order, starts = self.pattern.by_column
        return (
            self.pattern.sorted_rows,
            self.values.index_select(0, order),
            self.pattern.columns[order],
            starts,
        )


@final
class RowGradient:
    """The gradient of one parameter, as [rows, D]: a sum of products, computed where it is read."""

    def __init__(self, dense: Tensor | None, products: list[Product], width: int):
        self.dense_RD = None if dense is None else dense.reshape(-1, width)
        self.products, self.width = products, width
        self.prepared: Any = None  # an implementation's own form of it, kept for its next pass

    def whole(self, n_rows: int) -> Product:
        """All products as one, over all rows of the parameter."""
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
        """Rows low to high - 1 in a new tensor; None if they are all zero."""
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
    """Takes the weight gradients of some parameters while it is active.

    The parameters must be contiguous, with rows in their last dimension. Gradients that reach them in
    other ways (a penalty on norms, a nearly dense code) are in `.grad` as always, and are added.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self.parameters = list(parameters)
        self._ids = {id(p) for p in self.parameters}
        self._products: dict[int, list[Product]] = {}
        self._buffers: dict[int, Tensor] = {}  # memory for dense gradients
        self._dense: dict[int, Tensor] = {}  # the dense gradients of this step

    def takes(self, W_CD: Tensor) -> bool:
        """Whether this is one of the parameters, or some of its rows."""
        return W_CD.untyped_storage().data_ptr() in self._products

    def has(self, parameter: Tensor) -> bool:
        """Whether this is one of the parameters."""
        return id(parameter) in self._ids

    def add(self, W_CD: Tensor, pattern: Pattern, values: Tensor, g_RD: Tensor) -> None:
        key, first_row = W_CD.untyped_storage().data_ptr(), W_CD.storage_offset() // W_CD.shape[1]
        self._products[key].append(Product(first_row, pattern, values.detach(), g_RD))

    def buffer(self, parameter: Tensor) -> Tensor:
        """Memory to write a dense gradient into for `add_dense`. The first call of a step reuses it."""
        key = parameter.untyped_storage().data_ptr()
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(parameter, requires_grad=False)
        return torch.empty_like(self._buffers[key]) if key in self._dense else self._buffers[key]

    def add_dense(self, parameter: Tensor, g: Tensor) -> None:
        key = parameter.untyped_storage().data_ptr()
        self._dense[key] = self._dense[key].add_(g) if key in self._dense else g

    def gradient(self, parameter: Tensor) -> RowGradient | None:
        """The gradient of a parameter from here and from its `.grad`; None if there is none."""
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
        """Makes this the process's active collector. Parameters may have moved since the last step."""
        global _active
        keys = [p.untyped_storage().data_ptr() for p in self.parameters]
        if list(self._products) != keys:
            collected = self._dense or any(self._products.values())
            assert not collected, "parameters moved within one step"
            self._products = {key: [] for key in keys}
            self._buffers.clear()
        _active = self

    def stop(self) -> None:
        global _active
        if _active is self:
            _active = None
