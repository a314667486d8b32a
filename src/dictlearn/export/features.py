"""The base class of exporters of features, for tools that show the content of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from dictlearn.store.explanations import Explanation
from dictlearn.store.features import FeatureStore
from dictlearn.store.layout import Info, layer_of
from dictlearn.store.records import Feature
from dictlearn.store.text import token_text


@dataclass(frozen=True, eq=False)
class FeatureJob:
    """One export of features."""

    store: FeatureStore
    explanations: Mapping[tuple[int, int], Explanation]
    tokenizer: PreTrainedTokenizerBase
    pieces: dict[int, str] = field(default_factory=dict)  # texts of the token ids so far

    def features(self, source: int) -> Iterator[Feature]:
        return (self.store.feature(source, f) for f in range(self.store.info.n_features))

    def text(self, ids: tuple[int, ...]) -> list[str]:
        new = sorted({token for token in ids if token not in self.pieces})
        self.pieces.update(zip(new, token_text(self.tokenizer, new), strict=True))
        return [self.pieces[token] for token in ids]

    def explanation(self, feature: Feature) -> Explanation | None:
        """The feature's explanation, unless it is missing or empty."""
        explanation = self.explanations.get((feature.source, feature.index))
        return explanation if explanation is not None and explanation.text else None


class FeatureExporter(ABC):
    """Abstract: a format. There is one final class per file, with options in conf/format/<name>.yaml."""

    name: str

    @abstractmethod
    def refusal(self, info: Info) -> str | None:
        """The reason why the format can't hold them, to follow `format=<name>: `, or None."""

    @abstractmethod
    def write(self, job: FeatureJob, folder: Path) -> None:
        """Writes into an empty folder."""

    @abstractmethod
    def check(self, job: FeatureJob, folder: Path) -> str:
        """Reads some features back as the tool does, and returns a sentence about it.

        Raises:
            ValueError: a feature differs from the store.
        """


def layer_refusal(info: Info) -> str | None:
    """The reason why the features have no layers of their own, or None."""
    missing = [s for s in range(info.code_sources) if layer_of(info, s) is None]
    if not missing:
        return None
    return (
        f"there a feature belongs to one layer of the model, and those of this {info.kind} read "
        f"{', '.join(info.sources)}"
    )


def explanation_text(explanation: Explanation) -> str:
    """The text of an explanation, marked if it is unreliable."""
    return explanation.text if explanation.reliable else f"[unreliable] {explanation.text}"


def percentiles(feature: Feature) -> list[float]:
    """The 1st to 99th percentile of the positive activations, interpolated in the histogram."""
    counts = torch.tensor(feature.histogram, dtype=torch.float64)
    if feature.dead:
        return []
    cumulative = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rank = torch.arange(1, 100) / 100 * cumulative[-1]
    bins = (torch.searchsorted(cumulative, rank) - 1).clamp(0, len(counts) - 1)
    share = (rank - cumulative[bins]) / counts[bins].clamp_min(1)
    return ((bins + share) * feature.maximum / len(counts)).tolist()


def sample_numbers(n: int, largest: int = 50) -> list[int]:
    """Up to `largest` evenly spaced numbers from 0 to n - 1."""
    return sorted({i * n // min(n, largest) for i in range(min(n, largest))})
