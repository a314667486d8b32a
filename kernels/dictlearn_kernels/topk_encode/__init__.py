"""The k largest positive entries of every row of x W^T + b, without keeping the others.

A matmul in low precision, or a kernel that never writes its results, gives each row's likeliest
candidates and an upper bound of all that it left out. The candidates are evaluated again in the
operands' own precision. Where the bound is no larger than the k-th best of them the row is certified:
its k largest are those of full precision, ties aside. The other rows are computed again in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn_kernels import bounds, dispatch, fixed_point, selection
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.topk_encode import cpu, reference
from dictlearn_kernels.topk_encode.groups import layout

_rows = _flagged = 0


def topk_encode(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int, matmul_dtype: torch.dtype | None = None
) -> Selection:
    """The k largest positive entries of every row, as CSR, columns ascending. No gradient.

    Entries at or below zero are left out even where a row has fewer than k others. Which of equal
    entries is taken is not promised. `matmul_dtype` is a lower precision for the matmul; which entries
    are taken, and their values, are those of x's own.
    """
    return _finished([_begun(x_RD, W_CD, b_C, k, matmul_dtype)])[0]


def topk_encode_each(
    x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor, k: int, matmul_dtype: torch.dtype | None = None
) -> Selection:
    """The same for every source s: row r of source s is row r * S + s.

    How many rows must be computed again is asked once for all sources: a GPU is waited for once.
    """
    begun = [_begun(x_RSD[:, s], W_SCD[s], b_SC[s], k, matmul_dtype) for s in range(len(W_SCD))]
    return selection.interleaved(_finished(begun))


class _Unproven(NamedTuple):
    """Of one matrix: the best candidates of every row, and which rows they may be wrong in."""

    x_RD: Tensor
    W_CD: Tensor
    b_C: Tensor
    values_RK: Tensor
    columns_RK: Tensor
    flagged_R: Tensor


def _begun(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int, matmul_dtype: torch.dtype | None
) -> Selection | _Unproven:
    n_columns = len(W_CD)
    assert 0 <= k <= n_columns
    dtype = matmul_dtype or x_RD.dtype
    with torch.no_grad():
        if len(x_RD) == 0 or k == 0:
            return reference.topk_encode(x_RD, W_CD, b_C, k)
        fixed = dtype == torch.int16 and fixed_point.serves(x_RD, W_CD)
        if dtype == torch.int16:  # where it doesn't serve, float32 is next
            dtype = x_RD.dtype
        m = min(taken(k, dtype), n_columns)
        loops = dtype == x_RD.dtype and _loops_serve(x_RD)
        unserved = _unserved(x_RD, dtype, m, n_columns)
        how = dispatch.choose("topk_encode", x_RD, unserved, loops, fixed)
        if how == "fixed":
            from dictlearn_kernels.topk_encode import compiled

            found = compiled.topk_encode_fixed(x_RD, W_CD, b_C, k)
            if found is not None:
                return found
            how = dispatch.choose("topk_encode", x_RD, unserved, loops)
        if how == "reference":
            return reference.topk_encode(x_RD, W_CD, b_C, k)
        if how == "compiled":
            from dictlearn_kernels.topk_encode import compiled

            return compiled.topk_encode(x_RD, W_CD, b_C, k)
        if how == "cpu" and not bounds.certifies(x_RD, dtype):
            values_RK, columns_RK = cpu.dense(x_RD, W_CD, b_C, k)
            return selection.of_positive(columns_RK, values_RK)
        return _candidates(x_RD, W_CD, b_C, k, m, dtype, how)


def flagged() -> tuple[int, int]:
    """(rows that had to be computed again in full, rows that were to be certified), until `forget`."""
    return _flagged, _rows


def forget() -> None:
    global _rows, _flagged
    _rows = _flagged = 0


def taken(k: int, dtype: torch.dtype) -> int:
    """How many candidates let nearly every row be certified: the looser the bound, the more.

    scripts/selection_exactness.py measures what share is not, on real activations.
    """
    extra = {torch.float16: k // 4, torch.bfloat16: k}
    return k + 8 + extra.get(dtype, 0)


def _candidates(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int, m: int, dtype: torch.dtype, how: str
) -> _Unproven:
    columns_RM, left_out_R = candidates(x_RD, W_CD, b_C, m, dtype, how)
    n_rows = len(x_RD)
    row_starts = torch.arange(n_rows + 1, device=x_RD.device) * m
    places = columns_RM.clamp(min=0).flatten()
    values_RM = bounds.at(x_RD, W_CD, b_C, row_starts, places).view(n_rows, m)
    values_RM = values_RM.masked_fill(columns_RM < 0, -torch.inf)
    values_RK, order = values_RM.topk(k, dim=1)
    columns_RK = columns_RM.gather(1, order)
    # Also true where anything is not a number: such rows are computed in full.
    flagged_R = ~(left_out_R <= values_RK[:, -1].clamp(min=0))
    return _Unproven(x_RD, W_CD, b_C, values_RK, columns_RK, flagged_R)


@torch.no_grad()
def _finished(begun: Sequence[Selection | _Unproven]) -> list[Selection]:
    unproven = [one for one in begun if isinstance(one, _Unproven)]
    if not unproven:
        return [one for one in begun if not isinstance(one, _Unproven)]
    counts = [torch.stack([one.flagged_R.sum(), (one.values_RK > 0).sum()]) for one in unproven]
    known = iter(torch.stack(counts).tolist())
    return [_proven(one, *next(known)) if isinstance(one, _Unproven) else one for one in begun]


def _proven(one: _Unproven, n_flagged: int, n_positive: int) -> Selection:
    global _rows, _flagged
    x_RD, W_CD, b_C, values_RK, columns_RK, flagged_R = one
    _rows, _flagged = _rows + len(x_RD), _flagged + n_flagged
    if n_flagged == 0:
        return selection.of_positive(columns_RK, values_RK, n_positive)
    again = flagged_R.nonzero().squeeze(1)
    k = values_RK.shape[1]
    values_RK[again], columns_RK[again] = cpu.dense(x_RD[again], W_CD, b_C, k)
    return selection.of_positive(columns_RK, values_RK)


@torch.library.custom_op("dictlearn::topk_candidates", mutates_args=())
def candidates(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, m: int, dtype: torch.dtype, how: str
) -> tuple[Tensor, Tensor]:
    """(columns [R, m], left_out [R]): likely winners, -1 for none, and a bound of all the others."""
    if how == "triton":
        from dictlearn_kernels.topk_encode import triton

        return triton.candidates(x_RD, W_CD, b_C, m, dtype)
    return cpu.candidates(x_RD, W_CD, b_C, m, dtype)


@candidates.register_fake
def _(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, m: int, dtype: torch.dtype, how: str
) -> tuple[Tensor, Tensor]:
    return x_RD.new_empty((len(x_RD), m), dtype=torch.int64), x_RD.new_empty(len(x_RD))


def _unserved(x_RD: Tensor, dtype: torch.dtype, m: int, n_columns: int) -> str | None:
    if x_RD.dtype != torch.float32 or dtype not in bounds.KERNEL_DTYPES:
        return f"{dtype} of {x_RD.dtype}"
    return None if layout(m, n_columns) else f"{m} candidates of {n_columns} columns"


def _loops_serve(x_RD: Tensor) -> bool:
    if x_RD.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    from dictlearn_kernels.topk_encode import compiled

    return compiled.serves(x_RD)
