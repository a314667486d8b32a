"""The largest positive entries of a whole batch, within a budget that all its rows share."""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn_kernels import bounds, dispatch, fixed_point, selection, tiles
from dictlearn_kernels.batchtopk_encode import reference
from dictlearn_kernels.linear import passing, pre_activations
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threshold_encode import loops_serve, threshold_encode
from dictlearn_kernels.threshold_encode import reference as threshold_reference

STRIDE = 8  # of the rows, and of the columns, that a bound is estimated from


def batchtopk_encode(
    x_RSD: Tensor,
    W_SCD: Tensor,
    b_SC: Tensor,
    budget: int,
    matmul_dtype: torch.dtype | None = None,
) -> Selection:
    """The `budget` largest positive entries of x_s W_s^T + b_s over all rows and sources, as CSR.

    Row r of source s is row r * S + s. No gradient. Exact: a lower bound on the smallest winner comes
    from a sample, the few entries above it are then sorted; where the bound proves too high, every
    positive entry is. Ties go to the first rows. `matmul_dtype` is a lower precision for the matmul,
    int16 for 16-bit fixed point; which entries are taken, and their values, are those of x's own.
    """
    dtype = matmul_dtype or x_RSD.dtype
    fixed = dtype == torch.int16 and fixed_point.serves(x_RSD, W_SCD)
    if dtype == torch.int16:  # where it doesn't serve, float32 is next
        dtype = x_RSD.dtype
    served = x_RSD.dtype == torch.float32 and dtype in bounds.KERNEL_DTYPES
    unserved = None if served else f"{dtype} of {x_RSD.dtype}"
    loops = dtype == x_RSD.dtype and loops_serve(x_RSD)
    how = dispatch.choose("batchtopk_encode", x_RSD, unserved, loops, fixed)
    with torch.no_grad():
        if how == "reference":
            return reference.batchtopk_encode(x_RSD, W_SCD, b_SC, budget)
        in_tiles = how == "compiled" and tiles.pays(len(x_RSD), W_SCD.shape[1])
        if how in ("compiled", "cpu") and not (in_tiles or bounds.certifies(x_RSD, dtype)):
            return _of_dense(passing(x_RSD, W_SCD, b_SC), budget, loops)
        sample = pre_activations(x_RSD[::STRIDE], W_SCD[:, ::STRIDE], b_SC[:, ::STRIDE])
        bound = float(_bound(sample.flatten(), budget * sample.numel() / _size(x_RSD, W_SCD)))
        found = _above(x_RSD, W_SCD, b_SC, bound, matmul_dtype)
        if len(found[1]) < budget and bound > 0:
            found = _above(x_RSD, W_SCD, b_SC, 0.0, matmul_dtype)
        return selection.largest(found, budget)


def _above(
    x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor, bound: float, matmul_dtype: torch.dtype | None
) -> Selection:
    return selection.interleaved(
        [
            threshold_encode(x_RSD[:, s], W_SCD[s], b_SC[s], bound, matmul_dtype)
            for s in range(len(W_SCD))
        ]
    )


def _of_dense(pre_RC: Tensor, budget: int, loops: bool) -> Selection:
    select_above = threshold_reference.select_above
    if loops:
        from dictlearn_kernels.threshold_encode.compiled import above as select_above
    flat = pre_RC.reshape(-1)
    stride = 67  # a prime, so that the sample doesn't fall on a few columns
    bound = float(_bound(flat[::stride], budget / stride))
    found = select_above(pre_RC, bound)
    if len(found[1]) < budget and bound > 0:
        found = select_above(pre_RC, 0.0)
    return selection.largest(found, budget)


def _bound(sample: Tensor, winners: float) -> Tensor:
    """What twice as many of a sample exceed as there should be winners in it; 0 if it is too small."""
    wanted = int(2 * winners) + 16
    if wanted >= len(sample):
        return sample.new_zeros(())
    return sample.topk(wanted).values[-1].clamp(min=0)


def _size(x_RSD: Tensor, W_SCD: Tensor) -> int:
    return len(x_RSD) * W_SCD.shape[0] * W_SCD.shape[1]
