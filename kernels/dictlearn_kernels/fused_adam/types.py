"""What all implementations of the fused optimiser share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dictlearn_kernels.rounded import SLACK, Rounded, reference

FREE, CONCAT, SUM = "free", "concat", "sum"


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """The matrix rows of n features: row i of every part belongs to feature i.

    `norm` says what stays fixed at `length`: nothing (`free`), the norm of a feature's rows put together
    (`concat`), or the sum of their norms (`sum`).
    """

    parts: tuple[tuple[Tensor, int], ...]  # (parameter, the first of its rows)
    n: int
    norm: str = FREE
    length: float = 1.0
    shadow: Rounded | None = None  # the only part in low precision, which `update` maintains

    def __post_init__(self) -> None:
        if self.shadow is not None:
            assert len(self.parts) == 1 and len(rows_of(self.parts[0][0])) == self.n


@dataclass(frozen=True)
class Step:
    """What Adam needs in one step beside the tensors."""

    number: int  # steps taken, this one included
    lr: float
    beta1: float
    beta2: float
    eps: float
    seed: int = 0  # for the stochastic rounding of moments


def projected(rows: FeatureRows, square: Tensor, along_N: Tensor) -> tuple[Tensor, Tensor | None]:
    """What `measure` returns (derivations.md, section 5).

    `square` is the squared norm of the whole gradient (float64). `along_N` is, for each feature, the sum
    over its parts of <gradient, gradient of the feature's norm>.
    """
    if rows.norm == FREE:
        return square, None
    n_parts = len(rows.parts) if rows.norm == SUM else 1
    along_N = along_N / n_parts  # a sum of norms has a gradient of norm 1 in each part
    return square - n_parts * along_N.double().square().sum(), along_N


def rows_of(parameter: Tensor) -> Tensor:
    """A parameter as the matrix [rows, D] of its last dimension, without its graph."""
    return parameter.detach().view(-1, parameter.shape[-1])


def round_shadow(rows: FeatureRows) -> None:
    """Brings the copy in low precision up to date, where there is one."""
    if rows.shadow is None:
        return
    weights = rows_of(rows.parts[0][0])
    copies = reference.rounded(weights, rows.shadow.low_RD.dtype, SLACK)
    for kept, new in zip(rows.shadow, copies, strict=True):
        kept.copy_(new)
