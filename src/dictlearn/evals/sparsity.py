"""Measures L0 and the firing densities of features (maths 5.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dictlearn.evals.context import EvalContext, EvalResult, Meter, Metric, Observation
from dictlearn.evals.moments import add_padded, by_position
from dictlearn.evals.prefixes import nested
from dictlearn.names import code_names
from dictlearn.ranges import Count, ProperFraction

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@final
@dataclass(frozen=True)
class Sparsity(Metric):
    """L0 and firing densities over valid tokens.

    A feature that never fires on the evaluated tokens counts as dead, so `dead` depends on their
    number, `tokens`. `high_density` is the share of tokens from which a
    feature counts as dense.
    """

    high_density: ProperFraction = 0.1
    bins_per_decade: Count = 5

    def begin(self, context: EvalContext) -> SparsityMeter:
        dictionary = context.dictionary
        sources = code_names(dictionary.sources, dictionary.code_sources)
        prefixes = {row: width for row, width in nested(dictionary).items() if row in context.rows}
        return SparsityMeter(
            sources, dictionary.n_features, self.high_density, self.bins_per_decade, prefixes
        )


@final
class SparsityMeter(Meter):
    """Accumulates integer counts, exact in any order. `sources` are the code's.

    Series: `density` [S, F] shares of tokens; `density_histogram` [2, bins] log10 of the left edge
    and the number of features; `l0_by_position` [2, P] mean and tokens; `l0_histogram` [max + 1].
    """

    def __init__(
        self,
        sources: tuple[str, ...],
        n_features: int,
        high_density: float,
        bins_per_decade: int,
        prefixes: Mapping[str, int] | None = None,
    ) -> None:
        self.sources = sources
        self.high_density = high_density
        self.bins_per_decade = bins_per_decade
        self.prefixes = prefixes or {}  # row -> features of each source that it decodes
        self.n = 0
        self.fired_SF = torch.zeros(len(sources), n_features, dtype=torch.int64)
        self.l0_counts = torch.zeros(0, dtype=torch.int64)  # [i]: tokens with i active features
        self.l0_S = torch.zeros(len(sources), dtype=torch.int64)
        self.by_position_2P = torch.zeros(2, 0, dtype=torch.int64)

    def update(self, seen: Observation) -> None:
        code, keep_N = seen.code, seen.valid_N
        self.n += int(keep_N.sum())
        valid_entries = keep_N[code.rows // code.n_sources]
        feature = code.pattern.columns[valid_entries]
        fired = torch.bincount(feature, minlength=self.fired_SF.numel()).cpu()
        self.fired_SF += fired.view_as(self.fired_SF)
        l0_NS = code.l0_NS[keep_N].cpu()
        self.l0_S += l0_NS.sum(0)
        l0_N = l0_NS.sum(1)
        self.l0_counts = add_padded(self.l0_counts, torch.bincount(l0_N))
        position_N = seen.batch.positions_N[keep_N].cpu()
        l0_2N = torch.stack([l0_N, torch.ones_like(l0_N)])
        batch_2P = by_position(l0_2N, position_N, seen.tokens_BP.shape[1])
        self.by_position_2P = add_padded(self.by_position_2P, batch_2P)

    def result(self) -> EvalResult:
        density_SF = self.fired_SF.double() / max(self.n, 1)
        figures = {
            "tokens": float(self.n),
            "l0": float(self.l0_S.sum()) / max(self.n, 1),
            "dead": float((self.fired_SF == 0).double().mean()),
            "high_density": float((density_SF > self.high_density).sum()),
            "l0_max": float(max(len(self.l0_counts) - 1, 0)),
        }
        for q in QUANTILES:
            figures[f"l0_p{100 * q:02.0f}"] = float(quantile_of_counts(self.l0_counts, q))
            figures[f"density_p{100 * q:02.0f}"] = float(lower_quantile(density_SF.flatten(), q))
        if len(self.sources) > 1:
            for source, l0 in zip(self.sources, self.l0_S, strict=True):
                figures[f"l0/{source}"] = float(l0) / max(self.n, 1)
        l0_P, count_P = self.by_position_2P.double()
        series = {
            "density": density_SF,
            "density_histogram": self._histogram(),
            "l0_by_position": torch.stack([l0_P / count_P.clamp(min=1), count_P]),
            "l0_histogram": self.l0_counts,
        }
        rows = {
            row: {
                "l0": float(self.fired_SF[:, :width].sum()) / max(self.n, 1),
                "dead": float((self.fired_SF[:, :width] == 0).double().mean()),
            }
            for row, width in self.prefixes.items()
        }
        return EvalResult(figures=figures, rows=rows, series=series)

    def _histogram(self) -> Tensor:
        """Histogram of live features by log10 density, from one firing to firing on every token."""
        fired = self.fired_SF[self.fired_SF > 0].double()
        log_density = (fired / max(self.n, 1)).log10()
        lowest = -math.ceil(math.log10(max(self.n, 10)))
        n_bins = -lowest * self.bins_per_decade
        bins = ((log_density - lowest) * self.bins_per_decade).floor().long()
        counts = torch.bincount(bins.clamp(0, n_bins - 1), minlength=n_bins)
        edges = lowest + torch.arange(n_bins, dtype=torch.float64) / self.bins_per_decade
        return torch.stack([edges, counts.double()])


def quantile_of_counts(counts: Tensor, q: float) -> int:
    """The smallest value v with a share of at least q at or below it; counts[v] occurrences."""
    total = int(counts.sum())
    if total == 0:
        return 0
    at_or_below = counts.cumsum(0).double()
    return int((at_or_below < q * total).sum())


def lower_quantile(values: Tensor, q: float) -> Tensor:
    """As `quantile_of_counts`, for a list of values: one of them, never an interpolation."""
    ordered = values.sort().values
    return ordered[max(math.ceil(q * len(ordered)) - 1, 0)]
