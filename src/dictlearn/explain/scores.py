"""Scores of descriptions from counts, and their distribution over features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Confusion:
    """Counts of tokens or contexts, by the description's prediction and the feature's firing."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the true positive and the true negative rate; 0.5 is chance.

        NaN where the feature always or never fires.
        """
        return (_ratio(self.tp, self.tp + self.fn) + _ratio(self.tn, self.tn + self.fp)) / 2

    @property
    def precision(self) -> float:
        """Share of predicted firings that are firings; 0 without predictions."""
        return self.tp / max(self.tp + self.fp, 1)

    @property
    def recall(self) -> float:
        return _ratio(self.tp, self.tp + self.fn)

    def figures(self) -> dict[str, float]:
        return {
            "balanced_accuracy": self.balanced_accuracy,
            "precision": self.precision,
            "recall": self.recall,
        }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Mean and quantiles for a table; empty without values."""
    if not len(values):
        return {}
    levels = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
    quantiles = {name: float(np.quantile(values, level)) for name, level in levels.items()}
    return {"mean": float(np.mean(values)), **quantiles}


def derangement(n: int, seed: int) -> list[int]:
    """A random permutation of 0..n-1 without fixed points, for n > 1."""
    shuffled = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, int)
    other[shuffled] = np.roll(shuffled, 1)
    return other.tolist()


def share(values: Sequence[float], least: float, total: int) -> float:
    """The number of values of at least `least`, as a share of `total`."""
    return sum(value >= least for value in values) / total if total else 0.0


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
