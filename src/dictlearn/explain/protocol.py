"""What an explainer is given and what it gives back: one file here and one yaml in conf/explainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dictlearn.explain.sample import Firings, Sample
from dictlearn.store.explanations import Explanation
from dictlearn.store.features import FeatureStore
from dictlearn.types import NamedProgress

Feature = tuple[int, int]  # (source, index)
Keep = Callable[[Explanation], None]  # writes one to the disk


@dataclass(frozen=True, eq=False)
class Material:
    """The text, what fires in it, and when a description counts."""

    sample: Sample
    firings: Firings
    untrained: Firings  # of a random dictionary of the same shape and L0, on the same text
    pieces: Sequence[str]  # text of every token id; empty for special ones
    threshold: float  # balanced accuracy, and
    precision: float  # precision, under which a description is unreliable
    at_least: int  # firings in each half, under which a feature is left out
    baseline_features: int  # of the random dictionary, to be explained
    folder: Path  # features/, where an explainer may keep what it has paid for
    store: FeatureStore | None = None  # promoted tokens and neighbours, if they are known
    seed: int = 0

    def neighbours(self, source: int, index: int) -> list[Feature]:
        """Features that fire on the same tokens, then those of the nearest decoder vectors."""
        if self.store is None:
            return []
        known = self.store.feature(source, index)
        near = [(s, i) for s, i, _ in (*known.cofiring, *known.neighbours)]
        return list(dict.fromkeys(near))

    def explainable(self, features: Sequence[Feature], firings: Firings) -> list[Feature]:
        """Those with enough firings to learn from and enough others to be scored on."""
        found = []
        for feature in features:
            tokens, _ = firings.of(*feature)
            to_score = int(self.sample.to_score_N[tokens].sum())
            if min(to_score, len(tokens) - to_score) >= self.at_least:
                found.append(feature)
        return found


@dataclass(frozen=True)
class Explained:
    """What an explainer found: the explanations, and figures of the run as plain JSON.

    `baselines` has the same scores of descriptions that were swapped among the features
    ("shuffled") and of a random dictionary's own ("random_dictionary"), one number a feature.
    `told` says to the user what happened on the way, a line each.
    """

    explanations: list[Explanation] = field(default_factory=list)
    baselines: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()


class Explainer(ABC):
    """Describes features from documents of the "explain" half and scores that on the other."""

    name: str

    @abstractmethod
    def explain(
        self, material: Material, features: Sequence[Feature], progress: NamedProgress, keep: Keep
    ) -> Explained:
        """Of features that are explainable.

        What costs money or hours is handed to `keep` as soon as it is found, still without
        `baselines`, so that nothing is lost where the rest fails.
        """

    @abstractmethod
    def estimate(self, material: Material, features: Sequence[Feature]) -> str:
        """What that would cost, in a sentence; nothing is asked of anybody."""
