"""The plain specification of the selection."""

import torch
from torch import Tensor


def select_above(pre_RC: Tensor, threshold_C: Tensor | float) -> Tensor:
    """The selected entries as a dense [R, C] matrix, zero elsewhere."""
    return torch.where(pre_RC > threshold_C, pre_RC, 0)
