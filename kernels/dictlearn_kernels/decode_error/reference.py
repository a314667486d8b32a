"""The specification of decode_error, by dense matrices."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.sparse_decode.reference import sparse_decode


def decode_error(
    pattern: Pattern,
    values: Tensor,
    W_CD: Tensor,
    y_RD: Tensor,
    bias_SD: Tensor | None = None,
    weights: Sequence[float] = (1.0,),
) -> tuple[Tensor, Tensor]:
    parts_GRD = sparse_decode(pattern, values, W_CD).view(len(weights), *y_RD.shape)
    e_RD = y_RD
    if bias_SD is not None:
        e_RD = e_RD - bias_SD.repeat(len(y_RD) // len(bias_SD), 1)
    error = e_RD.new_zeros(())
    for weight, part_RD in zip(weights, parts_GRD, strict=True):
        e_RD = e_RD - part_RD
        error = error + weight * e_RD.square().sum()
    return error, e_RD.detach()
