"""A sparsity of one's own, for the tests: nothing in the package knows of it."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor

from dictlearn.ranges import Positive
from dictlearn.sparsity.protocol import Encoder, Options, Sparsity, alike, of_source
from dictlearn.types import Encoding


@final
class Sparsemax(Sparsity):
    """The nearest point to the pre-activations whose entries are positive and sum to `total`
    (Martins and Astudillo 2016): pre - tau where that is positive, with one tau for a token.
    """

    name = "sparsemax"
    total_S1: Tensor

    def __init__(self, n_sources: int, n_features: int, total: Positive = 1.0):
        super().__init__()
        if total <= 0:
            raise ValueError(f"sparsity.total={total}: want a positive sum")
        self.total = total
        self.register_buffer("total_S1", torch.full((n_sources, 1), total))

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        total_S = of_source(self.total_S1, source).flatten()

        def in_support(pre_RF: Tensor) -> Tensor:
            sums_RF, _ = pre_RF.sort(descending=True)
            total_R1 = total_S.repeat(len(pre_RF) // len(total_S))[:, None]
            n_R1 = torch.arange(1, pre_RF.shape[1] + 1, device=pre_RF.device)
            n_R1 = (n_R1 * sums_RF > sums_RF.cumsum(1) - total_R1).sum(1, keepdim=True)
            tau_R1 = (sums_RF.cumsum(1).gather(1, n_R1 - 1) - total_R1) / n_R1
            return pre_RF > tau_R1

        pre = encoder.at(x_NSD, encoder.where(x_NSD, in_support))
        counts_R = pre.row_starts.diff()
        total_R = total_S.to(pre.values).repeat(pre.n_tokens)
        sums_R = torch.zeros_like(total_R).index_add(0, pre.rows, pre.values)
        values = pre.values - ((sums_R - total_R) / counts_R)[pre.rows]
        support = pre.with_values(values)
        return Encoding(support.where(values.detach() > 0), support, pre.values)

    def rescaled(self, factor_SF: Tensor) -> Sparsemax:
        alike(factor_SF, self.name)
        scaled = copy.deepcopy(self)
        scaled.total_S1 = self.total_S1 * factor_SF.mean(1, keepdim=True)
        return scaled

    def shifted(self, shift_SF: Tensor) -> Sparsemax:
        return self

    def options(self) -> Options:
        return {"total": self.total}
