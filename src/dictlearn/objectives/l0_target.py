"""Quadratic L0 target for JumpReLU: (L0 / k - 1)^2, which fixes L0 instead of a coefficient."""

from __future__ import annotations

from typing import final

from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term
from dictlearn.ranges import Fraction, NonNegative, Positive
from dictlearn.sparsity.ranks import mean_of_all


@final
class L0Target(Term):
    """(mean L0 per token and source / k - 1)^2, differentiable in the thresholds alone.

    The mean is over the batch of all processes. This is the variant of Rajamanoharan et al. 2024 that
    dictionary_learning and Gemma Scope 2 use.
    """

    of_all = True
    wants_sparsity = "jumprelu"
    steers_l0 = "to a target"

    def __init__(self, k: Positive, coefficient: NonNegative = 1.0, warmup: Fraction = 0.0):
        super().__init__(coefficient, warmup)
        self.k = k

    def value(self, forward: Forward) -> Tensor:
        n_rows = len(forward.encoding.support.row_starts) - 1
        fired = forward.dictionary.sparsity.fires(forward.encoding).sum()
        l0 = mean_of_all(fired, n_rows)
        return (l0 / self.k - 1).square()
