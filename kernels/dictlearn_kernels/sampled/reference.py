"""The specification of sampled, by dense matrices."""

from torch import Tensor


def sampled(g_RD: Tensor, W_CD: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return (g_RD @ W_CD.T)[rows, columns]
