"""Mean and variance of stored values, in float64; those of shards are merged in order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024


class Moments(NamedTuple):
    """Moments of the rows of one site."""

    rows: int
    mean_D: Tensor  # float64
    squares_D: Tensor  # float64, sum of squared distances from the mean
    norm: float  # mean L2 norm of a row

    @property
    def variance_D(self) -> Tensor:
        """The variance of these rows, divided by their number."""
        return self.squares_D / max(1, self.rows)

    @property
    def mean_square(self) -> float:
        """The mean squared L2 norm of a row."""
        return float((self.variance_D + self.mean_D.square()).sum())


def nothing(width: int) -> Moments:
    zeros = torch.zeros(width, dtype=torch.float64)
    return Moments(0, zeros, zeros.clone(), 0.0)


def moments(x_ND: Tensor) -> Moments:
    """The moments of rows in any floating-point dtype."""
    total = nothing(x_ND.shape[1])
    for part in x_ND.split(ROWS_AT_ONCE):
        exact = part.double()
        mean = exact.mean(0)
        norm = float(exact.norm(dim=1).mean())
        total = merged(total, Moments(len(part), mean, (exact - mean).square().sum(0), norm))
    return total


def merged(a: Moments, b: Moments) -> Moments:
    """The moments of both together, by a numerically stable formula."""
    rows = a.rows + b.rows
    if not rows:
        return a
    share = b.rows / rows
    shift_D = b.mean_D - a.mean_D
    squares = a.squares_D + b.squares_D + shift_D.square() * (a.rows * share)
    return Moments(rows, a.mean_D + shift_D * share, squares, a.norm + (b.norm - a.norm) * share)
