"""The nodes of a graph: features, errors of MLPs, tokens and targets, numbered in this order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dictlearn.attribution.targets import Named

Kind = Literal["feature", "error", "token", "target"]


class Node(NamedTuple):
    """One node. `layer` is None for tokens and targets, `feature` and `value` but for features."""

    number: int
    kind: Kind
    layer: int | None
    position: int
    feature: int | None
    value: float | None
    name: str


@dataclass(frozen=True, eq=False)
class Nodes:
    """Features by layer, position and index; errors by layer and position; tokens; targets."""

    tokens: Tensor  # int64 P
    pieces: list[str]  # P, the tokens' texts
    text: str
    n_layers: int
    vocab_size: int
    layer: Tensor  # int64, of the features; so are the next three
    position: Tensor
    index: Tensor
    value: Tensor
    targets: list[Named]

    def __len__(self) -> int:
        return self.n_features + self.n_errors + len(self.tokens) + len(self.targets)

    @property
    def n_features(self) -> int:
        return len(self.layer)

    @property
    def n_errors(self) -> int:
        return self.n_layers * len(self.tokens)

    @property
    def first_token(self) -> int:
        return self.n_features + self.n_errors

    @property
    def first_target(self) -> int:
        return self.first_token + len(self.tokens)

    @cached_property
    def levels(self) -> list[slice]:
        """Blocks of rows, from the targets down; none points at its own block or an earlier one."""
        ends = torch.bincount(self.layer, minlength=self.n_layers).cumsum(0).tolist()
        layers = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        return [slice(self.first_target, len(self)), *reversed(layers)]

    @property
    def weights(self) -> Tensor:
        """The influence that starts at each node: a target's weight, else 0. float32."""
        weights = torch.zeros(len(self))
        weights[self.first_target :] = torch.tensor([target.weight for target in self.targets])
        return weights

    def check(self, number: int) -> None:
        """Raises ValueError for a number that no node has."""
        if not 0 <= number < len(self):
            raise ValueError(f"node {number}: the graph has nodes 0 to {len(self) - 1}")

    def __getitem__(self, number: int) -> Node:
        """Raises ValueError for a number that no node has."""
        self.check(number)
        P = len(self.tokens)
        if number < self.n_features:
            layer, position, index = (
                int(field[number]) for field in (self.layer, self.position, self.index)
            )
            name = f"feature {layer}/{index} at {position}"
            return Node(number, "feature", layer, position, index, float(self.value[number]), name)
        if number < self.first_token:
            layer, position = divmod(number - self.n_features, P)
            name = f"error {layer} at {position}"
            return Node(number, "error", layer, position, None, None, name)
        if number < self.first_target:
            position = number - self.first_token
            name = f"token {self.pieces[position]!r} at {position}"
            return Node(number, "token", None, position, None, None, name)
        target = self.targets[number - self.first_target]
        return Node(number, "target", None, P - 1, None, None, target.name)
