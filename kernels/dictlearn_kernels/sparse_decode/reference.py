"""The specification of sparse_decode, by dense matrices."""

from torch import Tensor

from dictlearn_kernels.pattern import Pattern


def sparse_decode(pattern: Pattern, values: Tensor, W_CD: Tensor) -> Tensor:
    A_RC = values.new_zeros(pattern.n_rows, pattern.n_columns)
    return A_RC.index_put((pattern.rows, pattern.columns), values) @ W_CD
