"""BatchTopK (Bussmann et al. 2024): the batch, not the token, has a budget of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

from dictlearn_kernels.top_k import batch_top_k
from torch import Tensor

from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.protocol import (
    Encoder,
    Options,
    Sparsity,
    annealed,
    threshold_for,
    widened,
)
from dictlearn.types import Encoding


@final
class BatchTopK(Sparsity):
    """Keeps the N*k largest positive pre-activations of a batch: hard tokens may use more than k.

    There is no batch at inference. `inference_form` finds the one threshold that gives k features
    per token on held-out activations; an average of batch minima would depend on the batch size.
    """

    name = "batchtopk"

    def __init__(
        self,
        n_sources: int,
        n_features: int,
        k: float,
        k_start: float | None = None,
        anneal_for: float = 0.0,
    ):
        super().__init__()
        self.n_sources, self.n_features = n_sources, n_features
        self.k, self.k_start, self.anneal_for = k, k_start, anneal_for
        self.k_now = k

    def anneal(self, progress: float) -> None:
        self.k_now = min(annealed(self.k, self.k_start, self.anneal_for, progress), self.n_features)

    def forward(self, x_NSD: Tensor, encoder: Encoder) -> Encoding:
        budget = round(self.k_now * self.n_sources * len(x_NSD))
        pre_RF = encoder.pre(x_NSD, lambda rough_RF: batch_top_k(rough_RF, widened(budget)))
        code = encoder.at(x_NSD, batch_top_k(pre_RF, budget))
        return Encoding(code, code, code.values)

    def inference_form(self, pre_RF: Callable[[], Iterable[Tensor]]) -> JumpReLU:
        threshold = threshold_for(pre_RF, self.k)
        return JumpReLU(self.n_sources, self.n_features, init_threshold=threshold)

    def options(self) -> Options:
        return {"k": self.k}
