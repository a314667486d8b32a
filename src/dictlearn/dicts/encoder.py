"""The linear encoder: one matrix of feature directions for every source of the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from dictlearn_kernels.sparse_encode import sparse_encode
from dictlearn_kernels.top_k import Selection
from torch import Tensor, nn

from dictlearn.types import Code


@dataclass(frozen=True, eq=False)
class LinearMap:
    """pre = W_enc x + b_enc, per source: what a sparsity selects from.

    `pre` computes all of it without a gradient, for selection; `at` gives the few selected entries
    their gradient. So the backward pass costs what the active features cost, not what F costs.
    """

    W_enc: Tensor  # SFD
    b_enc: Tensor  # SF
    matmul_dtype: torch.dtype | None = None  # of the matmul; None: the parameters' own

    @property
    def n_sources(self) -> int:
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        return self.W_enc.shape[1]

    @torch.no_grad()
    def pre(self, x_NSD: Tensor, contenders: Callable[[Tensor], Selection] | None = None) -> Tensor:
        """Pre-activations for selection, without gradient: [N*S, F].

        With `matmul_dtype` set, the matmul runs in it, the `contenders` among its rough results are
        evaluated again in the parameters' precision and all others are -inf.
        """
        if self.matmul_dtype is None or contenders is None:
            return self._matmul(x_NSD, self.W_enc, self.b_enc)
        rough = self._matmul(*(t.to(self.matmul_dtype) for t in (x_NSD, self.W_enc, self.b_enc)))
        chosen = self._code(contenders(rough.to(x_NSD.dtype)))
        exact = self._evaluate(chosen, x_NSD)
        pre_RF = torch.full_like(rough, -torch.inf, dtype=x_NSD.dtype)
        return pre_RF.index_put_((chosen.rows, chosen.features), exact)

    def _matmul(self, x_NSD: Tensor, W_SFD: Tensor, b_SF: Tensor) -> Tensor:
        if self.n_sources == 1:
            return torch.addmm(b_SF[0], x_NSD[:, 0], W_SFD[0].T)
        pre_NSF = x_NSD.new_empty(len(x_NSD), self.n_sources, self.n_features)
        for s in range(self.n_sources):  # straight into its place: no copy of the largest tensor
            torch.mm(x_NSD[:, s], W_SFD[s].T, out=pre_NSF[:, s])
        return pre_NSF.add_(b_SF).flatten(0, 1)

    def at(self, x_NSD: Tensor, selection: Selection) -> Code:
        """The selected pre-activations as a Code whose values carry their gradient."""
        code = self._code(selection)
        return code.with_values(self._evaluate(code, x_NSD, known=code.values))

    def _code(self, selection: Selection) -> Code:
        return Code(*selection, self.n_sources, self.n_features)

    def _evaluate(self, code: Code, x_NSD: Tensor, known: Tensor | None = None) -> Tensor:
        W_CD, b_C = self.W_enc.flatten(0, 1), self.b_enc.flatten()
        return sparse_encode(code.pattern, x_NSD.flatten(0, 1), W_CD, b_C, known)


@final
class LinearEncoder(nn.Module):
    """The parameters of a `LinearMap`, whose methods it has, and the maps of single sources."""

    def __init__(self, n_sources: int, n_features: int, width: int):
        super().__init__()
        self.n_sources, self.n_features, self.width = n_sources, n_features, width
        self.W_enc = nn.Parameter(torch.empty(n_sources, n_features, width))  # SFD
        self.b_enc = nn.Parameter(torch.zeros(n_sources, n_features))  # SF
        self.matmul_dtype: torch.dtype | None = None

    def whole(self) -> LinearMap:
        return LinearMap(self.W_enc, self.b_enc, self.matmul_dtype)

    def source(self, s: int) -> LinearMap:
        """The map of one source alone; its gradients reach this encoder's parameters."""
        return LinearMap(self.W_enc[s : s + 1], self.b_enc[s : s + 1], self.matmul_dtype)

    def pre(self, x_NSD: Tensor, contenders: Callable[[Tensor], Selection] | None = None) -> Tensor:
        return self.whole().pre(x_NSD, contenders)

    def at(self, x_NSD: Tensor, selection: Selection) -> Code:
        return self.whole().at(x_NSD, selection)
