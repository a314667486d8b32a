"""Which features get rows: those that most of the targets' influence arrives at.

A node passes what arrives at it on to its sources, in proportion to the absolute values of its row.
Rows point to lower levels alone, so one pass from the highest level down gives the sum over all
paths, to which circuit-tracer iterates. Its rule is kept: the features that most arrives at, by the
rows known so far, get the next `every` rows.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dictlearn.attribution.sweep import Rows

SMALLEST = 1e-8  # of a row's sum, as in circuit-tracer


class _Part(NamedTuple):
    """Rows of one level within a chunk."""

    nodes: Tensor  # active features, or targets
    edges: Tensor  # [n, columns]
    sums: Tensor  # n


class Ranking:
    """Influence over all columns, by the rows known so far."""

    def __init__(self, column_n: Tensor, weights: Tensor, columns: int) -> None:
        """`column_n`: the column of each active feature; `weights`: those of the targets."""
        self.column_n, self.weights, self.columns = column_n, weights, columns
        self._targets: list[_Part] = []
        self._features: dict[int, list[_Part]] = {}  # by level

    def add_targets(self, rows: Rows) -> None:
        self._targets.append(_part(rows.target, rows.edges))

    def add(self, nodes: Tensor, level: Tensor, edges: Tensor) -> None:
        """Rows of features, sorted by falling level."""
        start = 0
        levels, counts = level.unique_consecutive(return_counts=True)
        for at, count in zip(levels.tolist(), counts.tolist(), strict=True):
            end = start + count
            self._features.setdefault(at, []).append(_part(nodes[start:end], edges[start:end]))
            start = end

    def arrived(self) -> Tensor:
        """What arrives at each column."""
        total = self.weights.new_zeros(self.columns)
        for part in self._targets:
            self._pass_on(total, part, self.weights[part.nodes])
        for level in sorted(self._features, reverse=True):
            for part in self._features[level]:
                self._pass_on(total, part, total[self.column_n[part.nodes]])
        return total

    def _pass_on(self, total: Tensor, part: _Part, weight: Tensor) -> None:
        total[: part.edges.shape[1]] += (weight / part.sums) @ part.edges.abs()


def _part(nodes: Tensor, edges: Tensor) -> _Part:
    return _Part(nodes, edges, edges.abs().sum(1).clamp_min(SMALLEST))
