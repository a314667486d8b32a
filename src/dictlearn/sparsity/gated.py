"""Gated (Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders")."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor, nn

from dictlearn.sparsity.protocol import Encoder, Options, Sparsity, Thresholded, of_source
from dictlearn.types import Encoding


@final
class Gated(Sparsity):
    """One path decides whether a feature fires, another how strongly.

    With u = W_enc x: it fires where pi = u + b_gate > 0, at strength relu(exp(r) u + b_mag). The
    encoder's own bias is b_gate. The encoding's support is every open gate and `pre` is pi there,
    which is what objective.gate_l1 and objective.gate_reconstruction read (equation 8).
    """

    name = "gated"

    def __init__(self, n_sources: int, n_features: int):
        super().__init__()
        self.r_SF = nn.Parameter(torch.zeros(n_sources, n_features))
        self.b_mag_SF = nn.Parameter(torch.zeros(n_sources, n_features))

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        gates = encoder.at(x_NSD, encoder.above(x_NSD, 0.0))
        feature = gates.pattern.columns
        u = gates.values - encoder.b_enc.flatten()[feature]
        strength = torch.relu(
            of_source(self.r_SF, source).flatten()[feature].exp() * u
            + of_source(self.b_mag_SF, source).flatten()[feature]
        )
        support = gates.with_values(strength)
        return Encoding(support.where(strength.detach() > 0), support, gates.values)

    def rescaled(self, factor_SF: Tensor) -> Gated:
        scaled = copy.deepcopy(self)
        scaled.b_mag_SF.data = self.b_mag_SF.data * factor_SF
        return scaled

    def shifted(self, shift_SF: Tensor) -> Gated:
        """u is what is left of a pre-activation without b_enc, so b_mag makes up for it."""
        moved = copy.deepcopy(self)
        moved.b_mag_SF.data = self.b_mag_SF.data + self.r_SF.data.exp() * shift_SF
        return moved

    def as_jumprelu(self, b_enc_SF: Tensor) -> Thresholded:
        """It fires where u + b_gate > 0, so where exp(r) u + b_mag > b_mag - exp(r) b_gate."""
        scale_SF = self.r_SF.exp()
        threshold_SF = (self.b_mag_SF - scale_SF * b_enc_SF).clamp_min(0)
        return Thresholded(scale_SF, self.b_mag_SF, threshold_SF)

    def entries(self, k: float) -> float:
        """dict.k, which the penalty's coefficient has to lead to."""
        return k

    def first_entries(self, k: float, n_features: int) -> float:
        """Half of all features: pre-activations begin on both sides of 0 alike."""
        return n_features / 2

    def options(self) -> Options:
        return {}
