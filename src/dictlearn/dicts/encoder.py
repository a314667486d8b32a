"""The linear encoder: one matrix for every source of the code."""

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

# The dtype of selection on a GPU. bfloat16 is as fast and rounds eight times as coarsely; its range is
# not needed, because rows that don't fit into float16 are selected in full precision.
ON_A_GPU = torch.float16
PRE_AT_ONCE = 1 << 24  # pre-activations in memory at once, for rules that need whole rows
FLOAT, INT = 4, 8  # bytes: parameters are float32, indices int64


@dataclass(frozen=True, eq=False)
class LinearMap:
    """pre = W_enc x + b_enc, per source; a sparsity selects from these pre-activations.

    Selection (`top_k`, `batch_top_k`, `above`) runs without a gradient and need not store all
    pre-activations; `at` gives the selected entries their gradient. So the cost of the backward pass
    is proportional to the number of active features, not to F.
    """

    W_enc: Tensor  # SFD
    b_enc: Tensor  # SF
    matmul_dtype: torch.dtype | None = None  # of the selection's matmul; None: the fastest
    centre_SD: Tensor | None = None  # was subtracted from x; its gradient is computed here

    @property
    def n_sources(self) -> int:
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        return self.W_enc.shape[1]

    @torch.no_grad()
    def pre(self, x_NSD: Tensor) -> Tensor:
        """All pre-activations, in the parameters' precision and without a gradient: [N*S, F]."""
        return pre_activations(x_NSD, self.W_enc, self.b_enc)

    def top_k(self, x_NSD: Tensor, k: int, across: bool = False) -> Selection:
        """The k largest positive pre-activations of each row; with `across`, S * k of each token.

        Except for ties, the selection and its values are those of full precision.
        """
        if not across or self.n_sources == 1:
            return self._each(x_NSD, k)
        budget = k * self.n_sources
        return selection.row_largest(
            self._each(x_NSD, min(budget, self.n_features)), budget, together=self.n_sources
        )

    def batch_top_k(self, x_NSD: Tensor, budget: int, across: bool = False) -> Selection:
        """The `budget` largest positive pre-activations per source; with `across`, of all sources.

        Except for ties, the selection and its values are those of full precision.
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
        """All pre-activations above their feature's threshold, exact as in `top_k`."""
        dtype = self._selection_dtype(x_NSD)
        parts = []
        for s in range(self.n_sources):
            threshold = threshold_SF[s] if isinstance(threshold_SF, Tensor) else threshold_SF
            W_FD, b_F = self.W_enc[s], self.b_enc[s]
            parts.append(threshold_encode(x_NSD[:, s], W_FD, b_F, threshold, dtype))
        return selection.interleaved(parts)

    @torch.no_grad()
    def where(self, x_NSD: Tensor, keep: Callable[[Tensor], Tensor]) -> Selection:
        """The pre-activations that `keep` selects from whole rows, [rows, F] in full precision."""
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
        """The dtype of the selection's matmul; by default, the fastest here."""
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
    """The parameters of a `LinearMap`.

    A link may use a subclass (`Link.encoder`), whose W_enc must be a parameter [S, F, D] too.
    """

    def __init__(self, n_sources: int, n_features: int, width: int):
        super().__init__()
        self.n_sources, self.n_features, self.width = n_sources, n_features, width
        self.W_enc = nn.Parameter(torch.empty(n_sources, n_features, width))  # SFD
        self.b_enc = nn.Parameter(torch.zeros(n_sources, n_features))  # SF
        self.matmul_dtype: torch.dtype | None = None

    def linear_map(self, centre_SD: Tensor | None = None) -> LinearMap:
        return LinearMap(self.W_enc, self.b_enc, self.matmul_dtype, centre_SD)

    def source(self, s: int) -> LinearMap:
        """The map of one source; it shares this encoder's parameters."""
        return LinearMap(self.W_enc[s : s + 1], self.b_enc[s : s + 1], self.matmul_dtype)

    def pre(self, x_NSD: Tensor) -> Tensor:
        return self.linear_map().pre(x_NSD)

    def tile_bytes(self, n_tokens: int, precision: str) -> int:
        """Bytes per number in the tiles that this CPU multiplies; 0 if torch multiplies instead.

        `precision` is the value of the key `selection`.
        """
        fixed = fixed_point.pays(n_tokens, self.n_features, self.width)
        if precision == "int16" or (precision == "auto" and fixed and fixed_point.available()):
            return 2
        exact = precision in ("auto", "float32") and tiles.pays(n_tokens, self.n_features)
        return FLOAT if exact else 0

    def selection_bytes(self, n_tokens: int, k: float, precision: str, low: bool) -> float:
        """Bytes on a CPU to select k features of one source for each token.

        With `low`, the matmul runs in 16-bit floating point.
        """
        W_enc = self.n_features * self.width
        if number := self.tile_bytes(n_tokens, precision):  # both operands, and bounds of some rows
            rows = min(n_tokens, tiles.STRIP_ROWS * torch.get_num_threads())
            return number * (W_enc + n_tokens * self.width) + FLOAT * rows * self.n_features
        rounded = 2 * W_enc + 2 * n_tokens * self.n_features if low else 0
        return search_bytes(n_tokens, self.n_features, k, low) + rounded


def search_bytes(n_tokens: int, n_features: float, k: float, low: bool) -> float:
    """Bytes on a CPU for the pre-activations of one source and the search for the k largest."""
    if not low:  # a compiled loop finds them
        return n_tokens * (n_features * FLOAT + k * (INT + FLOAT))
    groups = GROUP * k * (INT + FLOAT) + n_features / GROUP * FLOAT
    return n_tokens * (n_features * FLOAT + (groups if n_features >= GROUPED_FROM else 0))


def candidate_bytes(n_tokens: int, k: float) -> float:
    """Bytes on a GPU for columns, bounds and values of candidates; it stores no pre-activations."""
    return 16 * n_tokens * 2 * k
