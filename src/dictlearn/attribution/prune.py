"""The part of a graph that most of the influence passes through, by circuit-tracer's rule.

First the nodes that together have a share of the influence stay, with all tokens and targets; then
the edges among them that have a share of what passes along edges; last, nodes that lead nowhere or
come from nowhere go. No matrix of all pairs of nodes is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dictlearn.attribution.edges import Edges
from dictlearn.attribution.nodes import Nodes


@dataclass(frozen=True, eq=False)
class Pruned:
    """The nodes and edges that stay; nodes keep their numbers in the whole graph."""

    kept: Tensor  # bool [nodes]
    edges: Edges  # among the nodes that stay
    cumulative: Tensor  # [nodes]: the share of influence on nodes that have as much as this one
    node_threshold: float
    edge_threshold: float

    def __repr__(self) -> str:
        return f"Pruned graph of {int(self.kept.sum()):,} nodes and {len(self.edges):,} edges"


def prune(nodes: Nodes, edges: Edges, node_threshold: float, edge_threshold: float) -> Pruned:
    """Raises ValueError for a threshold that is no share."""
    for key, share in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 <= share <= 1:
            raise ValueError(f"{key}={share}: want a share, 0 to 1")
    weights = nodes.weights.to(edges.weights)
    score = edges.influence(nodes.levels, weights)
    kept = score >= _threshold(score, node_threshold)
    inner, feature = nodes.n_features + nodes.n_errors, nodes.n_features
    kept[inner:] = True
    some = edges.where(kept[edges.targets] & kept[edges.sources.long()])
    passed = some.influence(nodes.levels, weights) + weights
    flow = some.shares * passed[some.targets]
    some = some.where(flow >= _threshold(flow, edge_threshold))
    while True:
        leads, comes = torch.zeros_like(kept), torch.zeros_like(kept)
        leads[some.sources.long()] = True
        comes[some.targets] = True
        leads[inner:] = True
        comes[feature:] = True
        alive = kept & leads & comes
        if torch.equal(alive, kept):
            break
        kept = alive
        some = some.where(kept[some.targets] & kept[some.sources.long()])
    falling, order = score.sort(descending=True)
    cumulative = torch.empty_like(score)
    cumulative[order] = falling.cumsum(0) / falling.sum()
    return Pruned(kept, some, cumulative, node_threshold, edge_threshold)


def _threshold(scores: Tensor, share: float) -> Tensor:
    """The score down to which entries have this share of the sum together."""
    falling = scores[scores > 0].sort(descending=True).values
    if not len(falling):
        return scores.new_zeros(())
    at = int(torch.searchsorted(falling.cumsum(0) / falling.sum(), share))
    return falling[min(at, len(falling) - 1)]
