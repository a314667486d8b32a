"""TopK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders"): k features for every token."""

from __future__ import annotations

from typing import final

from dictlearn_kernels.top_k import row_top_k
from torch import Tensor

from dictlearn.sparsity.protocol import Encoder, Options, Sparsity, annealed, widened
from dictlearn.types import Encoding


@final
class TopK(Sparsity):
    """Keeps the k largest positive pre-activations of each token.

    `wide` > 1 also encodes with wide * k features for the multi-TopK loss, which keeps the
    reconstruction good at other k (Gao et al., section 5.3). `k_start` begins with more features and
    comes down to k linearly over the first `anneal_for` of the run.
    """

    name = "topk"

    def __init__(
        self,
        n_sources: int,
        n_features: int,
        k: int,
        k_start: int | None = None,
        anneal_for: float = 0.0,
        wide: int = 1,
    ):
        super().__init__()
        if wide < 1 or wide * k > n_features:
            raise ValueError(
                f"sparsity.wide={wide}: want 1 (off) to n_features // k = {n_features // k}"
            )
        self.k, self.k_start, self.anneal_for, self.wide = k, k_start, anneal_for, wide
        self.n_features = n_features
        self.k_now = k

    def anneal(self, progress: float) -> None:
        self.k_now = round(annealed(self.k, self.k_start, self.anneal_for, progress))
        self.k_now = min(self.k_now, self.n_features)

    def forward(self, x_NSD: Tensor, encoder: Encoder) -> Encoding:
        widest = min(self.wide * self.k_now, self.n_features) if self.training else self.k_now
        enough = min(widened(widest), self.n_features)
        pre_RF = encoder.pre(x_NSD, lambda rough_RF: row_top_k(rough_RF, enough))
        code = encoder.at(x_NSD, row_top_k(pre_RF, self.k_now))
        wide = None
        if widest > self.k_now:
            wide = encoder.at(x_NSD, row_top_k(pre_RF, widest))
        return Encoding(code, code, code.values, wide)

    def options(self) -> Options:
        return {"k": self.k}
