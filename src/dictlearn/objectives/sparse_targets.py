"""A teacher's distribution in a few numbers a token: an exact head, and samples of the tail.

    grad_z KL(p || q) = q - p
        = sum_{v in head} (q_v - p_v) e_v + P_tail E_{v ~ p_tail} (q_v / p_v - 1) e_v

Samples of the tail are weighted by the ratio q / p, so the noise vanishes with the KL, which plain
sampling (Anshumann et al. 2503.16870) does not; both are unbiased. Renormalising the head alone is
neither: it teaches the student a sharper distribution than the teacher's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SparseTargets(NamedTuple):
    """The targets of N tokens. log p belongs to the whole distribution, in nats."""

    head_ids_NK: Tensor  # int32: the K most likely ids
    head_log_p_NK: Tensor
    tail_ids_NM: Tensor  # int32: M ids drawn from the rest, with repeats
    tail_log_p_NM: Tensor
    tail_mass_N: Tensor  # the probability outside the head

    def rows(self, rows: slice) -> SparseTargets:
        return SparseTargets(*(tensor[rows] for tensor in self))


def draw_targets(
    log_p_NV: Tensor, head: int, samples: int, generator: torch.Generator
) -> SparseTargets:
    """The head of the distributions `log_p_NV`, and fresh samples of their tails."""
    head_log_p_NK, head_ids_NK = log_p_NV.topk(head, dim=-1)
    tail_NV = log_p_NV.exp().scatter(1, head_ids_NK, 0.0)
    mass_N = tail_NV.sum(-1)
    # If the head covers the vocabulary, the tail has mass 0 and the samples do not matter.
    drawn_NM = torch.multinomial(
        tail_NV.clamp_min(torch.finfo(tail_NV.dtype).tiny),
        samples,
        replacement=True,
        generator=generator,
    )
    return SparseTargets(
        head_ids_NK.int(), head_log_p_NK, drawn_NM.int(), log_p_NV.gather(1, drawn_NM), mass_N
    )


def sparse_kl(targets: SparseTargets, logits_NV: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """KL(p || q) [N] from the logits of q, and the share of samples whose ratio was clipped.

    Value and gradient are unbiased estimates of the KL and of its gradient in the logits, apart from
    `clip`, the largest q / p that a sample may have.
    """
    head_NK, tail_NM = targets.head_ids_NK.long(), targets.tail_ids_NM.long()
    z_head_NK, z_tail_NM = logits_NV.gather(1, head_NK), logits_NV.gather(1, tail_NM)
    with torch.no_grad():
        normaliser_N1 = logits_NV.logsumexp(-1, keepdim=True)
        log_p_NK, log_p_NM = targets.head_log_p_NK.float(), targets.tail_log_p_NM.float()
        gap_NK = log_p_NK - (z_head_NK - normaliser_N1)
        gap_NM = log_p_NM - (z_tail_NM - normaliser_N1)
        mass_N = targets.tail_mass_N.float()
        p_NK = log_p_NK.exp()
        value_N = (p_NK * gap_NK).sum(-1) + mass_N * gap_NM.mean(-1)
        ratio_NM = gap_NM.neg().exp()
        clipped = (ratio_NM > clip).float().mean()
        pull_NK = p_NK * gap_NK.neg().expm1()
        pull_NM = mass_N[:, None] * (ratio_NM.clamp_max(clip) - 1) / tail_NM.shape[1]
    surrogate_N = (pull_NK * z_head_NK).sum(-1) + (pull_NM * z_tail_NM).sum(-1)
    return value_N + (surrogate_N - surrogate_N.detach()), clipped
