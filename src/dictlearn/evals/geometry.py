"""Cosines of weights: of features' decoder vectors, and of a feature's encoder and decoder rows.

Two features with the same decoder vector split what one could represent; a feature whose encoder row
is far from its decoder row reads another direction than it writes. Figures are quantiles, because a
mean would hide both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dictlearn.dicts.neighbours import Neighbours
from dictlearn.evals.context import EvalContext, EvalResult, Meter, Metric, Observation
from dictlearn.ranges import Count
from dictlearn.types import DictionaryLike

BINS = 40
MOST_PRODUCTS = 1e13  # multiply-adds of the cosines: two minutes of a laptop


@final
@dataclass(frozen=True)
class Geometry(Metric):
    """Figures of about `features` live features, evenly spread; fewer for very large dictionaries.

    - `nearest_cosine_p50`, `_p95`, series `nearest_cosine_histogram`: cosine of a feature's decoder
      vector and the nearest other live feature's, over all sources, with all targets concatenated;
    - `alignment_p50`, `_p05`, series `alignment_histogram`: cosine of a feature's encoder row and
      decoder row, for autoencoders of single sites.

    A feature is live if it fires on the evaluated tokens. A histogram is [2, bins]: left edges, and
    counts.
    """

    features: Count = 2048

    def begin(self, context: EvalContext) -> GeometryMeter:
        return GeometryMeter(context.dictionary, self.features)


@final
class GeometryMeter(Meter):
    def __init__(self, dictionary: DictionaryLike, features: int) -> None:
        self.dictionary = dictionary
        self.features = features
        self.live = Live()

    def update(self, seen: Observation) -> None:
        self.live.update(seen)

    @torch.no_grad()
    def result(self) -> EvalResult:
        if not self.live.fired.any():
            return EvalResult()
        live_SF = self.live.fired.view(self.dictionary.code_sources, -1)
        nearest, alignment = self._cosines(self.dictionary, live_SF)
        figures, series = {}, {}
        if len(nearest):
            figures["nearest_cosine_p50"] = float(nearest.quantile(0.5))
            figures["nearest_cosine_p95"] = float(nearest.quantile(0.95))
            low = 0.0 if float(nearest.min()) >= 0 else -1.0
            series["nearest_cosine_histogram"] = histogram(nearest, low)
        if len(alignment):
            figures["alignment_p50"] = float(alignment.quantile(0.5))
            figures["alignment_p05"] = float(alignment.quantile(0.05))
            low = 0.0 if float(alignment.min()) >= 0 else -1.0
            series["alignment_histogram"] = histogram(alignment, low)
        return EvalResult(figures=figures, series=series)

    def _cosines(self, dictionary: DictionaryLike, live_SF: Tensor) -> tuple[Tensor, Tensor]:
        """(cosines to the nearest other live feature, cosines of encoder and decoder)."""
        neighbours = Neighbours(dictionary)
        neighbours.norms_SF = neighbours.norms_SF * live_SF.to(neighbours.norms_SF)
        own = dictionary.code_sources == len(dictionary.sources)
        aligned = own and dictionary.reads_what_it_writes
        nearest, alignment = [], []
        for s, rows in self._rows(dictionary, live_SF):
            cosine_nK, column_nK = neighbours.nearest(s, rows, 1)[::-1]
            live_n = live_SF[s, rows]
            nearest.append(cosine_nK[live_n & (column_nK[:, 0] >= 0), 0])
            if aligned:
                pair = dictionary.encoder.W_enc[s, rows], dictionary.decoder.written(s, s, rows)
                alignment.append(torch.cosine_similarity(*pair, dim=-1).float().cpu()[live_n])
        return torch.cat(nearest), torch.cat(alignment) if alignment else torch.zeros(0)

    def _rows(self, dictionary: DictionaryLike, live_SF: Tensor) -> Iterator[tuple[int, slice]]:
        """Evenly spaced features of each source."""
        others = live_SF.numel() * dictionary.n_targets * dictionary.width
        features = min(self.features, max(BLOCK // 4, int(MOST_PRODUCTS / others)))
        stride = max(1, int(live_SF.sum()) // features)
        n = dictionary.n_features
        for s in range(dictionary.code_sources):
            for low in range(0, n, BLOCK * stride):
                yield s, slice(low, min(low + BLOCK * stride, n), stride)


BLOCK = 1024  # features compared at a time


@final
class Live:
    """Marks the features that have fired on valid tokens: `fired` is bool [S * F]."""

    def __init__(self) -> None:
        self.fired = torch.zeros(0, dtype=torch.bool)

    def update(self, seen: Observation) -> None:
        code = seen.code
        keep = seen.valid_N[code.rows // code.n_sources]
        fired = torch.zeros(code.n_sources * code.n_features, dtype=torch.bool)
        fired[code.pattern.columns[keep].cpu()] = True
        self.fired = fired | self.fired if len(self.fired) else fired


def histogram(values: Tensor, low: float = 0.0, high: float = 1.0, bins: int = BINS) -> Tensor:
    """[2, bins]: left edges of bins of equal width, and the number of values in each."""
    edges = low + (high - low) * torch.arange(bins, dtype=torch.float64) / bins
    index = ((values.double() - low) / (high - low) * bins).floor().long().clamp(0, bins - 1)
    return torch.stack([edges, torch.bincount(index, minlength=bins).double()])
