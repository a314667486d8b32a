"""Find a norm's weights from its inputs and outputs, whatever the family calls the module."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-2  # relative error of the fit; rounding to bfloat16 is half of it


class Norm(NamedTuple):
    """y = weight * x / rms(x) + bias; with `centred`, the mean of x is subtracted first."""

    weight: Tensor  # D, float32
    centred: bool

    def linear(self, x_ND: Tensor) -> Tensor:
        """The norm with its scale fixed at 1, which is linear: how it maps a direction."""
        return self.weight * (x_ND - x_ND.mean(-1, keepdim=True) if self.centred else x_ND)

    def unit(self, x_ND: Tensor) -> Tensor:
        """The norm without its bias."""
        y_ND = self.linear(x_ND)
        x_ND = x_ND - x_ND.mean(-1, keepdim=True) if self.centred else x_ND
        return y_ND / x_ND.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def fit_norm(x_ND: Tensor, y_ND: Tensor) -> Norm | None:
    """The RMSNorm or LayerNorm that maps x to y, or None if neither does.

    Each channel is affine in the normalised input, so a few tokens determine the weights.
    """
    x_ND, y_ND = x_ND.double(), y_ND.double()
    for centred in (False, True):
        unit_ND = Norm(torch.ones_like(x_ND[0]), centred).unit(x_ND)
        mean_D, mean_y_D = unit_ND.mean(0), y_ND.mean(0)
        across = ((unit_ND - mean_D) * (y_ND - mean_y_D)).sum(0)
        weight_D = across / (unit_ND - mean_D).square().sum(0).clamp_min(1e-12)
        bias_D = mean_y_D - weight_D * mean_D
        error = (weight_D * unit_ND + bias_D - y_ND).square().sum()
        if error <= TOLERANCE**2 * y_ND.square().sum():
            return Norm(weight_D.float(), centred)
    return None
