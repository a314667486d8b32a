"""Brings activations of any model and site to one scale before a dictionary sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from dictlearn.types import Batch, Norms

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

    def fit(self, batch: Batch, known: Sequence[Sequence[Norms]] | None = None) -> None:
        """Sets the scales by a batch, or by the known norms of the sources and of the targets."""
        inputs, outputs = known or (_norms(batch.x_NSD), _norms(batch.y_NTD))
        self.input_scale_S.copy_(self._scale(inputs, batch.x_NSD.shape[-1]))
        self.output_scale_T.copy_(self._scale(outputs, batch.x_NSD.shape[-1]))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x_NSD, y_NTD) in normalised units; the same tensor for an autoencoder."""
        x_NSD = batch.x_NSD * self.input_scale_S[:, None]
        if batch.targets_NTD is None:
            return x_NSD, x_NSD
        return x_NSD, batch.targets_NTD * self.output_scale_T[:, None]

    def targets(self, batch: Batch) -> Tensor:
        """y_NTD in normalised units."""
        return batch.y_NTD * self.output_scale_T[:, None]

    def _scale(self, norms: Sequence[Norms], width: int) -> Tensor:
        mean, mean_square = torch.tensor([tuple(site) for site in norms], dtype=torch.float64).T
        match self.convention:
            case "sqrt_width":
                scale = width**0.5 / mean
            case "unit":
                scale = mean_square.rsqrt()
            case _:
                scale = torch.ones_like(mean)
        if not torch.isfinite(scale).all():
            raise ValueError(
                "the activations are all zero or not finite: there is no scale to find"
            )
        return scale.float()


def _norms(activations: Tensor) -> list[Norms]:
    """The norms of every site of a batch."""
    # Site by site: of all of them together, float64 takes more memory than a training step.
    norms = [torch.linalg.vector_norm(x.double(), dim=-1) for x in activations.unbind(1)]
    return [Norms(float(norm_N.mean()), float(norm_N.square().mean())) for norm_N in norms]
