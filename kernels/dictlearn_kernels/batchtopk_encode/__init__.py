"""The largest positive entries of a whole batch, within a budget that all its rows share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dictlearn_kernels import routes, selection, tiles
from dictlearn_kernels.batchtopk_encode import reference
from dictlearn_kernels.linear import passing, pre_activations
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threshold_encode import compiled, threshold_encode
from dictlearn_kernels.threshold_encode.reference import select_above

STRIDE = 8  # between the rows, and the columns, of the sample that a threshold is estimated from


@torch.no_grad()
def batchtopk_encode(
    x_RSD: Tensor,
    W_SCD: Tensor,
    b_SC: Tensor,
    budget: int,
    matmul_dtype: torch.dtype | None = None,
) -> Selection:
    """The `budget` largest positive entries of x_s W_s^T + b_s over all rows and sources, as CSR.

    Row r of source s is row r * S + s. No gradient. Ties go to the first rows. `matmul_dtype` is a
    lower precision for the matmul, int16 for fixed point; the selected entries and their values are
    those of x's own precision.

    The result is exact: a sample gives a threshold below the smallest winner, and the few entries above
    it are sorted. Where the threshold proves too high, all positive entries are.
    """
    operands = x_RSD, W_SCD, b_SC

    def by_sample() -> Selection:
        sample = pre_activations(x_RSD[::STRIDE], W_SCD[:, ::STRIDE], b_SC[:, ::STRIDE])
        winners = budget * sample.numel() / (len(x_RSD) * b_SC.numel())
        threshold = float(_threshold(sample.flatten(), winners))
        return _largest(lambda t: _above(*operands, t, matmul_dtype), threshold, budget)

    def loop() -> Selection:
        if tiles.pays(len(x_RSD), W_SCD.shape[1]):
            return by_sample()
        return _of_dense(passing(*operands), budget, compiled.above)

    implementations = routes.Routes(
        fixed=by_sample,
        loop=loop,
        dense=lambda: _of_dense(passing(*operands), budget, select_above),
        certified=lambda dtype, how: by_sample(),
        reference=lambda: reference.batchtopk_encode(*operands, budget),
    )
    return routes.select("batchtopk_encode", x_RSD, W_SCD, matmul_dtype, implementations)


def _above(
    x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor, threshold: float, matmul_dtype: torch.dtype | None
) -> Selection:
    return selection.interleaved(
        [
            threshold_encode(x_RSD[:, s], W_SCD[s], b_SC[s], threshold, matmul_dtype)
            for s in range(len(W_SCD))
        ]
    )


def _of_dense(
    pre_RC: Tensor, budget: int, above: Callable[[Tensor, float], Selection]
) -> Selection:
    stride = 67  # a prime, so that the sample does not fall on a few columns
    threshold = float(_threshold(pre_RC.reshape(-1)[::stride], budget / stride))
    return _largest(lambda t: above(pre_RC, t), threshold, budget)


def _largest(above: Callable[[float], Selection], threshold: float, budget: int) -> Selection:
    selected = above(threshold)
    if len(selected[1]) < budget and threshold > 0:
        selected = above(0.0)
    return selection.largest(selected, budget)


def _threshold(sample: Tensor, winners: float) -> Tensor:
    """A value that twice the expected number of winners in the sample exceed; 0 for a small sample."""
    rank = int(2 * winners) + 16
    if rank >= len(sample):
        return sample.new_zeros(())
    return sample.topk(rank).values[-1].clamp(min=0)
