"""AbsTopK (Zhu et al. 2025, "AbsTopK: rethinking sparse autoencoders for bidirectional features")."""

from __future__ import annotations

from typing import Annotated, final

import torch
from torch import Tensor

from dictlearn.ranges import Count
from dictlearn.sparsity.protocol import Encoder, Options, Sparsity, alike
from dictlearn.types import Encoding


@final
class AbsTopK(Sparsity):
    """Keeps the k pre-activations of each token that are farthest from zero, with their signs.

    A feature is a direction and its opposite: one for what TopK needs two for. What describes and
    exports features takes positive ones only, and refuses these. The encoder's matmul runs in full
    precision, and rows are searched on both sides, so a step costs more than TopK's.
    """

    name = "abstopk"
    signed = True
    selects = True

    def __init__(
        self, n_sources: int, n_features: int, k: Annotated[Count, "batchtopk takes fractions"]
    ):
        super().__init__()
        if k != int(k) or not 1 <= k <= n_features:
            raise ValueError(f"sparsity.k={k}: want 1 to the {n_features} features, a whole number")
        self.k = int(k)

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        code = encoder.at(x_NSD, encoder.where(x_NSD, self._farthest))
        return Encoding(code, code, code.values)

    def _farthest(self, pre_RF: Tensor) -> Tensor:
        places_RK = pre_RF.abs().topk(self.k).indices
        return torch.zeros_like(pre_RF, dtype=torch.bool).scatter_(1, places_RK, True) & (
            pre_RF != 0
        )

    def rescaled(self, factor_SF: Tensor) -> AbsTopK:
        alike(factor_SF, self.name)
        return self

    def shifted(self, shift_SF: Tensor) -> AbsTopK:
        return self

    def entries(self, k: float) -> float:
        return self.k

    def options(self) -> Options:
        return {"k": self.k}
