"""The interface of explainers; each has one file here and one yaml in conf/explainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dictlearn.explain.sample import Firings, Sample
from dictlearn.store.explanations import Explanation
from dictlearn.store.features import FeatureStore
from dictlearn.types import NamedProgress

Feature = tuple[int, int]  # (source, index)
Keep = Callable[[Explanation], None]  # writes an explanation to the disk


@dataclass(frozen=True, eq=False)
class Material:
    """The text, the firings in it, and the thresholds of a reliable description."""

    sample: Sample
    firings: Firings
    untrained: Firings  # of a random dictionary of the same shape and L0, on the same text
    pieces: Sequence[str]  # text of every token id; empty for special ones
    threshold: float  # least balanced accuracy of a reliable description
    precision: float  # least precision of a reliable description
    at_least: int  # least firings in each half; features with fewer are left out
    baseline_features: int  # features of the random dictionary to explain
    folder: Path  # features/, where an explainer may keep its cache
    store: FeatureStore | None = None  # promoted tokens and neighbours, if known
    seed: int = 0

    def neighbours(self, source: int, index: int) -> list[Feature]:
        """Features that fire on the same tokens, then those with the nearest decoder vectors."""
        if self.store is None:
            return []
        record = self.store.feature(source, index)
        near = [(s, i) for s, i, _ in (*record.cofiring, *record.neighbours)]
        return list(dict.fromkeys(near))

    def explainable(self, features: Sequence[Feature], firings: Firings) -> list[Feature]:
        """The features with at least `at_least` firings in each half."""
        explainable = []
        for feature in features:
            tokens, _ = firings.of(*feature)
            to_score = int(self.sample.to_score_N[tokens].sum())
            if min(to_score, len(tokens) - to_score) >= self.at_least:
                explainable.append(feature)
        return explainable

    def drawn_untrained(self, n: int) -> list[Feature]:
        """`n` features of the random dictionary, drawn by the seed; fewer if most can't be explained."""
        firings = self.untrained
        features = [divmod(i, firings.n_features) for i in range(len(firings.starts) - 1)]
        order = np.random.default_rng(self.seed).permutation(len(features))
        return self.explainable([features[i] for i in order[: 4 * n]], firings)[:n]


@dataclass(frozen=True)
class Explained:
    """An explainer's explanations, and figures of the run as plain JSON.

    `baselines` holds one balanced accuracy per feature, of descriptions swapped among the features
    ("shuffled") and of a random dictionary's own ("random_dictionary"). `told` are lines for the
    user on what happened during the run.
    """

    explanations: list[Explanation] = field(default_factory=list)
    baselines: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()


class Explainer(ABC):
    """Describes features from documents of the "explain" half and scores that on the "score" half."""

    name: str

    @abstractmethod
    def explain(
        self, material: Material, features: Sequence[Feature], progress: NamedProgress, keep: Keep
    ) -> Explained:
        """Explains features that `Material.explainable` has chosen.

        Explanations that cost money or hours are passed to `keep` as soon as they are there, still
        without `baselines`, so that nothing is lost if the rest fails.
        """

    @abstractmethod
    def estimate(self, material: Material, features: Sequence[Feature]) -> str:
        """A sentence on the cost of `explain`; no model is asked."""
