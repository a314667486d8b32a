"""How often a description is right about where its feature fires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Confusion:
    """Counts of tokens, or of contexts, by what the description says and what the feature does."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the rates of firings and of silences that are right: 0.5 says nothing.

        NaN where the feature always or never fires.
        """
        return (_ratio(self.tp, self.tp + self.fn) + _ratio(self.tn, self.tn + self.fp)) / 2

    @property
    def precision(self) -> float:
        """Of what is said to fire, the share that does; 0 where nothing is said to."""
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
    """Mean and quantiles, for a table; nothing where there are no values."""
    if not len(values):
        return {}
    levels = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
    quantiles = {name: float(np.quantile(values, level)) for name, level in levels.items()}
    return {"mean": float(np.mean(values)), **quantiles}


def derangement(n: int, seed: int) -> list[int]:
    """A permutation of 0..n-1 that leaves nothing in its place (n > 1): whose description to take."""
    shuffled = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, int)
    other[shuffled] = np.roll(shuffled, 1)
    return other.tolist()


def share(values: Sequence[float], least: float, of: int) -> float:
    """How many of `of` reach `least`."""
    return sum(value >= least for value in values) / of if of else 0.0


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
