"""Which tokens a feature promotes and suppresses: its direct path through the unembedding.

A vector v that a feature writes to the residual stream changes the logits, for a fixed scale of the
final norm, by W_U diag(w) v (a LayerNorm also takes the mean from v). Less its mean over the
vocabulary, which no probability sees, that is the effect given here, for one unit of activation and
a residual of root mean square 1. The norm's weights w are fitted to what the model computes and
checked there, so they need no name; where no norm fits (none, or one more between), w is 1.
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
from dictlearn.lm.norms import Norm, fitted
from dictlearn.lm.readout import Readout, has_head
from dictlearn.store.writer import NOTHING

IN_RESIDUAL = re.compile(r"(resid_pre|attn_out|resid_mid|mlp_out|resid_post)\.\d+")
AT_ONCE = 1 << 24  # logits in memory


@final
@dataclass(frozen=True, eq=False)
class Unembedding:
    """What a direction in the residual stream does to the logits, less their mean."""

    W_VD: Tensor  # norm folded, centred
    described: str

    @classmethod
    def of(cls, lm: LanguageModel, tokens_BP: Tensor) -> Self | None:
        """None where the model has no head, or one that is no matrix. `tokens_BP`: some text."""
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
        """(ids int32, effects) most promoted, and the same most suppressed: each [n, k]."""
        k = min(k, len(self.W_VD))
        parts = []
        for some in vectors_nD.split(max(1, AT_ONCE // len(self.W_VD))):
            logits_nV = some.to(self.W_VD) @ self.W_VD.T
            most, least = logits_nV.topk(k), logits_nV.topk(k, largest=False)
            parts.append((most.indices.int(), most.values, least.indices.int(), least.values))
        found = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
        return found[0], found[1], found[2], found[3]


def final_norm(lm: LanguageModel, readout: Readout, tokens_BP: Tensor) -> Norm | None:
    """Between the last block and the head."""
    last = f"resid_post.{lm.info.n_layers - 1}"
    with torch.no_grad():
        x_ND = capture(lm, tokens_BP, (last,))[last].flatten(0, 1)
        return fitted(x_ND, readout.states(tokens_BP).flatten(0, 1))


def effects(
    unembedding: Unembedding | None,
    dictionary: Dictionary,
    source: int,
    reaches: Sequence[int],
    rows: slice,
    k: int,
) -> dict[str, Tensor]:
    """The tensors `promoted`, `suppressed` and their effects of a block; none without a head.

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
            ids, none = torch.full(shape, NOTHING, dtype=torch.int32), torch.zeros(shape)
            parts.append((ids, none, ids, none))
    names = ("promoted", "promoted_effects", "suppressed", "suppressed_effects")
    columns = [torch.stack(column, 1) for column in zip(*parts, strict=True)]
    return dict(zip(names, columns, strict=True))
