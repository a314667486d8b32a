"""The k largest positive entries of every row of x W^T + b, without keeping the others.

A matmul in low precision, or a kernel that never writes its product, gives each row's likeliest
candidates and an upper bound of all entries that it left out. The candidates are evaluated again in x's
own precision. A row is certified where the bound is no larger than the k-th best of them: its k largest
entries are those of x's own precision, ties aside. Other rows are computed again in full
(derivations.md, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn_kernels import bounds, routes, selection
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.topk_encode import compiled, cpu, reference
from dictlearn_kernels.topk_encode.groups import layout

_rows = _flagged = 0


def topk_encode(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int, matmul_dtype: torch.dtype | None = None
) -> Selection:
    """The k largest positive entries of every row, as CSR, columns ascending. No gradient.

    Entries at or below zero are left out even where a row has fewer than k others. Which of equal
    entries are taken is not promised. `matmul_dtype` is a lower precision for the matmul; the selected
    entries and their values are those of x's own precision.
    """
    return _finished([_begun(x_RD, W_CD, b_C, k, matmul_dtype)])[0]


def topk_encode_each(
    x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor, k: int, matmul_dtype: torch.dtype | None = None
) -> Selection:
    """The same for every source s: row r of source s is row r * S + s.

    The number of rows to compute again is read once for all sources, since reading it synchronises
    with the GPU.
    """
    begun = [_begun(x_RSD[:, s], W_SCD[s], b_SC[s], k, matmul_dtype) for s in range(len(W_SCD))]
    return selection.interleaved(_finished(begun))


class _Unproven(NamedTuple):
    """The best candidates of every row of one product, and which rows they may be wrong in."""

    x_RD: Tensor
    W_CD: Tensor
    b_C: Tensor
    values_RK: Tensor
    columns_RK: Tensor
    flagged_R: Tensor


@torch.no_grad()
def _begun(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int, matmul_dtype: torch.dtype | None
) -> Selection | _Unproven:
    n_columns = len(W_CD)
    assert 0 <= k <= n_columns
    operands = x_RD, W_CD, b_C

    def n_candidates(dtype: torch.dtype) -> int:
        return min(taken(k, dtype), n_columns)

    def unserved(x: Tensor, dtype: torch.dtype) -> str | None:
        m = n_candidates(dtype)
        crowded = None if layout(m, n_columns) else f"{m} candidates of {n_columns} columns"
        return routes.unserved(x, dtype) or crowded

    def dense() -> Selection:
        values_RK, columns_RK = cpu.dense(*operands, k)
        return selection.of_positive(columns_RK, values_RK)

    if k == 0:
        return reference.topk_encode(*operands, k)
    implementations: routes.Routes[Selection | _Unproven] = routes.Routes(
        fixed=lambda: compiled.topk_encode_fixed(*operands, k),
        loop=lambda: compiled.topk_encode(*operands, k),
        dense=dense,
        certified=lambda dtype, how: _candidates(*operands, k, n_candidates(dtype), dtype, how),
        reference=lambda: reference.topk_encode(*operands, k),
    )
    return routes.select("topk_encode", x_RD, W_CD, matmul_dtype, implementations, unserved)


def flagged() -> tuple[int, int]:
    """(rows that were computed again in full, rows that were to be certified) since `forget`."""
    return _flagged, _rows


def forget() -> None:
    """Sets both counts of `flagged` to zero."""
    global _rows, _flagged
    _rows = _flagged = 0


def restore(flagged: int, rows: int) -> None:
    """Sets both counts to what `flagged` has returned, after others have counted."""
    global _rows, _flagged
    _rows, _flagged = rows, flagged


def taken(k: int, dtype: torch.dtype) -> int:
    """The number of candidates that certifies nearly every row: a looser bound needs more of them.

    scripts/selection_exactness.py measures the share of other rows on real activations.
    """
    extra = {torch.float16: k // 4, torch.bfloat16: k}
    return k + 8 + extra.get(dtype, 0)


def _candidates(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int, m: int, dtype: torch.dtype, how: str
) -> _Unproven:
    columns_RM, left_out_R = candidates(x_RD, W_CD, b_C, m, dtype, how)
    n_rows = len(x_RD)
    row_starts = torch.arange(n_rows + 1, device=x_RD.device) * m
    columns = columns_RM.clamp(min=0).flatten()
    values_RM = bounds.at(x_RD, W_CD, b_C, row_starts, columns).view(n_rows, m)
    values_RM = values_RM.masked_fill(columns_RM < 0, -torch.inf)
    values_RK, order = values_RM.topk(k, dim=1)
    columns_RK = columns_RM.gather(1, order)
    # This is true where anything is NaN, too: such rows are computed in full.
    flagged_R = ~(left_out_R <= values_RK[:, -1].clamp(min=0))
    return _Unproven(x_RD, W_CD, b_C, values_RK, columns_RK, flagged_R)


@torch.no_grad()
def _finished(begun: Sequence[Selection | _Unproven]) -> list[Selection]:
    unproven = [part for part in begun if isinstance(part, _Unproven)]
    if not unproven:
        return [part for part in begun if not isinstance(part, _Unproven)]
    counts = [torch.stack([part.flagged_R.sum(), (part.values_RK > 0).sum()]) for part in unproven]
    numbers = iter(torch.stack(counts).tolist())
    return [
        _proven(part, *next(numbers)) if isinstance(part, _Unproven) else part for part in begun
    ]


def _proven(unproven: _Unproven, n_flagged: int, n_positive: int) -> Selection:
    global _rows, _flagged
    x_RD, W_CD, b_C, values_RK, columns_RK, flagged_R = unproven
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
    """(columns [R, m] of likely winners, -1 for none; left_out [R], a bound of all other entries)."""
    if how == "triton":
        from dictlearn_kernels.topk_encode import triton

        return triton.candidates(x_RD, W_CD, b_C, m, dtype)
    return cpu.candidates(x_RD, W_CD, b_C, m, dtype)


@candidates.register_fake
def _(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, m: int, dtype: torch.dtype, how: str
) -> tuple[Tensor, Tensor]:
    return x_RD.new_empty((len(x_RD), m), dtype=torch.int64), x_RD.new_empty(len(x_RD))
