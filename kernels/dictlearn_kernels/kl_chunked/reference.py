"""The specification of kl_of_states: all logits of both models, and their log-softmax."""

import torch
from torch import Tensor


def kl_of_states(
    states_ND: Tensor,
    W_VD: Tensor,
    teacher_states_NE: Tensor,
    teacher_W_VE: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    dtype = torch.promote_types(states_ND.dtype, torch.float32)
    patched_NV, teacher_NV = (
        ((states @ W.T).to(dtype) / temperature).log_softmax(-1)
        for states, W in ((states_ND, W_VD), (teacher_states_NE, teacher_W_VE))
    )
    return (teacher_NV.exp() * (teacher_NV - patched_NV)).sum(-1)
