"""Edges of a graph as a sparse matrix, and what flows along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SMALLEST = 1e-10  # of the sum of a row's absolute weights, as in circuit-tracer


@dataclass(frozen=True, eq=False)
class Edges:
    """CSR: row t has the direct effects of its sources on node t. No stored weight is zero."""

    row_starts: Tensor  # int64 [nodes + 1]
    sources: Tensor  # int32 [edges], ascending within a row
    weights: Tensor  # [edges]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def n_nodes(self) -> int:
        return len(self.row_starts) - 1

    @cached_property
    def targets(self) -> Tensor:
        """The row of each edge: int64 [edges]."""
        return torch.arange(self.n_nodes).repeat_interleave(self.row_starts.diff())

    @cached_property
    def shares(self) -> Tensor:
        """Each edge's absolute weight, divided by the sum of those of its row: [edges]."""
        size = self.weights.abs()
        sums = size.new_zeros(self.n_nodes).index_add_(0, self.targets, size)
        return size / sums.clamp_min(SMALLEST)[self.targets]

    def dense(self) -> Tensor:
        """[nodes, nodes]: rows are targets, columns are sources."""
        matrix = self.weights.new_zeros(self.n_nodes, self.n_nodes)
        matrix[self.targets, self.sources.long()] = self.weights
        return matrix

    def where(self, keep: Tensor) -> Edges:
        """The edges for which `keep` is True, among the same nodes."""
        counts = torch.bincount(self.targets[keep], minlength=self.n_nodes)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Edges(starts, self.sources[keep], self.weights[keep])

    def influence(self, levels: Sequence[slice], weights: Tensor) -> Tensor:
        """What arrives at each node if `weights` start at the nodes and rows pass it on in shares.

        `levels` are blocks of rows in an order in which none points at its own or an earlier one.
        """
        total = torch.zeros_like(weights)
        for rows in levels:
            at = slice(int(self.row_starts[rows.start]), int(self.row_starts[rows.stop]))
            passed = (total + weights)[self.targets[at]] * self.shares[at]
            total.index_add_(0, self.sources[at].long(), passed)
        return total


def compressed(parts: Sequence[tuple[Tensor, Tensor]], column_node: Tensor, n_nodes: int) -> Edges:
    """The edges of blocks of rows, as (the node of each row, [rows, columns]), among the nodes.

    `column_node`: the node of each column, -1 for one without. A block may have fewer columns.
    """
    order = column_node.argsort(stable=True)
    order = order[column_node[order] >= 0]
    counts = torch.zeros(n_nodes, dtype=torch.int64)
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # rows, entries a row, sources, weights
    for nodes, edges in parts:
        columns = order[order < edges.shape[1]]
        some = edges.index_select(1, columns)
        row, column = some.nonzero(as_tuple=True)
        per_row = torch.bincount(row, minlength=len(nodes)).cpu()
        sources = column_node[columns][column].int().cpu()
        found.append((nodes.cpu(), per_row, sources, some[row, column].cpu()))
        counts[found[-1][0]] = per_row
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    sources = torch.empty(int(starts[-1]), dtype=torch.int32)
    weights = torch.empty(len(sources), dtype=found[0][3].dtype)
    for nodes, per_row, some_sources, some_weights in found:
        first = per_row.cumsum(0) - per_row
        place = (starts[nodes] - first).repeat_interleave(per_row) + torch.arange(len(some_sources))
        sources[place], weights[place] = some_sources, some_weights
    return Edges(starts, sources, weights)
