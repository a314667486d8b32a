"""TopK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders"): k features for every token."""

from __future__ import annotations

from typing import Annotated, final

from dictlearn_kernels.selection import Selection, row_largest
from torch import Tensor

from dictlearn.ranges import Count, Fraction
from dictlearn.sparsity.protocol import (
    Encoder,
    Options,
    Sparsity,
    alike,
    annealed,
    refuse_one_layer,
)
from dictlearn.types import Encoding


@final
class TopK(Sparsity):
    """Keeps the k largest positive pre-activations of each token.

    `wide` > 1 also encodes with wide * k features for the multi-TopK loss, which keeps the
    reconstruction good at other k (Gao et al., section 5.3). `k_start` begins with more features and
    comes down to k linearly over the first `anneal_for` of the run. With several
    sources each has k features of every token, or, `across_layers`, all share S * k.
    """

    name = "topk"
    selects = True

    def __init__(
        self,
        n_sources: int,
        n_features: int,
        k: Annotated[Count, "batchtopk takes fractions"],
        k_start: Count | None = None,
        anneal_for: Fraction = 0.0,
        wide: Count = 1,
        across_layers: bool = False,
    ):
        super().__init__()
        if k != int(k):
            raise ValueError(f"dict.k={k}: topk wants a whole number; batchtopk takes fractions")
        k = int(k)
        if not 1 <= k <= n_features:
            raise ValueError(f"sparsity.k={k}: want 1 to the {n_features} features")
        if wide < 1 or wide * k > n_features:
            raise ValueError(
                f"sparsity.wide={wide}: want 1 (off) to n_features // k = {n_features // k}"
            )
        self.k, self.k_start, self.anneal_for, self.wide = k, k_start, anneal_for, wide
        self.n_sources, self.n_features = n_sources, n_features
        self.across_layers = across_layers
        self.k_now = k

    def anneal(self, progress: float) -> None:
        self.k_now = round(annealed(self.k, self.k_start, self.anneal_for, progress))
        self.k_now = min(self.k_now, self.n_features)

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        refuse_one_layer(source, self.across_layers)
        widest = min(self.wide * self.k_now, self.n_features) if self.training else self.k_now
        selected = encoder.top_k(x_NSD, widest, self.across_layers)
        wide = None
        if widest > self.k_now:
            wide = encoder.at(x_NSD, selected)
            selected = self._narrowed(selected)
        code = encoder.at(x_NSD, selected)
        return Encoding(code, code, code.values, wide)

    def _narrowed(self, selected: Selection) -> Selection:
        if self.across_layers:
            return row_largest(selected, self.k_now * self.n_sources, together=self.n_sources)
        return row_largest(selected, self.k_now)

    def rescaled(self, factor_SF: Tensor) -> TopK:
        alike(factor_SF.reshape(1, -1) if self.across_layers else factor_SF, self.name)
        return self

    def shifted(self, shift_SF: Tensor) -> TopK:
        return self

    def entries(self, k: float) -> float:
        most = max(self.k, self.k_start or 0)
        return most if self.wide == 1 else min(self.wide * most, self.n_features) + most

    def options(self) -> Options:
        return {"k": self.k, "across_layers": self.across_layers}
