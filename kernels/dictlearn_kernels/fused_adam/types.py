"""What the fused optimiser's implementations share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dictlearn_kernels.rounded import SLACK, Rounded, reference

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
    shadow: Rounded | None = None  # of all rows of the one part: kept up to date

    def __post_init__(self) -> None:
        if self.shadow is not None:
            assert len(self.parts) == 1 and len(rows_of(self.parts[0][0])) == self.n


@dataclass(frozen=True)
class Step:
    """What Adam needs beside the tensors."""

    number: int  # steps taken, this one included
    lr: float
    beta1: float
    beta2: float
    eps: float
    seed: int = 0  # of the stochastic rounding of moments


def projected(features: Features, square: Tensor, along_N: Tensor) -> tuple[Tensor, Tensor | None]:
    """`measure`'s answer, from the whole gradient's squared norm (float64) and, per feature, its sum
    over the parts of <gradient, gradient of the feature's norm>.
    """
    if features.norm == FREE:
        return square, None
    n_parts = len(features.parts) if features.norm == SUM else 1
    along_N = along_N / n_parts  # of a sum of norms the gradient has norm 1 in every part
    return square - n_parts * along_N.double().square().sum(), along_N


def rows_of(parameter: Tensor) -> Tensor:
    """A parameter as the [rows, D] matrix of its last dimension, without its graph."""
    return parameter.detach().view(-1, parameter.shape[-1])


def round_shadow(features: Features) -> None:
    """Rounds rows that have moved, where a copy of them is kept."""
    if features.shadow is None:
        return
    rows = rows_of(features.parts[0][0])
    made = reference.rounded(rows, features.shadow.low_RD.dtype, SLACK)
    for kept, new in zip(features.shadow, made, strict=True):
        kept.copy_(new)
