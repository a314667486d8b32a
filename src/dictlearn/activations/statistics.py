"""Mean and variance of what is stored, in float64, merged from shards in their order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024


class Moments(NamedTuple):
    """Of a number of rows of one site."""

    rows: int
    mean_D: Tensor  # float64
    squares_D: Tensor  # float64: sum of squared distances from the mean
    norm: float  # mean L2 norm of a row

    @property
    def variance_D(self) -> Tensor:
        """Of the rows, not an estimate for others: divided by how many there are."""
        return self.squares_D / max(1, self.rows)


def nothing(width: int) -> Moments:
    zeros = torch.zeros(width, dtype=torch.float64)
    return Moments(0, zeros, zeros.clone(), 0.0)


def moments(x_ND: Tensor) -> Moments:
    """Of rows in any floating-point dtype."""
    total = nothing(x_ND.shape[1])
    for part in x_ND.split(ROWS_AT_ONCE):
        exact = part.double()
        mean = exact.mean(0)
        norm = float(exact.norm(dim=1).mean())
        total = merged(total, Moments(len(part), mean, (exact - mean).square().sum(0), norm))
    return total


def merged(a: Moments, b: Moments) -> Moments:
    """Of both together, by the formula that cancels nothing."""
    rows = a.rows + b.rows
    if not rows:
        return a
    share = b.rows / rows
    apart = b.mean_D - a.mean_D
    squares = a.squares_D + b.squares_D + apart.square() * (a.rows * share)
    return Moments(rows, a.mean_D + apart * share, squares, a.norm + (b.norm - a.norm) * share)
