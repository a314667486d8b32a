"""Compares reconstructions with activations: pooled FVU, cosine, norms (maths 5.1).

FVU is pooled: the sum of squared errors over the sum of squared distances from the evaluation
set's own mean. A mean of per-token or per-batch ratios is another number (twice as large on heavy
tails), and so is an uncentred one.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.evals.context import (
    DICTIONARY,
    EvalContext,
    EvalResult,
    Meter,
    Metric,
    Observation,
)
from dictlearn.evals.moments import Spread, add_padded, by_position, double


@final
class ReconstructionSums:
    """The sums over (y, y_hat) that the figures need, per target, in float64."""

    def __init__(self, n_targets: int) -> None:
        self.n = 0
        self.spread = Spread()
        self.sums = {
            name: torch.zeros(n_targets, dtype=torch.float64)
            for name in ("error", "cosine", "ratio", "product", "y_hat_square")
        }

    def update(self, y_NTD: Tensor, y_hat_NTD: Tensor) -> None:
        if len(y_NTD) == 0:
            return
        y, y_hat = double(y_NTD), double(y_hat_NTD)
        self.n += len(y)
        self.spread.update(y)
        product_NT = (y * y_hat).sum(-1)
        norm_NT, norm_hat_NT = y.norm(dim=-1), y_hat.norm(dim=-1)
        tiny = torch.finfo(torch.float64).tiny
        terms = {
            "error": (y - y_hat).square().sum(-1),
            "cosine": product_NT / (norm_NT * norm_hat_NT).clamp(min=tiny),
            "ratio": norm_hat_NT / norm_NT.clamp(min=tiny),
            "product": product_NT,
            "y_hat_square": norm_hat_NT.square(),
        }
        for name, term_NT in terms.items():
            self.sums[name] += term_NT.sum(0).cpu()

    @property
    def variance_T(self) -> Tensor:
        """Sum of squared distances from the mean, per target: the denominator of the FVU."""
        return self.spread.squares_T.cpu()

    def figures(self) -> dict[str, float]:
        """Figures pooled over targets. gamma = E|y_hat|^2 / E[y.y_hat]: below 1, y_hat is shrunk."""
        n_terms = self.n * len(self.sums["error"])
        fvu = _ratio(self.sums["error"].sum(), self.variance_T.sum())
        return {
            "fvu": fvu,
            "explained_variance": 1.0 - fvu,
            "mse": float(self.sums["error"].sum()) / self.n,
            "cosine": float(self.sums["cosine"].sum()) / n_terms,
            "l2_ratio": float(self.sums["ratio"].sum()) / n_terms,
            "gamma": _ratio(self.sums["y_hat_square"].sum(), self.sums["product"].sum()),
        }

    def fvu_T(self) -> list[float]:
        return [
            _ratio(error, variance)
            for error, variance in zip(self.sums["error"], self.variance_T, strict=True)
        ]


def _ratio(above: Tensor, below: Tensor) -> float:
    """above / below; NaN where below is 0."""
    return float(above / below) if below != 0 else float("nan")


@final
class Reconstruction(Metric):
    def begin(self, context: EvalContext) -> ReconstructionMeter:
        return ReconstructionMeter(context.dictionary.targets, (DICTIONARY, *context.rows))


@final
class ReconstructionMeter(Meter):
    """Figures for every row; `error_by_position` [2, P] for the dictionary: fraction, tokens."""

    def __init__(self, targets: tuple[str, ...], rows: tuple[str, ...]) -> None:
        self.targets = targets
        self.valid = {row: ReconstructionSums(len(targets)) for row in rows}
        self.text = {row: ReconstructionSums(len(targets)) for row in rows}
        self.by_position_2P = torch.zeros(2, 0, dtype=torch.float64)

    def update(self, seen: Observation) -> None:
        y_NTD, keep_N = seen.batch.y_NTD, seen.valid_N
        for row, y_hat_NTD in seen.y_hat_NTD.items():
            self.valid[row].update(y_NTD[keep_N], y_hat_NTD[keep_N])
            self.text[row].update(y_NTD, y_hat_NTD)
        gap_NTD = double(y_NTD[keep_N]) - double(seen.y_hat_NTD[DICTIONARY][keep_N])
        error_N = gap_NTD.square().sum((1, 2)).cpu()
        position_N = seen.batch.positions_N[keep_N].cpu()
        error_2N = torch.stack([error_N, torch.ones_like(error_N)])
        batch_2P = by_position(error_2N, position_N, seen.tokens_BP.shape[1])
        self.by_position_2P = add_padded(self.by_position_2P, batch_2P)

    def result(self) -> EvalResult:
        rows = {row: self._figures(row) for row in self.valid}
        error_P, count_P = self.by_position_2P
        per_token = self.valid[DICTIONARY].variance_T.sum() / self.valid[DICTIONARY].n
        fraction_P = error_P / count_P.clamp(min=1) / per_token
        series = {"error_by_position": torch.stack([fraction_P, count_P])}
        return EvalResult(figures=rows.pop(DICTIONARY), rows=rows, series=series)

    def _figures(self, row: str) -> dict[str, float]:
        figures = self.valid[row].figures()
        figures["fvu_with_special"] = self.text[row].figures()["fvu"]
        if len(self.targets) > 1:
            for target, fvu in zip(self.targets, self.valid[row].fvu_T(), strict=True):
                figures[f"fvu/{target}"] = fvu
        return figures
