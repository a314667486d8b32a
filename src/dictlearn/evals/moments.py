"""Means, variances and covariances in one pass, float64, mergeable (Chan, Golub & LeVeque 1983).

Merging two summaries gives the same as one pass over both: no figure depends on how the data was
batched or split between ranks. The sums are centred: raw sums of activations whose mean is far from
zero lose the digits that matter to cancellation.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


def double(values: Tensor) -> Tensor:
    """Converts to float64, on the same device unless it has none (MPS)."""
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()


def add_padded(a: Tensor, b: Tensor) -> Tensor:
    """Sum of two tables; the one with the shorter last dimension is padded with zeros."""
    longest = max(a.shape[-1], b.shape[-1])
    widen = torch.nn.functional.pad
    return widen(a, (0, longest - a.shape[-1])) + widen(b, (0, longest - b.shape[-1]))


@final
class Spread:
    """Count, mean and centred sum of squares of rows [N, T, D], per target."""

    def __init__(self) -> None:
        self.n = 0
        self.mean_TD = torch.zeros(())
        self.squares_T = torch.zeros(())

    def update(self, y_NTD: Tensor) -> None:
        if len(y_NTD):
            self.merge(Spread.of(double(y_NTD)))

    @staticmethod
    def of(y_NTD: Tensor) -> Spread:
        spread = Spread()
        spread.n = len(y_NTD)
        spread.mean_TD = y_NTD.mean(0)
        spread.squares_T = (y_NTD - spread.mean_TD).square().sum((0, 2))
        return spread

    def merge(self, other: Spread) -> None:
        if other.n == 0:
            return
        if self.n == 0:
            self.n, self.mean_TD, self.squares_T = other.n, other.mean_TD, other.squares_T
            return
        n = self.n + other.n
        gap_TD = other.mean_TD - self.mean_TD
        self.squares_T = (
            self.squares_T + other.squares_T + gap_TD.square().sum(-1) * (self.n * other.n / n)
        )
        self.mean_TD = self.mean_TD + gap_TD * (other.n / n)
        self.n = n


@final
class Covariance:
    """Count, means and centred cross products of paired rows x [N, D] and y [N, E]."""

    def __init__(self) -> None:
        self.n = 0
        self.mean_x_D = torch.zeros(())
        self.mean_y_E = torch.zeros(())
        self.products_DE = torch.zeros(())

    def update(self, x_ND: Tensor, y_NE: Tensor) -> None:
        if len(x_ND) == 0:
            return
        batch = Covariance()
        x_ND, y_NE = double(x_ND), double(y_NE)
        batch.n, batch.mean_x_D, batch.mean_y_E = len(x_ND), x_ND.mean(0), y_NE.mean(0)
        batch.products_DE = (x_ND - batch.mean_x_D).T @ (y_NE - batch.mean_y_E)
        self.merge(batch)

    def merge(self, other: Covariance) -> None:
        if other.n == 0:
            return
        if self.n == 0:
            self.n, self.mean_x_D, self.mean_y_E = other.n, other.mean_x_D, other.mean_y_E
            self.products_DE = other.products_DE
            return
        n = self.n + other.n
        gap_x, gap_y = other.mean_x_D - self.mean_x_D, other.mean_y_E - self.mean_y_E
        self.products_DE = (
            self.products_DE
            + other.products_DE
            + torch.outer(gap_x, gap_y) * (self.n * other.n / n)
        )
        self.mean_x_D = self.mean_x_D + gap_x * (other.n / n)
        self.mean_y_E = self.mean_y_E + gap_y * (other.n / n)
        self.n = n

    def matrix(self) -> Tensor:
        """The (biased) covariance [D, E]."""
        return self.products_DE / self.n
