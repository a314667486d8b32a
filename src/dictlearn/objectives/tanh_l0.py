"""Tanh penalty (Anthropic, January 2025 update): a smooth count of active features."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term, strengths
from dictlearn.ranges import Fraction, NonNegative, Positive


@final
class TanhL0(Term):
    """Mean over tokens of sum_i tanh(scale |f_i| ||W_dec,i||).

    It reads the encoding's support, so a JumpReLU threshold gets its gradient from both sides.
    """

    steers_l0 = "by its weight"

    def __init__(
        self, coefficient: NonNegative = 20.0, warmup: Fraction = 1.0, scale: Positive = 4.0
    ):
        super().__init__(coefficient, warmup)
        self.scale = scale

    def value(self, forward: Forward) -> Tensor:
        code = forward.encoding.support
        norms = forward.dictionary.decoder.norms().flatten()
        weighted = strengths(forward) * norms[code.pattern.columns]
        return torch.tanh(self.scale * weighted).sum() / code.n_tokens
