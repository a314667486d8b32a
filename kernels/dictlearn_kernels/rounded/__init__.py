"""A matrix in a lower precision, and how far rounding moved its rows: what an error bound is made of.

A weight matrix is rounded once for each time that it moves. Who moves its rows (`fused_adam`) can round
them there, while they are at hand: `keep` says that it will, `settle` that it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dictlearn_kernels.dispatch import choose
from dictlearn_kernels.rounded import reference

SLACK = 1 + 2.0**-10  # on norms, for the rounding of the norms themselves
LOW = (torch.bfloat16, torch.float16)  # what the kernel rounds to


class Rounded(NamedTuple):
    """A matrix in a lower precision; its rows' norms before, and how far rounding moved them."""

    low_RD: Tensor
    norm_R: Tensor
    error_R: Tensor


def rounded(x_RD: Tensor, dtype: torch.dtype) -> Rounded:
    """`x_RD` in `dtype`, contiguous, with norms that are no smaller than the true ones. No gradient.

    A number too large for `dtype` makes its row's error infinite; where a row has inf or NaN its error
    is not a number. On a GPU rows are read once: 6 bytes a number, where torch's calls take 24.
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


# --- kept up to date by who moves the rows ----------------------------------------------------------


@dataclass
class _Kept:
    copy: Rounded
    state: tuple[int, int] | None = None  # of the matrix when `copy` was last made to agree


_kept = WeakTensorKeyDictionary()


def keep(matrix: Tensor, dtype: torch.dtype) -> Rounded:
    """Room for the rows of a matrix [..., D] in `dtype`, which the caller fills whenever it moves them.

    `rounded` takes it from `settle` on, for the matrix and for whole rows of it, until something else
    writes to the matrix.
    """
    rows = matrix.detach().view(-1, matrix.shape[-1])
    norm_R, error_R = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    copy = Rounded(torch.empty_like(rows, dtype=dtype), norm_R, error_R)
    _kept[matrix] = _Kept(copy)
    return copy


def settle(matrix: Tensor) -> None:
    """Says that what `keep` gave agrees with the matrix as it is now."""
    _kept[matrix].state = _state(matrix)


def _state(matrix: Tensor) -> tuple[int, int]:
    """What changes when torch writes to a matrix, or gives it other memory."""
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
