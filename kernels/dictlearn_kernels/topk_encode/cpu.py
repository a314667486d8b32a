"""The largest entries of every row, by torch: a dense matmul and two short searches."""

from __future__ import annotations

import torch
from torch import Tensor

from dictlearn_kernels import bounds
from dictlearn_kernels.linear import passing

# Measured by scripts/bench_selection.py.
GROUP = 8  # columns
GROUPED_FROM = 2048  # the fewest columns for which groups are faster
GROUPS_PER_PICK = 2  # the fewest groups for each of the k entries


def largest(pre_RC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values, columns) [R, k] of the k largest entries of every row, the largest first.

    In wide rows a first search finds the k groups of columns with the largest maxima. A group that holds
    one of the k largest entries has a maximum at least as large, so other groups hold nothing but ties.
    A group's columns are n_groups apart, so that all maxima come from contiguous slices.
    """
    R, C = pre_RC.shape
    n_groups = C // GROUP
    if C < GROUPED_FROM or C % GROUP or n_groups < GROUPS_PER_PICK * k:
        values_RK, columns_RK = pre_RC.topk(k, dim=1)
        return values_RK, columns_RK
    best_RG = pre_RC.view(R, GROUP, n_groups).amax(1)
    groups_RK = best_RG.topk(k, dim=1, sorted=False).indices
    offsets = torch.arange(GROUP, device=pre_RC.device) * n_groups
    columns_RM = (groups_RK[:, None] + offsets[:, None]).flatten(1)
    values_RK, order = pre_RC.gather(1, columns_RM).topk(k, dim=1)
    return values_RK, columns_RM.gather(1, order)


def dense(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values, columns) [R, k] of the k largest entries of every row of x W^T + b."""
    return largest(passing(x_RD[:, None], W_CD[None], b_C[None]), k)


def candidates(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, m: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(columns [R, m], left_out [R]): the entries with the largest upper bounds, and the next one."""
    upper_RC = bounds.upper_bounds(x_RD, W_CD, b_C, dtype)
    if m == upper_RC.shape[1]:
        columns_RM = torch.arange(m, device=x_RD.device).repeat(len(x_RD), 1)
        return columns_RM, x_RD.new_full((len(x_RD),), -torch.inf)
    values_RM, columns_RM = largest(upper_RC, m + 1)
    return columns_RM[:, :m].contiguous(), values_RM[:, m].contiguous()
