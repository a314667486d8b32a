"""The loss: a sum of named terms under one reduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from dictlearn.objectives.protocol import Forward, Term

REDUCTIONS = ("sum", "mean", "fvu")


@final
class Objective:
    """Named terms, added up. Terms that are null in the yaml are off.

    `reduction` fixes the unit of every squared error, so that a coefficient means the same in all
    terms: `sum` over the width, `mean` over it, or `fvu`: relative to the targets' variance. All are
    means over tokens and divide by a constant of the run, never by a batch statistic.
    """

    def __init__(self, terms: Mapping[str, Term | None], reduction: str = "sum"):
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"objective.reduction={reduction}: want one of {', '.join(REDUCTIONS)}"
            )
        self.terms = {name: term for name, term in terms.items() if term is not None}
        if not self.terms:
            raise ValueError("objective.terms: want at least one term, all are null")
        self.reduction = reduction

    def loss_scale(self, y_NTD: Tensor) -> float:
        """The divisor of squared errors, measured once on the targets the run begins with."""
        match self.reduction:
            case "sum":
                return 1.0
            case "mean":
                return float(y_NTD[0].numel())
        centred = y_NTD.double() - y_NTD.double().mean(0)
        return float(centred.square().sum() / len(y_NTD))

    def check(self, dictionary: Any) -> None:
        for term in self.terms.values():
            term.check(dictionary)

    def __call__(self, forward: Forward) -> dict[str, Tensor]:
        """Each term's weighted value; the loss is their sum."""
        return {name: term(forward) for name, term in self.terms.items()}
