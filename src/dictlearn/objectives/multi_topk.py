"""Multi-TopK (Gao et al. 2024, section 5.3): the reconstruction should improve with more features."""

from __future__ import annotations

from typing import final

from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term
from dictlearn.ranges import Fraction, NonNegative
from dictlearn.types import TrainedDictionary


@final
class MultiTopK(Term):
    """The squared error with `sparsity.wide` times as many features; the paper's coefficient is 1/8."""

    wants_sparsity = "topk"

    def __init__(self, coefficient: NonNegative = 1 / 8, warmup: Fraction = 0.0):
        super().__init__(coefficient, warmup)

    def value(self, forward: Forward) -> Tensor:
        assert forward.encoding.wide is not None, "`check` wants a sparsity that gives it"
        y_hat_NTD = forward.dictionary.decode(forward.encoding.wide, forward.x_NSD)
        return forward.reduce(forward.y_NTD - y_hat_NTD)

    def check(self, dictionary: TrainedDictionary) -> None:
        if dictionary.sparsity.wide < 2:
            raise ValueError(
                "objective.terms.multi_topk: wants sparsity.wide of 2 or more (4 in the paper)"
            )
