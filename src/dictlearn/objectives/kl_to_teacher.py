"""KL to a fixed teacher (Braun et al. 2024): the same function is the loss and the eval."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kl_per_token(
    teacher_logits_NV: Float[Tensor, "N V"], patched_logits_NV: Float[Tensor, "N V"]
) -> Float[Tensor, " N"]:
    """KL(teacher || patched) of each token's next-token distribution, in nats.

    True KL, entropy term included, so that the number means the same in every run: zero exactly
    when the logits agree. The softmaxes run in float32 at least, whatever the model's dtype.
    """
    dtype = torch.promote_types(teacher_logits_NV.dtype, torch.float32)
    teacher_NV = teacher_logits_NV.to(dtype).log_softmax(-1)
    patched_NV = patched_logits_NV.to(dtype).log_softmax(-1)
    return kl_of_log_probs(teacher_NV, patched_NV)


def kl_of_log_probs(
    teacher_NV: Float[Tensor, "N V"], patched_NV: Float[Tensor, "N V"]
) -> Float[Tensor, " N"]:
    """`kl_per_token` for a caller who already has the log-probabilities.

    A vocabulary entry masked to -inf in the teacher carries no mass and adds nothing.
    """
    gap_NV = (teacher_NV - patched_NV).masked_fill(teacher_NV.isneginf(), 0.0)
    return (teacher_NV.exp() * gap_NV).sum(-1)


def kl_to_teacher(
    teacher_logits_NV: Float[Tensor, "N V"],
    patched_logits_NV: Float[Tensor, "N V"],
    valid_N: Bool[Tensor, " N"],
) -> Float[Tensor, ""]:
    """Mean KL(teacher || patched) over valid tokens, in nats per token.

    With no valid token there is nothing to average: the mean is zero and so is its gradient.
    """
    per_token_N = kl_per_token(teacher_logits_NV, patched_logits_NV)
    total = per_token_N.masked_fill(~valid_N, 0.0).sum()
    return total / valid_N.sum().clamp(min=1)
