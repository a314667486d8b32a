"""KL to a fixed teacher (Braun et al. 2024): the same function is the loss and the eval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def kl_of_log_probs(
    teacher_NV: Float[Tensor, "N V"], patched_NV: Float[Tensor, "N V"]
) -> Float[Tensor, " N"]:
    """KL(teacher || patched) of each token's next-token distribution, in nats, from log-probabilities.

    True KL, entropy term included, so that the number means the same in every run: zero exactly
    where the distributions agree. The loss and the evals both call this. A vocabulary entry masked
    to -inf in the teacher carries no mass and adds nothing.
    """
    gap_NV = (teacher_NV - patched_NV).masked_fill(teacher_NV.isneginf(), 0.0)
    return (teacher_NV.exp() * gap_NV).sum(-1)


def chunked_sum(
    value: Callable[[slice, Tensor], Tensor], states_ND: Float[Tensor, "N D"], chunk: int
) -> Float[Tensor, ""]:
    """sum over rows of `value(rows, states_ND[rows])`, whose logits exist for one chunk at a time.

    The gradient of a chunk is taken as soon as its value is known. Only one [N, D] is kept for the
    backward pass: no logits are held, and none are computed twice.
    """
    return _ChunkedSum.apply(states_ND, value, chunk)  # type: ignore[return-value]


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states_ND: Tensor, value: Callable[[slice, Tensor], Tensor], chunk: int
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient_ND = torch.empty_like(states_ND) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=states_ND.device)
        for start in range(0, len(states_ND), chunk):
            rows = slice(start, start + chunk)
            with torch.set_grad_enabled(wanted):
                part = states_ND[rows].detach().requires_grad_(wanted)
                summed = value(rows, part).sum()
            if gradient_ND is not None:
                gradient_ND[rows] = torch.autograd.grad(summed, part)[0]
            total += summed.detach()
        ctx.gradient_ND = gradient_ND
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.gradient_ND * upstream[0].to(ctx.gradient_ND.dtype), None, None
