"""TopK over blocks: the k largest by the norm of their coordinates, which may be negative."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.ranges import Count
from dictlearn.sparsity.protocol import Encoder, Options, Sparsity, alike
from dictlearn.types import Encoding


@final
class BlockTopK(Sparsity):
    """Keeps all `size` coordinates of the k largest blocks of each token."""

    name = "block_topk"
    signed = True
    selects = True

    def __init__(self, n_sources: int, n_features: int, k: Count, size: Count = 2):
        super().__init__()
        self.n_blocks, rest = divmod(n_features, size)
        if rest or not 1 <= k <= self.n_blocks:
            raise ValueError(f"sparsity.k={k}: want 1 to the {self.n_blocks} blocks of {size}")
        self.k, self.size = k, size

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        pre_RF = encoder.pre(x_NSD)
        norms_RG = torch.linalg.vector_norm(pre_RF.unflatten(1, (self.size, -1)), dim=1)
        chosen_RK = norms_RG.topk(self.k, dim=1).indices.sort(dim=1).values
        first_J = torch.arange(self.size, device=pre_RF.device) * self.n_blocks
        columns = (first_J[:, None] + chosen_RK[:, None]).flatten(1)  # ascending
        row_starts = torch.arange(len(pre_RF) + 1, device=pre_RF.device) * columns.shape[1]
        selection = row_starts, columns.flatten(), pre_RF.gather(1, columns).flatten()
        code = encoder.at(x_NSD, selection)
        return Encoding(code, code, code.values)

    def rescaled(self, factor_SF: Tensor) -> BlockTopK:
        alike(factor_SF, self.name)
        return self

    def shifted(self, shift_SF: Tensor) -> BlockTopK:
        return self

    def entries(self, k: float) -> float:
        return self.k * self.size

    def options(self) -> Options:
        return {"k": self.k, "size": self.size}
