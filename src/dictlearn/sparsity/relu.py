"""ReLU with a penalty on the code (Anthropic, April 2024 update): every positive pre-activation fires."""

from __future__ import annotations

from typing import final

from dictlearn_kernels.threshold import select_above
from torch import Tensor

from dictlearn.sparsity.protocol import ROUGH_MARGIN, Encoder, Options, Sparsity
from dictlearn.types import Encoding


@final
class ReLU(Sparsity):
    """Keeps what is positive; sparsity comes from objective.l1 alone.

    Early in training half of the code is active: the kernels then take their dense route.
    """

    name = "relu"

    def __init__(self, n_sources: int, n_features: int):
        super().__init__()

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        pre_RF = encoder.pre(x_NSD, lambda rough_RF: select_above(rough_RF, -ROUGH_MARGIN))
        code = encoder.at(x_NSD, select_above(pre_RF, 0.0))
        return Encoding(code, code, code.values)

    def options(self) -> Options:
        return {}
