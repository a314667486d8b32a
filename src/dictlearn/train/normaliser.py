"""Brings activations of any model and site to one scale before a dictionary sees them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from dictlearn.types import Batch

CONVENTIONS = ("sqrt_width", "unit", "none")


@final
class Normaliser(nn.Module):
    """x * input_scale and y * output_scale, one scalar per site, measured once and then constant.

    `sqrt_width` makes the mean norm sqrt(D) (Anthropic 2024), `unit` makes the mean squared norm 1
    (Gemma Scope), `none` changes nothing. Learning rates, thresholds, bandwidths and penalty
    coefficients mean something only together with this choice, so it is stored with them.
    """

    input_scale_S: Tensor
    output_scale_T: Tensor

    def __init__(self, n_sources: int, n_targets: int, convention: str = "sqrt_width"):
        super().__init__()
        if convention not in CONVENTIONS:
            raise ValueError(f"normalise={convention}: want one of {', '.join(CONVENTIONS)}")
        self.convention = convention
        self.register_buffer("input_scale_S", torch.ones(n_sources))
        self.register_buffer("output_scale_T", torch.ones(n_targets))

    def fit(self, batch: Batch) -> None:
        self.input_scale_S.copy_(self._scale(batch.x_NSD))
        self.output_scale_T.copy_(self._scale(batch.y_NTD))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x_NSD, y_NTD) in normalised units; the same tensor for an autoencoder."""
        x_NSD = batch.x_NSD * self.input_scale_S[:, None]
        if batch.targets_NTD is None:
            return x_NSD, x_NSD
        return x_NSD, batch.targets_NTD * self.output_scale_T[:, None]

    def targets(self, batch: Batch) -> Tensor:
        """y_NTD in normalised units."""
        return batch.y_NTD * self.output_scale_T[:, None]

    def _scale(self, activations: Tensor) -> Tensor:
        # Site by site: of all of them together, float64 takes more memory than a training step.
        sites = activations.unbind(1)
        norms = torch.stack([torch.linalg.vector_norm(x.double(), dim=-1) for x in sites], dim=1)
        match self.convention:
            case "sqrt_width":
                scale = activations.shape[-1] ** 0.5 / norms.mean(0)
            case "unit":
                scale = norms.square().mean(0).rsqrt()
            case _:
                scale = torch.ones_like(norms[0])
        if not torch.isfinite(scale).all():
            raise ValueError(
                "the activations are all zero or not finite: there is no scale to find"
            )
        return scale.float()
