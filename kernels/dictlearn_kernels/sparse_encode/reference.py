"""The specification of sparse_encode, by dense matrices."""

from torch import Tensor

from dictlearn_kernels.pattern import Pattern


def sparse_encode(pattern: Pattern, x_RD: Tensor, W_CD: Tensor, b_C: Tensor) -> Tensor:
    return (x_RD @ W_CD.T + b_C)[pattern.rows, pattern.columns]
