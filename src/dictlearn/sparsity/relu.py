"""ReLU with a penalty on the code (Anthropic, April 2024 update): every positive pre-activation fires."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.sparsity.protocol import Encoder, Options, Sparsity, Thresholded
from dictlearn.types import Encoding


@final
class ReLU(Sparsity):
    """Keeps what is positive; sparsity comes from objective.l1 alone.

    Early in training half of the code is active: the kernels then take their dense route.
    """

    name = "relu"
    selects = True

    def __init__(self, n_sources: int, n_features: int):
        super().__init__()

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        code = encoder.at(x_NSD, encoder.above(x_NSD, 0.0))
        return Encoding(code, code, code.values)

    def rescaled(self, factor_SF: Tensor) -> ReLU:
        return self

    def shifted(self, shift_SF: Tensor) -> ReLU:
        return self

    def as_jumprelu(self, b_enc_SF: Tensor) -> Thresholded:
        return Thresholded(torch.ones_like(b_enc_SF), b_enc_SF, torch.zeros_like(b_enc_SF))

    def entries(self, k: float) -> float:
        """dict.k, which the penalty's coefficient has to lead to."""
        return k

    def first_entries(self, k: float, n_features: int) -> float:
        """All: half of the features fire at first, and nearly all before the penalty has grown."""
        return n_features

    def options(self) -> Options:
        return {}
