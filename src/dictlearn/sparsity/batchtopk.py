"""BatchTopK (Bussmann et al. 2024): the batch, not the token, has a budget of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

import torch
from dictlearn_kernels.selection import Selection
from torch import Tensor

from dictlearn.ranges import Fraction, Positive
from dictlearn.sparsity import ranks
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.protocol import (
    Encoder,
    Options,
    Sparsity,
    alike,
    annealed,
    refuse_one_layer,
    threshold_for,
)
from dictlearn.types import Encoding


@final
class BatchTopK(Sparsity):
    """Keeps the N*k largest positive pre-activations of a batch: hard tokens may use more than k.

    Where several processes train, the batch is that of all of them.

    There is no batch at inference. `inference_form` finds the one threshold that gives k features
    per token on held-out activations; an average of batch minima would depend on the batch size.
    With several sources each has its budget and its threshold, or, `across_layers`, all share one.
    """

    name = "batchtopk"
    selects = True

    def __init__(
        self,
        n_sources: int,
        n_features: int,
        k: Positive,
        k_start: Positive | None = None,
        anneal_for: Fraction = 0.0,
        across_layers: bool = False,
    ):
        super().__init__()
        if not 0 < k <= n_features:
            raise ValueError(f"sparsity.k={k}: want more than 0, at most the {n_features} features")
        self.n_sources, self.n_features = n_sources, n_features
        self.k, self.k_start, self.anneal_for = k, k_start, anneal_for
        self.across_layers = across_layers
        self.k_now = k

    def anneal(self, progress: float) -> None:
        self.k_now = min(annealed(self.k, self.k_start, self.anneal_for, progress), self.n_features)

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        refuse_one_layer(source, self.across_layers)
        per_token = self.k_now * (self.n_sources if self.across_layers else 1)

        def largest(budget: int) -> Selection:
            return encoder.batch_top_k(x_NSD, budget, self.across_layers)

        if self.training and ranks.several():
            n_groups = 1 if self.across_layers else self.n_sources
            n_tokens = torch.tensor(len(x_NSD), device=x_NSD.device)
            selected = ranks.batch_largest(largest, n_tokens, per_token, n_groups)
        else:
            selected = largest(round(per_token * len(x_NSD)))
        code = encoder.at(x_NSD, selected)
        return Encoding(code, code, code.values)

    def inference_form(self, pre_RF: Callable[[], Iterable[Tensor]]) -> JumpReLU:
        n = self.n_sources
        frozen = JumpReLU(n, self.n_features)
        for source in range(n):
            rows = slice(None) if self.across_layers else slice(source, None, n)
            threshold = threshold_for(lambda rows=rows: (pre[rows] for pre in pre_RF()), self.k)
            if self.across_layers:
                frozen.raw_threshold_SF.data.fill_(threshold)
                break
            frozen.raw_threshold_SF.data[source] = threshold
        return frozen

    def rescaled(self, factor_SF: Tensor) -> BatchTopK:
        alike(factor_SF.reshape(1, -1) if self.across_layers else factor_SF, self.name)
        return self

    def shifted(self, shift_SF: Tensor) -> BatchTopK:
        return self

    def entries(self, k: float) -> float:
        return max(self.k, self.k_start or 0.0)

    def options(self) -> Options:
        return {"k": self.k, "across_layers": self.across_layers}
