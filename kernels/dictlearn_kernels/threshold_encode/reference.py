"""The specification of threshold_encode: a dense matmul and a comparison."""

import torch
from torch import Tensor

from dictlearn_kernels import selection
from dictlearn_kernels.selection import Selection


def threshold_encode(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, threshold_C: Tensor | float
) -> Selection:
    return select_above(torch.addmm(b_C, x_RD, W_CD.T), threshold_C)


def select_above(pre_RC: Tensor, threshold_C: Tensor | float) -> Selection:
    above_RC = pre_RC > threshold_C
    rows, columns = above_RC.nonzero(as_tuple=True)
    return selection.starts(above_RC.sum(1)), columns, pre_RC[rows, columns]


def contenders(upper_RC: Tensor, threshold_C: Tensor) -> Tensor:
    """Which upper bounds exceed their column's threshold, 32 columns a word: int32 [R, C / 32]."""
    above_RC = torch.nn.functional.pad(upper_RC > threshold_C, (0, -upper_RC.shape[1] % 32))
    bits_RWB = above_RC.view(len(above_RC), -1, 32).long()
    words_RW = (bits_RWB << torch.arange(32, device=bits_RWB.device)).sum(2)
    return torch.where(words_RW >= 2**31, words_RW - 2**32, words_RW).int()
