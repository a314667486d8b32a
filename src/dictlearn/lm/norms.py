"""A norm's weights from what it reads and what it writes, whatever the family calls it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-2  # of the fit, relative: bfloat16 rounds by half of that


class Norm(NamedTuple):
    """y = weight * x / scale(x) + bias, scale the root mean square, of x or of x less its mean."""

    weight: Tensor  # D, float32
    centred: bool

    def linear(self, x_ND: Tensor) -> Tensor:
        """What is left of it for a fixed scale of 1: how it passes on a direction."""
        return self.weight * (x_ND - x_ND.mean(-1, keepdim=True) if self.centred else x_ND)

    def unit(self, x_ND: Tensor) -> Tensor:
        """The norm itself, without its bias."""
        y_ND = self.linear(x_ND)
        x_ND = x_ND - x_ND.mean(-1, keepdim=True) if self.centred else x_ND
        return y_ND / x_ND.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def fitted(x_ND: Tensor, y_ND: Tensor) -> Norm | None:
    """The RMSNorm or LayerNorm that turns x into y, or None where neither does.

    Both are affine in the normalised input, channel by channel, so a few tokens determine them.
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
