"""The specification of bag, by dense matrices."""

import torch
from torch import Tensor


def bag(indices: Tensor, starts: Tensor, weights: Tensor, table_CD: Tensor) -> Tensor:
    bags = torch.repeat_interleave(starts.diff(), output_size=len(indices))
    A_BC = weights.new_zeros(len(starts) - 1, len(table_CD))
    return A_BC.index_put((bags, indices), weights, accumulate=True) @ table_CD
