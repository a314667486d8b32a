"""Means, variances and covariances in one pass, in float64 (Chan, Golub & LeVeque 1983).

No figure depends on how the data was batched. The sums are centred: raw sums of activations whose mean
is far from zero lose the digits that matter to cancellation.
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


def by_position(values: Tensor, position_N: Tensor, context: int) -> Tensor:
    """Sums values [..., N] over the tokens at each position: [..., P]."""
    sums = values.new_zeros(*values.shape[:-1], context)
    return sums.index_add_(-1, position_N, values)


@final
class Spread:
    """Count, mean and centred sum of squares of rows [N, T, D], per target."""

    def __init__(self) -> None:
        self.n = 0
        self.mean_TD = torch.zeros(())
        self.squares_T = torch.zeros(())

    def update(self, y_NTD: Tensor) -> None:
        n = len(y_NTD)
        if n == 0:
            return
        y_NTD = double(y_NTD)
        mean_TD = y_NTD.mean(0)
        squares_T = (y_NTD - mean_TD).square().sum((0, 2))
        gap_TD, total = mean_TD - self.mean_TD, self.n + n
        self.squares_T = self.squares_T + squares_T + gap_TD.square().sum(-1) * (self.n * n / total)
        self.mean_TD = self.mean_TD + gap_TD * (n / total)
        self.n = total


@final
class Covariance:
    """Count, means and centred cross products of paired rows x [N, D] and y [N, E]."""

    def __init__(self) -> None:
        self.n = 0
        self.mean_x_D = torch.zeros(())
        self.mean_y_E = torch.zeros(())
        self.products_DE = torch.zeros(())

    def update(self, x_ND: Tensor, y_NE: Tensor) -> None:
        n = len(x_ND)
        if n == 0:
            return
        x_ND, y_NE = double(x_ND), double(y_NE)
        mean_x_D, mean_y_E, total = x_ND.mean(0), y_NE.mean(0), self.n + n
        products_DE = (x_ND - mean_x_D).T @ (y_NE - mean_y_E)
        gap_x, gap_y = mean_x_D - self.mean_x_D, mean_y_E - self.mean_y_E
        outer_DE = torch.outer(gap_x, gap_y) * (self.n * n / total)
        self.products_DE = self.products_DE + products_DE + outer_DE
        self.mean_x_D = self.mean_x_D + gap_x * (n / total)
        self.mean_y_E = self.mean_y_E + gap_y * (n / total)
        self.n = total

    def matrix(self) -> Tensor:
        """The (biased) covariance [D, E]."""
        return self.products_DE / self.n
