"""Baseline reconstructions, fitted on training text: the rows beside the dictionary.

Zero and mean ablation bound the scale from below. PCA of rank k has the dictionary's L0 as its k:
as many directions per token, but the same ones for every token. For a dictionary that reads one
site and writes another, the fair comparison is the best linear map of rank k from its source
(reduced-rank regression, Izenman 1975); the PCA of the target reads the target itself and is
labelled so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dictlearn.evals.context import MEAN_ABLATION, ZERO_ABLATION, EvalContext, Row, RowSource
from dictlearn.evals.moments import Covariance
from dictlearn.evals.observe import observe_training
from dictlearn.ranges import Count, Several


@final
@dataclass(frozen=True)
class Baselines(RowSource):
    """Fits on `fit_tokens` positions of the training split. `rank` overrides k."""

    fit_tokens: Several = 32_768
    rank: Count | None = None

    def fit(self, context: EvalContext) -> dict[str, Row]:
        dictionary = context.dictionary
        autoencodes = dictionary.sources == dictionary.targets
        last = len(dictionary.sources) - 1
        pairs = [(min(t, last), t) for t in range(len(dictionary.targets))]
        cov_y = [Covariance() for _ in pairs]
        cov_x = [Covariance() for _ in pairs]
        cov_xy = [Covariance() for _ in pairs]
        active = tokens = 0
        for seen in observe_training(context, self.fit_tokens):
            x_NSD, y_NTD = seen.batch.x_NSD[seen.valid_N], seen.batch.y_NTD[seen.valid_N]
            active += int(seen.code.l0_NS[seen.valid_N].sum())
            tokens += len(y_NTD)
            for s, t in pairs:
                cov_y[t].update(y_NTD[:, t], y_NTD[:, t])
                if not autoencodes:
                    cov_x[t].update(x_NSD[:, s], x_NSD[:, s])
                    cov_xy[t].update(x_NSD[:, s], y_NTD[:, t])
        if tokens < 2:
            raise ValueError("eval.baselines: the training split holds no tokens to fit on")
        k = self.rank or round(active / tokens / dictionary.code_sources)
        k = min(max(k, 1), dictionary.width)
        components = [principal(covariance.matrix(), k) for covariance in cov_y]
        means = [covariance.mean_y_E for covariance in cov_y]
        projections = [_project(mean, basis) for mean, basis in zip(means, components, strict=True)]
        rows: dict[str, Row] = {}
        if autoencodes:
            rows[f"PCA, rank {k}"] = _row_of_y(projections)
        else:
            maps = [
                _affine(*reduced_rank(x, y, xy, k))
                for x, y, xy in zip(cov_x, cov_y, cov_xy, strict=True)
            ]
            rows[f"linear map, rank {k}"] = _row_of_x(maps, [s for s, _ in pairs])
            rows[f"PCA of the target, rank {k}"] = _row_of_y(projections)
        rows[MEAN_ABLATION] = _row_of_y([_constant(mean) for mean in means])
        rows[ZERO_ABLATION] = lambda x_NSD, y_NTD: torch.zeros_like(y_NTD)
        return rows


def principal(covariance_DD: Tensor, k: int) -> Tensor:
    """The k leading eigenvectors [D, k] of a symmetric matrix."""
    return torch.linalg.eigh(covariance_DD).eigenvectors[:, -k:]


def reduced_rank(
    cov_x: Covariance, cov_y: Covariance, cov_xy: Covariance, k: int
) -> tuple[Tensor, Tensor]:
    """(W [D, E], b [E]) of the linear map x W + b of rank k with the least squared error.

    It is the least-squares map, followed by a projection on the k leading components of its
    fitted values. Directions in which x does not vary are left out (pseudo-inverse).
    """
    full_DE = torch.linalg.pinv(cov_x.matrix(), rtol=1e-10, hermitian=True) @ cov_xy.matrix()
    fitted_EE = cov_xy.matrix().T @ full_DE
    basis_EK = principal((fitted_EE + fitted_EE.T) / 2, k)
    W_DE = full_DE @ basis_EK @ basis_EK.T
    return W_DE, cov_y.mean_y_E - cov_x.mean_x_D @ W_DE


Map = Callable[[Tensor], Tensor]


def _project(mean_D: Tensor, basis_DK: Tensor) -> Map:
    def project(y_ND: Tensor) -> Tensor:
        mean, basis = mean_D.to(y_ND), basis_DK.to(y_ND)
        return mean + (y_ND - mean) @ basis @ basis.T

    return project


def _affine(W_DE: Tensor, b_E: Tensor) -> Map:
    return lambda x_ND: x_ND @ W_DE.to(x_ND) + b_E.to(x_ND)


def _constant(mean_D: Tensor) -> Map:
    return lambda y_ND: mean_D.to(y_ND).expand_as(y_ND)


def _row_of_y(maps: Sequence[Map]) -> Row:
    return lambda x_NSD, y_NTD: torch.stack([f(y_NTD[:, t]) for t, f in enumerate(maps)], 1)


def _row_of_x(maps: Sequence[Map], sources: Sequence[int]) -> Row:
    paired = list(zip(sources, maps, strict=True))
    return lambda x_NSD, y_NTD: torch.stack([f(x_NSD[:, s]) for s, f in paired], 1)
