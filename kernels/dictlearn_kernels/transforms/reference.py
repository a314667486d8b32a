"""The specification of transform and gram_norms: every transform as a matrix, on every token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn_kernels.pattern import Pattern


def transform(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> Tensor:
    A_RC = values.new_zeros(pattern.n_rows, pattern.n_columns)
    A_RC = A_RC.index_put((pattern.rows, pattern.columns), values)
    maps_CDE = torch.cat([_maps(U_g, V_g) for U_g, V_g in zip(U, V, strict=True)])
    return torch.einsum("rc,cde,re->rd", A_RC, maps_CDE, x_RD)


def gram_norms(U: Sequence[Tensor], V: Sequence[Tensor]) -> Tensor:
    maps_CDE = torch.cat([_maps(U_g, V_g) for U_g, V_g in zip(U, V, strict=True)])
    return torch.linalg.matrix_norm(maps_CDE)


def _maps(U_CKD: Tensor, V_CKD: Tensor) -> Tensor:
    """The linear maps themselves, [n, D out, D in]."""
    return torch.einsum("ckd,cke->cde", U_CKD, V_CKD)
