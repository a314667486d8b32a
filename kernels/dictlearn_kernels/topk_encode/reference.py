"""The specification of topk_encode: a dense matmul and a full sort of every row."""

import torch
from torch import Tensor

from dictlearn_kernels import selection
from dictlearn_kernels.selection import Selection


def topk_encode(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int) -> Selection:
    """Equal entries are taken from the lowest column on; fast paths promise only their value."""
    pre_RC = torch.addmm(b_C, x_RD, W_CD.T)
    values_RC, columns_RC = pre_RC.sort(dim=1, descending=True, stable=True)
    return selection.of_positive(columns_RC[:, :k], values_RC[:, :k])
