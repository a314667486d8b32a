"""The attribution graph of a prompt, on which everything else is computed."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictlearn.attribution.edges import Edges
from dictlearn.attribution.nodes import Node, Nodes
from dictlearn.attribution.prune import Pruned, prune
from dictlearn.frames import data_frame


class Route(NamedTuple):
    """Nodes from a source to a target. `share` is the product of the edges' shares of their rows."""

    nodes: list[int]
    weights: list[float]  # of the edges between them
    share: float


class Scores(NamedTuple):
    """replacement: the part of the influence on tokens and errors that tokens have, so it went
    through features alone. completeness: how much of the nodes' input is not from errors, on average
    by influence. Definitions and values are circuit-tracer's."""

    replacement: float
    completeness: float


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """Direct effects of features, errors and tokens on features and targets."""

    nodes: Nodes
    edges: Edges
    n_active: int  # features that were active, with or without rows
    left_out: float  # share of the influence on features that is on those without rows
    conservation: float  # largest difference of a row's sum and its target, of the largest target

    def __repr__(self) -> str:
        n = self.nodes
        return (
            f"Graph of {n.n_features:,} of {self.n_active:,} active features, {n.n_errors:,} errors, "
            f"{len(n.tokens):,} tokens and {len(n.targets):,} targets, with {len(self.edges):,} edges"
        )

    @cached_property
    def influence(self) -> Tensor:
        """What arrives at each node of the targets' weights: [nodes]."""
        return self.edges.influence(self.nodes.levels, self.nodes.weights.to(self.edges.weights))

    def prune(self, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Pruned:
        """The nodes and edges that these shares of the influence pass through."""
        return prune(self.nodes, self.edges, node_threshold, edge_threshold)

    @cached_property
    def scores(self) -> Scores:
        nodes, influence = self.nodes, self.influence
        errors = slice(nodes.n_features, nodes.first_token)
        on_tokens = influence[nodes.first_token : nodes.first_target].sum()
        replacement = on_tokens / (on_tokens + influence[errors].sum())
        of_errors = (self.edges.sources >= errors.start) & (self.edges.sources < errors.stop)
        error_share = torch.zeros_like(influence).index_add_(
            0, self.edges.targets[of_errors], self.edges.shares[of_errors]
        )
        passed = influence + nodes.weights.to(influence)
        completeness = ((1 - error_share) * passed).sum() / passed.sum()
        return Scores(float(replacement), float(completeness))

    def inputs(self, node: int, n: int = 10) -> list[tuple[Node, float]]:
        """The n sources with the largest effects on a node, and these."""
        self.nodes.check(node)
        at = slice(int(self.edges.row_starts[node]), int(self.edges.row_starts[node + 1]))
        return self._largest(self.edges.sources[at].long(), self.edges.weights[at], n)

    def outputs(self, node: int, n: int = 10) -> list[tuple[Node, float]]:
        """The n targets on which a node has the largest effects, and these."""
        self.nodes.check(node)
        at = (self.edges.sources == node).nonzero()[:, 0]
        return self._largest(self.edges.targets[at], self.edges.weights[at], n)

    def _largest(self, others: Tensor, weights: Tensor, n: int) -> list[tuple[Node, float]]:
        order = weights.abs().argsort(descending=True)[:n].tolist()
        return [(self.nodes[int(others[i])], float(weights[i])) for i in order]

    def paths(self, source: int, target: int, n: int = 10) -> list[Route]:
        """The n paths from one node to another with the largest shares; fewer if there are fewer.

        Found from the target down, largest share first; a node is left at most n times.
        """
        self.nodes.check(source)
        self.nodes.check(target)
        ancestors = self._reached(source)
        visits: dict[int, int] = {}
        found: list[Route] = []
        queue: list[tuple[float, list[int], list[float]]] = [(-1.0, [target], [])]
        while queue and len(found) < n:
            share, nodes, weights = heapq.heappop(queue)
            here = nodes[-1]
            if here == source:
                found.append(Route(nodes[::-1], weights[::-1], -share))
                continue
            if visits.get(here, 0) >= n:
                continue
            visits[here] = visits.get(here, 0) + 1
            at = slice(int(self.edges.row_starts[here]), int(self.edges.row_starts[here + 1]))
            sources = self.edges.sources[at].long()
            on_a_path = ancestors[sources]
            for s, w, part in zip(
                sources[on_a_path].tolist(),
                self.edges.weights[at][on_a_path].tolist(),
                self.edges.shares[at][on_a_path].tolist(),
                strict=True,
            ):
                heapq.heappush(queue, (share * part, [*nodes, s], [*weights, w]))
        return found

    def _reached(self, source: int) -> Tensor:
        """The nodes that a path leads to from the source, itself included: bool [nodes]."""
        reached = torch.zeros(len(self.nodes), dtype=torch.bool)
        reached[source] = True
        for rows in reversed(self.nodes.levels):
            at = slice(
                int(self.edges.row_starts[rows.start]), int(self.edges.row_starts[rows.stop])
            )
            hit = reached[self.edges.sources[at].long()]
            reached[self.edges.targets[at][hit]] = True
        return reached

    def save(self, folder: str | Path, overwrite: bool | None = None) -> None:
        """Writes a folder of safetensors and JSON. Raises SaveError where other files would be lost."""
        from dictlearn.attribution import files  # which reads graphs too

        files.save(self, Path(folder), overwrite=overwrite)

    def rows(self) -> list[dict[str, Any]]:
        """The nodes with their influence, a dictionary each."""
        influence = self.influence.tolist()
        return [
            self.nodes[i]._asdict() | {"influence": influence[i]} for i in range(len(self.nodes))
        ]

    def to_pandas(self) -> Any:
        """`rows` as a pandas.DataFrame. Raises ImportError if pandas is not installed."""
        return data_frame(self.rows())
