"""Gated (Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders")."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor, nn

from dictlearn.sparsity.protocol import Encoder, Options, Sparsity, of_source
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

    def rescaled(self, factor_S: Tensor) -> Gated:
        scaled = copy.deepcopy(self)
        scaled.b_mag_SF.data = self.b_mag_SF.data * factor_S[:, None]
        return scaled

    def options(self) -> Options:
        return {}
