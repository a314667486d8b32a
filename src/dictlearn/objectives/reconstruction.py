"""Squared error of the reconstruction, over all nested prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term
from dictlearn.ranges import Fraction, NonNegative
from dictlearn.types import TrainedDictionary


@final
class Reconstruction(Term):
    """Mean over tokens of ||y - y_hat||^2, averaged over the nested prefixes if there are any.

    `prefix_weights`, one per prefix, let inner dictionaries count less (balancing inner losses
    reduces feature hedging: Chanin et al. 2025); they are used as they are given, and their absence
    means weight 1 / G each.
    """

    def __init__(
        self,
        coefficient: NonNegative = 1.0,
        warmup: Fraction = 0.0,
        prefix_weights: Sequence[NonNegative] | None = None,
    ):
        super().__init__(coefficient, warmup)
        self.prefix_weights = prefix_weights

    def value(self, forward: Forward) -> Tensor:
        return forward.squared_error(self.prefix_weights)

    def check(self, dictionary: TrainedDictionary) -> None:
        expected = max(1, len(dictionary.prefixes))
        if self.prefix_weights is not None and len(self.prefix_weights) != expected:
            raise ValueError(
                f"objective.terms.reconstruction.prefix_weights={list(self.prefix_weights)}: want "
                f"{expected} numbers, one for each of dict.prefixes"
            )
