"""The specification of batchtopk_encode: a dense matmul and a full sort of all rows together."""

import torch
from torch import Tensor

from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threshold_encode.reference import select_above


def batchtopk_encode(x_RSD: Tensor, W_SCD: Tensor, b_SC: Tensor, budget: int) -> Selection:
    pre_PC = (torch.einsum("rsd,scd->rsc", x_RSD, W_SCD) + b_SC).flatten(0, 1)
    order = pre_PC.flatten().argsort(descending=True, stable=True)[:budget]
    chosen_PC = torch.zeros_like(pre_PC)
    chosen_PC.view(-1)[order] = pre_PC.flatten()[order]
    return select_above(chosen_PC, 0.0)
