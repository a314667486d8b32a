"""The linear encoder: one matrix of feature directions for every source of the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from dictlearn_kernels import fixed_point, selection, tiles
from dictlearn_kernels.batchtopk_encode import batchtopk_encode
from dictlearn_kernels.linear import pre_activations
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.sparse_encode import sparse_encode
from dictlearn_kernels.threshold_encode import threshold_encode
from dictlearn_kernels.topk_encode import topk_encode_each
from dictlearn_kernels.topk_encode.cpu import GROUP, GROUPED_FROM
from torch import Tensor, nn

from dictlearn.types import Code

# What selects on a GPU: bfloat16 costs it the same and errs eight times as much, and its range is of no
# use, because what doesn't fit float16 is selected in full precision.
ON_A_GPU = torch.float16
PRE_AT_ONCE = 1 << 24  # pre-activations in memory, where a rule wants whole rows
FLOAT, INT = 4, 8  # bytes: parameters are float32, indices int64


@dataclass(frozen=True, eq=False)
class LinearMap:
    """pre = W_enc x + b_enc, per source: what a sparsity selects from.

    Selection (`top_k`, `batch_top_k`, `above`) runs without a gradient and need not keep what it
    doesn't select; `at` gives the few selected entries their gradient. So the backward pass costs
    what the active features cost, not what F costs.
    """

    W_enc: Tensor  # SFD
    b_enc: Tensor  # SF
    matmul_dtype: torch.dtype | None = None  # of the matmul that selects; None: whatever is fastest
    centre_SD: Tensor | None = None  # what x is less of and has no gradient for

    @property
    def n_sources(self) -> int:
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        return self.W_enc.shape[1]

    @torch.no_grad()
    def pre(self, x_NSD: Tensor) -> Tensor:
        """Every pre-activation, in the parameters' own precision and without gradient: [N*S, F]."""
        return pre_activations(x_NSD, self.W_enc, self.b_enc)

    def top_k(self, x_NSD: Tensor, k: int, across: bool = False) -> Selection:
        """The k largest positive pre-activations of each row; `across`, S * k of all S rows of a token.

        Ties aside, what is selected and its values are those of full precision, whatever the matmul's.
        """
        if not across or self.n_sources == 1:
            return self._each(x_NSD, k)
        most = k * self.n_sources
        return selection.row_largest(
            self._each(x_NSD, min(most, self.n_features)), most, together=self.n_sources
        )

    def batch_top_k(self, x_NSD: Tensor, budget: int, across: bool = False) -> Selection:
        """The largest positive pre-activations of the batch, `budget` of each source; `across`, of all.

        Ties aside, what is selected and its values are those of full precision, whatever the matmul's.
        """
        dtype = self._selection_dtype(x_NSD)
        if across:
            return batchtopk_encode(x_NSD, self.W_enc, self.b_enc, budget, dtype)
        return selection.interleaved(
            [
                batchtopk_encode(
                    x_NSD[:, s : s + 1], self.W_enc[s : s + 1], self.b_enc[s : s + 1], budget, dtype
                )
                for s in range(self.n_sources)
            ]
        )

    def above(self, x_NSD: Tensor, threshold_SF: Tensor | float) -> Selection:
        """Every pre-activation above its feature's threshold, in full precision as `top_k`."""
        dtype = self._selection_dtype(x_NSD)
        parts = []
        for s in range(self.n_sources):
            threshold = threshold_SF[s] if isinstance(threshold_SF, Tensor) else threshold_SF
            W_FD, b_F = self.W_enc[s], self.b_enc[s]
            parts.append(threshold_encode(x_NSD[:, s], W_FD, b_F, threshold, dtype))
        return selection.interleaved(parts)

    @torch.no_grad()
    def where(self, x_NSD: Tensor, keep: Callable[[Tensor], Tensor]) -> Selection:
        """Those that `keep` says, which is given whole rows: [rows, F] in full precision."""
        rows = max(1, PRE_AT_ONCE // (self.n_sources * self.n_features))
        counts, columns, values = [], [], []
        for x in x_NSD.split(rows):
            pre_RF = self.pre(x)
            kept_RF = keep(pre_RF)
            counts.append(kept_RF.sum(1))
            columns.append(kept_RF.nonzero()[:, 1])
            values.append(pre_RF[kept_RF])
        return selection.starts(torch.cat(counts)), torch.cat(columns), torch.cat(values)

    def _each(self, x_NSD: Tensor, k: int) -> Selection:
        return topk_encode_each(x_NSD, self.W_enc, self.b_enc, k, self._selection_dtype(x_NSD))

    def _selection_dtype(self, x_NSD: Tensor) -> torch.dtype | None:
        """What selects fastest here, where nothing is said."""
        if self.matmul_dtype is not None or self.W_enc.dtype != torch.float32:
            return self.matmul_dtype
        if x_NSD.is_cuda:
            return ON_A_GPU
        pays = fixed_point.pays(len(x_NSD), *self.W_enc.shape[1:])
        return fixed_point.DTYPE if pays and fixed_point.serves(x_NSD, self.W_enc) else None

    def at(self, x_NSD: Tensor, selection: Selection) -> Code:
        """The selected pre-activations as a Code whose values carry their gradient."""
        code = Code(*selection, self.n_sources, self.n_features)
        W_CD, b_C = self.W_enc.flatten(0, 1), self.b_enc.flatten()
        x_RD = x_NSD.flatten(0, 1)
        values = sparse_encode(code.pattern, x_RD, W_CD, b_C, code.values, self.centre_SD)
        return code.with_values(values)


class LinearEncoder(nn.Module):
    """The parameters of a `LinearMap`, of all sources or of one.

    A link may give a subclass (`Link.encoder`), whose W_enc is such a parameter too.
    """

    def __init__(self, n_sources: int, n_features: int, width: int):
        super().__init__()
        self.n_sources, self.n_features, self.width = n_sources, n_features, width
        self.W_enc = nn.Parameter(torch.empty(n_sources, n_features, width))  # SFD
        self.b_enc = nn.Parameter(torch.zeros(n_sources, n_features))  # SF
        self.matmul_dtype: torch.dtype | None = None

    def whole(self, centre_SD: Tensor | None = None) -> LinearMap:
        return LinearMap(self.W_enc, self.b_enc, self.matmul_dtype, centre_SD)

    def source(self, s: int) -> LinearMap:
        """The map of one source alone; its gradients reach this encoder's parameters."""
        return LinearMap(self.W_enc[s : s + 1], self.b_enc[s : s + 1], self.matmul_dtype)

    def pre(self, x_NSD: Tensor) -> Tensor:
        return self.whole().pre(x_NSD)

    def tile_bytes(self, n_tokens: int, precision: str) -> int:
        """Bytes of a number as this CPU multiplies it in tiles; 0 where torch multiplies.

        `precision` is what the key `selection` says.
        """
        fixed = fixed_point.pays(n_tokens, self.n_features, self.width)
        if precision == "int16" or (precision == "auto" and fixed and fixed_point.available()):
            return 2
        exact = precision in ("auto", "float32") and tiles.pays(n_tokens, self.n_features)
        return FLOAT if exact else 0

    def selection_bytes(self, n_tokens: int, k: float, precision: str, low: bool) -> float:
        """Memory on a CPU to select k features of one source for each token.

        `low`: the matmul runs in half the bytes.
        """
        W_enc = self.n_features * self.width
        if number := self.tile_bytes(n_tokens, precision):  # both operands, and bounds of some rows
            rows = min(n_tokens, tiles.STRIP_ROWS * torch.get_num_threads())
            return number * (W_enc + n_tokens * self.width) + FLOAT * rows * self.n_features
        rounded = 2 * W_enc + 2 * n_tokens * self.n_features if low else 0
        return search_bytes(n_tokens, self.n_features, k, low) + rounded


def search_bytes(n_tokens: int, n_features: float, k: float, low: bool) -> float:
    """Memory on a CPU to write the pre-activations of one source and find the k largest."""
    if not low:  # a compiled loop, which needs a row more
        return n_tokens * (n_features * FLOAT + k * (INT + FLOAT))
    groups = GROUP * k * (INT + FLOAT) + n_features / GROUP * FLOAT
    return n_tokens * (n_features * FLOAT + (groups if n_features >= GROUPED_FROM else 0))


def candidate_bytes(n_tokens: int, k: float) -> float:
    """Memory on a GPU, which writes no pre-activations: places, bounds and values of candidates."""
    return 16 * n_tokens * 2 * k
