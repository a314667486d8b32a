"""KL(teacher || patched) of next-token distributions, from the states that give their logits.

With 4,096 tokens and a vocabulary of 152k one float32 copy of the logits takes 2.5 GB, and a KL with its
gradient needs several. The states are 60 times smaller.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dictlearn_kernels.dispatch import choose
from dictlearn_kernels.kl_chunked import cpu, reference

SERVED = (torch.float32, torch.bfloat16, torch.float16)


def kl_of_states(
    states_ND: Tensor,
    W_VD: Tensor,
    teacher_states_NE: Tensor,
    teacher_W_VE: Tensor,
    temperature: float = 1.0,
    chunk: int = 512,
) -> Tensor:
    """KL of softmax(teacher_states teacher_W^T / temperature) from softmax(states W^T / temperature).

    The KL of each row in nats: [N], float32 or better. Differentiable only in `states`, and once: the
    gradient is computed with the value. `chunk` rows have logits at once where no kernel serves.
    """
    chosen = choose("kl_of_states", states_ND, unserved(states_ND, W_VD, teacher_states_NE))
    if chosen == "reference":
        return reference.kl_of_states(
            states_ND, W_VD.detach(), teacher_states_NE.detach(), teacher_W_VE.detach(), temperature
        )
    wants_gradient = torch.is_grad_enabled() and states_ND.requires_grad
    return _kl_of_states(
        states_ND,
        W_VD.detach(),
        teacher_states_NE.detach(),
        teacher_W_VE.detach(),
        temperature,
        chunk,
        chosen,
        wants_gradient,
    )[0]


def unserved(states_ND: Tensor, W_VD: Tensor, teacher_states_NE: Tensor) -> str | None:
    """Why no kernel of Triton serves these tensors; None where one does."""
    dtypes = {t.dtype for t in (states_ND, W_VD, teacher_states_NE)}
    if len(dtypes) > 1:
        return f"tensors of different dtypes ({', '.join(sorted(map(str, dtypes)))})"
    if states_ND.device != teacher_states_NE.device:
        return "a teacher on another device"
    return None if states_ND.dtype in SERVED else str(states_ND.dtype)


# --- for autograd and torch.compile -------------------------------------------------------------


@torch.library.custom_op("dictlearn::kl_of_states", mutates_args=())
def _kl_of_states(
    states_ND: Tensor,
    W_VD: Tensor,
    teacher_states_NE: Tensor,
    teacher_W_VE: Tensor,
    temperature: float,
    chunk: int,
    chosen: str,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """(KL [N], its gradient in the states [N, D] or an empty tensor)."""
    inputs = states_ND, W_VD, teacher_states_NE, teacher_W_VE, temperature
    if chosen == "triton":
        from dictlearn_kernels.kl_chunked import triton

        return triton.kl_of_states(*inputs, wants_gradient)
    return cpu.kl_of_states(*inputs, chunk, wants_gradient)


@_kl_of_states.register_fake
def _(states_ND, W_VD, teacher_states_NE, teacher_W_VE, temperature, chunk, chosen, wants_gradient):
    dtype = torch.promote_types(states_ND.dtype, torch.float32)
    gradient = torch.empty_like(states_ND) if wants_gradient else states_ND.new_empty(0)
    return states_ND.new_empty(len(states_ND), dtype=dtype), gradient


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _gradients(ctx: Any, g_N: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (gradient_ND,) = ctx.saved_tensors
    g_ND = None if g_N is None else gradient_ND * g_N[:, None].to(gradient_ND.dtype)
    return (g_ND, *(None,) * 7)


_kl_of_states.register_autograd(_gradients, setup_context=_setup)
