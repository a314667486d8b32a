"""Plain formulas that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_per_token(teacher_logits_NV: Tensor, patched_logits_NV: Tensor) -> Tensor:
    """KL(teacher || patched) of each token's next-token distribution, in nats, at float32 or more."""
    dtype = torch.promote_types(teacher_logits_NV.dtype, torch.float32)
    teacher_NV = teacher_logits_NV.to(dtype).log_softmax(-1)
    patched_NV = patched_logits_NV.to(dtype).log_softmax(-1)
    each_NV = torch.nn.functional.kl_div(patched_NV, teacher_NV, reduction="none", log_target=True)
    return each_NV.masked_fill(teacher_NV.isneginf(), 0.0).sum(-1)


def mean_kl(teacher_logits_NV: Tensor, patched_logits_NV: Tensor, valid_N: Tensor) -> Tensor:
    """Mean of `kl_per_token` over valid tokens."""
    return kl_per_token(teacher_logits_NV[valid_N], patched_logits_NV[valid_N]).mean()
