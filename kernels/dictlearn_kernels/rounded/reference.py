"""The specification of `rounded`: a cast, a difference and two norms."""

import torch
from torch import Tensor


def rounded(x_RD: Tensor, dtype: torch.dtype, slack: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x in `dtype` [R, D], norms of its rows [R], norms of their rounding errors [R])."""
    low_RD = x_RD.to(dtype, memory_format=torch.contiguous_format)
    norm_R = torch.linalg.vector_norm(x_RD, dim=1)
    error_R = torch.linalg.vector_norm(x_RD - low_RD, dim=1)
    return low_RD, norm_R * slack, error_R * slack
