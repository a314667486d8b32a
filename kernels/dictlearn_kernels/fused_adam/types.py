"""What the fused optimiser's implementations share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

FREE, CONCAT, SUM = "free", "concat", "sum"


@dataclass(frozen=True, eq=False)
class Features:
    """Matrix rows that make features: row i of every part belongs to feature i.

    `norm` says what stays fixed: nothing (`free`), the norm of all parts put together (`concat`), or
    the sum of the norms of the parts (`sum`); `length` is what it is fixed at.
    """

    parts: tuple[tuple[Tensor, int], ...]  # (parameter, seen as [rows, D]; its first row here)
    n: int
    norm: str = FREE
    length: float = 1.0
    shadow: Tensor | None = None  # a copy of the one part in low precision, kept up to date


@dataclass(frozen=True)
class Step:
    """What Adam needs beside the tensors."""

    number: Tensor  # steps taken, this one included: float32, a scalar
    lr: float
    beta1: float
    beta2: float
    eps: float
    seed: int = 0  # of the stochastic rounding of moments


def rows_of(parameter: Tensor) -> Tensor:
    """A parameter as the [rows, D] matrix of its last dimension, without its graph."""
    return parameter.detach().view(-1, parameter.shape[-1])
