"""A matrix in a lower precision, with the distances that rounding moved its rows, for error bounds.

A weight matrix is rounded once each time that it moves. The optimiser (`fused_adam`) can round the rows
where it moves them: `keep` registers a copy that it maintains, and `settle` says that it is up to date.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dictlearn_kernels.dispatch import choose
from dictlearn_kernels.rounded import reference

SLACK = 1 + 2.0**-10  # a factor on norms, which covers their own rounding
LOW = (torch.bfloat16, torch.float16)  # the dtypes that the kernel rounds to


class Rounded(NamedTuple):
    """A matrix in a lower precision, the norms of its rows before, and the distances they moved."""

    low_RD: Tensor
    norm_R: Tensor
    error_R: Tensor


def rounded(x_RD: Tensor, dtype: torch.dtype) -> Rounded:
    """`x_RD` in `dtype`, contiguous, with norms and errors that are not below the true ones. No gradient.

    A number too large for `dtype` makes its row's error infinite, and inf or NaN in a row makes it NaN.
    On a GPU rows are read once: 6 bytes of traffic a number, where torch's calls take 24.
    """
    kept = _kept_rows(x_RD, dtype)
    if kept is not None:
        return kept
    if dtype == x_RD.dtype:  # nothing is rounded
        norm_R = torch.linalg.vector_norm(x_RD, dim=1) * SLACK
        return Rounded(x_RD.contiguous(), norm_R, torch.zeros_like(norm_R))
    if choose("rounded", x_RD, _unserved(x_RD, dtype)) == "triton":
        from dictlearn_kernels.rounded import triton

        return Rounded(*triton.rounded(x_RD, dtype, SLACK))
    return Rounded(*reference.rounded(x_RD, dtype, SLACK))


def _unserved(x_RD: Tensor, dtype: torch.dtype) -> str | None:
    served = x_RD.dtype == torch.float32 and dtype in LOW
    return None if served else f"{dtype} of {x_RD.dtype}"


# --- copies that the optimiser maintains -------------------------------------------------------------


@dataclass
class _Kept:
    copy: Rounded
    state: tuple[int, int] | None = None  # of the matrix when `copy` was last brought up to date


_kept = WeakTensorKeyDictionary()


def keep(matrix: Tensor, dtype: torch.dtype) -> Rounded:
    """An uninitialised copy of a matrix [..., D] in `dtype`, which the caller fills when it moves rows.

    From `settle` on `rounded` returns it, for the matrix and for whole rows of it, until something else
    writes to the matrix.
    """
    rows = matrix.detach().view(-1, matrix.shape[-1])
    norm_R, error_R = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    copy = Rounded(torch.empty_like(rows, dtype=dtype), norm_R, error_R)
    _kept[matrix] = _Kept(copy)
    return copy


def settle(matrix: Tensor) -> None:
    """Says that the copy of `keep` is up to date."""
    _kept[matrix].state = _state(matrix)


def _state(matrix: Tensor) -> tuple[int, int]:
    """(version, address), one of which changes when torch writes to a matrix or moves it."""
    return matrix._version, matrix.data_ptr()


def _kept_rows(x_RD: Tensor, dtype: torch.dtype) -> Rounded | None:
    matrix = x_RD if x_RD._base is None else x_RD._base
    kept = _kept.get(matrix)
    if kept is None or kept.copy.low_RD.dtype != dtype or kept.state != _state(matrix):
        return None
    D = matrix.shape[-1]
    first, rest = divmod(int(x_RD.storage_offset() - matrix.storage_offset()), D)
    if rest or x_RD.shape[1] != D or not x_RD.is_contiguous():
        return None
    return Rounded(*(t[first : first + len(x_RD)] for t in kept.copy))
