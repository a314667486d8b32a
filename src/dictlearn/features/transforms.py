"""Tokens that the maps of a MOLT read and write, by their leading singular directions.

A transform maps x to sum_i sigma_i l_i (r_i . x). Its right directions r are compared with the token
embeddings, after the norm before the site, as if the residual held nothing else; its left ones l go
through the unembedding, as any feature's vector does. The pairs (l, r) and (-l, -r) are the same
direction: the sign is chosen so that the token with the largest |product| is read positively.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor, nn

from dictlearn.features.logits import IN_RESIDUAL, Unembedding
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.norms import Norm, fit_norm


@final
@dataclass(frozen=True, eq=False)
class Directions:
    """The leading singular directions of every transform, strongest first."""

    strength_FM: Tensor  # 0 beyond the rank
    left_FMD: Tensor
    right_FMD: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, maps: Sequence[tuple[Tensor, Tensor]], m: int) -> Self:
        """Computes them by QR of both factors and an SVD of the product of the R: never a D x D matrix.

        `maps` are those of `Decoder.maps`.
        """
        parts = []
        for U_CKD, V_CKD in maps:
            (Q_u, R_u), (Q_v, R_v) = (torch.linalg.qr(w.mT) for w in (U_CKD, V_CKD))
            A, strength_CK, Bh = torch.linalg.svd(R_u @ R_v.mT)
            left_CKD, right_CKD = (Q_u @ A).mT, (Q_v @ Bh.mT).mT
            missing = max(m - strength_CK.shape[1], 0)
            parts.append(
                (
                    torch.nn.functional.pad(strength_CK[:, :m], (0, missing)),
                    torch.nn.functional.pad(left_CKD[:, :m], (0, 0, 0, missing)),
                    torch.nn.functional.pad(right_CKD[:, :m], (0, 0, 0, missing)),
                )
            )
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def read_tokens(lm: LanguageModel, site: str, tokens_BP: Tensor) -> Tensor:
    """Each token's activation at `site`, if its embedding were alone in the residual: [V, D]."""
    table = lm.model.get_input_embeddings()
    assert isinstance(table, nn.Embedding), "a language model embeds tokens"
    embedding = table.weight.detach().float()
    name, _, layer = site.partition(".")
    norm = None
    if name == "mlp_in":
        before = (
            f"resid_mid.{layer}",
            f"resid_pre.{layer}",
        )  # the second where MLPs run in parallel with attention
        acts = capture(lm, tokens_BP, (site, *before))
        norms = (fit_norm(acts[b].flatten(0, 1), acts[site].flatten(0, 1)) for b in before)
        norm = next((norm for norm in norms if norm is not None), None)
    if norm is None:
        norm = Norm(torch.ones_like(embedding[0]), centred=False)
    return norm.unit(embedding)


def described(
    directions: Directions,
    rows: slice,
    read_VD: Tensor,
    unembedding: Unembedding | None,
    target: str,
    k: int,
) -> dict[str, Tensor]:
    """The tensors of a block of transforms (`dictlearn.store.writer.Block`)."""
    strength_nM = directions.strength_FM[rows].cpu()
    right_RD, left_RD = (d[rows].flatten(0, 1) for d in (directions.right_FMD, directions.left_FMD))
    tensors = {"strengths": strength_nM}
    reading = Unembedding(read_VD, "the embedding")
    most = reading.extremes(right_RD, 1)
    sign_R1 = torch.where(most[1] < -most[3], -1.0, 1.0)
    names = [("reads", "reads_opposite", reading, right_RD)]
    if unembedding is not None and IN_RESIDUAL.fullmatch(target):
        names.append(("writes", "writes_opposite", unembedding, left_RD))
    for name, opposite, through, vectors_RD in names:
        extremes = through.extremes(vectors_RD * sign_R1.to(vectors_RD.device), k)
        ids, effects, low_ids, low_effects = (e.view(*strength_nM.shape, -1) for e in extremes)
        tensors |= {name: ids, f"{name}_effects": effects}
        tensors |= {opposite: low_ids, f"{opposite}_effects": low_effects}
    return tensors
