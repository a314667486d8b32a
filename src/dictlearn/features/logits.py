"""The tokens that a feature promotes and suppresses by its direct path through the unembedding.

A vector v that a feature writes to the residual stream changes the logits, for a fixed scale of the
final norm, by W_U diag(w) v (a LayerNorm also takes the mean from v). The effect given here is this
less its mean over the vocabulary, which no probability depends on, for one unit of activation and a
residual of root mean square 1. The norm's weights w are fit_norm to the model's activations and checked
on them, so no module has to be named; where no norm fits (there is none, or another one), w is 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.norms import Norm, fit_norm
from dictlearn.lm.readout import Readout, has_head
from dictlearn.store.writer import NOTHING

IN_RESIDUAL = re.compile(r"(resid_pre|attn_out|resid_mid|mlp_out|resid_post)\.\d+")
AT_ONCE = 1 << 24  # logits in memory


@final
@dataclass(frozen=True, eq=False)
class Unembedding:
    """The map from the residual stream to the logits less their mean."""

    W_VD: Tensor  # norm folded, centred
    described: str

    @classmethod
    def of(cls, lm: LanguageModel, tokens_BP: Tensor) -> Self | None:
        """The model's unembedding; None without a head or if that is no matrix.

        `tokens_BP` is some text, on which the final norm is fit_norm.
        """
        if not has_head(lm):
            return None
        readout = Readout(lm, tokens_BP)
        W_VD = readout.unembedding()
        if W_VD is None:
            return None
        norm = final_norm(lm, readout, tokens_BP)
        W_VD = W_VD.detach().float()
        W_VD = W_VD - W_VD.mean(0)
        described = "unembedding, centred over the vocabulary"
        if norm is not None:
            # W_U diag(w) (v - mean v) = (W_U diag(w), rows centred) v
            W_VD = W_VD * norm.weight
            W_VD = W_VD - W_VD.mean(1, keepdim=True) if norm.centred else W_VD
            described += ", times the final norm's weights"
        return cls(W_VD, described)

    def extremes(self, vectors_nD: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(promoted ids int32, effects, suppressed ids, effects), the strongest first: each [n, k]."""
        k = min(k, len(self.W_VD))
        parts = []
        for part_nD in vectors_nD.split(max(1, AT_ONCE // len(self.W_VD))):
            logits_nV = part_nD.to(self.W_VD) @ self.W_VD.T
            most, least = logits_nV.topk(k), logits_nV.topk(k, largest=False)
            parts.append((most.indices.int(), most.values, least.indices.int(), least.values))
        promoted, raised, suppressed, lowered = (
            torch.cat(column).cpu() for column in zip(*parts, strict=True)
        )
        return promoted, raised, suppressed, lowered


def final_norm(lm: LanguageModel, readout: Readout, tokens_BP: Tensor) -> Norm | None:
    """The norm between the last block and the head, if one fits."""
    last = f"resid_post.{lm.info.n_layers - 1}"
    with torch.no_grad():
        x_ND = capture(lm, tokens_BP, (last,))[last].flatten(0, 1)
        return fit_norm(x_ND, readout.states(tokens_BP).flatten(0, 1))


def effects(
    unembedding: Unembedding | None,
    dictionary: Dictionary,
    source: int,
    reaches: Sequence[int],
    rows: slice,
    k: int,
) -> dict[str, Tensor]:
    """The tensors `promoted` and `suppressed` of a block, with effects; none without a head.

    A target that is not in this model's residual stream has empty slots.
    """
    if unembedding is None or k == 0:
        return {}
    parts = []
    for t in reaches:
        vectors_nD = dictionary.decoder.written(t, source, rows)
        if IN_RESIDUAL.fullmatch(dictionary.targets[t]):
            parts.append(unembedding.extremes(vectors_nD, k))
        else:
            shape = (len(vectors_nD), min(k, len(unembedding.W_VD)))
            ids, zeros = torch.full(shape, NOTHING, dtype=torch.int32), torch.zeros(shape)
            parts.append((ids, zeros, ids, zeros))
    names = ("promoted", "promoted_effects", "suppressed", "suppressed_effects")
    columns = [torch.stack(column, 1) for column in zip(*parts, strict=True)]
    return dict(zip(names, columns, strict=True))
