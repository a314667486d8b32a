"""The KL by torch, a chunk of rows at a time: their logits give the value and the gradient at once."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_of_states(
    states_ND: Tensor,
    W_VD: Tensor,
    teacher_states_NE: Tensor,
    teacher_W_VE: Tensor,
    temperature: float,
    chunk: int,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """(KL [N], its gradient in the states [N, D] or an empty tensor)."""
    dtype = torch.promote_types(states_ND.dtype, torch.float32)
    kl_N = states_ND.new_empty(len(states_ND), dtype=dtype)
    # The gradient has the layout of the states, as in autograd.
    gradient = torch.empty_like(states_ND) if wants_gradient else states_ND.new_empty(0)
    for start in range(0, len(states_ND), chunk):
        rows = slice(start, start + chunk)
        patched_NV = _log_probs(states_ND[rows], W_VD, temperature, dtype)
        teacher_NV = _log_probs(teacher_states_NE[rows], teacher_W_VE, temperature, dtype)
        probs_NV = teacher_NV.exp()
        kl_N[rows] = torch.linalg.vecdot(probs_NV, teacher_NV.sub_(patched_NV))
        if wants_gradient:
            gap_NV = patched_NV.exp_().sub_(probs_NV).div_(temperature)
            gradient[rows] = gap_NV.to(W_VD.dtype) @ W_VD
    return kl_N, gradient


def _log_probs(states_ND: Tensor, W_VD: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    return (states_ND @ W_VD.T).to(dtype).div(temperature).log_softmax(-1)
