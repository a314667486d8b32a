"""The linear encoder: one matrix of feature directions for every source site."""

from __future__ import annotations

from typing import final

import torch
from dictlearn_kernels.sparse_encode import sparse_encode
from dictlearn_kernels.top_k import Selection
from torch import Tensor, nn

from dictlearn.types import Code


@final
class LinearEncoder(nn.Module):
    """pre = W_enc x + b_enc, per source.

    `pre` computes all of it without a gradient, for selection; `at` gives the few selected entries
    their gradient. So the backward pass costs what the active features cost, not what F costs.
    """

    def __init__(self, n_sources: int, n_features: int, width: int):
        super().__init__()
        self.n_sources, self.n_features, self.width = n_sources, n_features, width
        self.W_enc = nn.Parameter(torch.empty(n_sources, n_features, width))  # SFD
        self.b_enc = nn.Parameter(torch.zeros(n_sources, n_features))  # SF

    @torch.no_grad()
    def pre(self, x_NSD: Tensor) -> Tensor:
        """All pre-activations, without gradient: [N*S, F]."""
        if self.n_sources == 1:
            return torch.addmm(self.b_enc[0], x_NSD[:, 0], self.W_enc[0].T)
        pre_SNF = torch.baddbmm(
            self.b_enc[:, None], x_NSD.transpose(0, 1), self.W_enc.transpose(1, 2)
        )
        return pre_SNF.transpose(0, 1).reshape(-1, self.n_features)

    def at(self, x_NSD: Tensor, selection: Selection) -> Code:
        """The selected pre-activations as a Code whose values carry their gradient."""
        row_starts, features, values = selection
        code = Code(row_starts, features, values, self.n_sources, self.n_features)
        values = sparse_encode(
            code.pattern,
            x_NSD.flatten(0, 1),
            self.W_enc.flatten(0, 1),
            self.b_enc.flatten(),
            values,
        )
        return code.with_values(values)
