"""What an exporter of features is: a format in which another tool shows what is in the store."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from dictlearn.store.explanations import Explanation
from dictlearn.store.features import FeatureStore
from dictlearn.store.layout import Info
from dictlearn.store.records import Feature
from dictlearn.store.text import token_text


@dataclass(frozen=True, eq=False)
class FeatureJob:
    """One export of features."""

    store: FeatureStore
    explanations: Mapping[tuple[int, int], Explanation]
    tokenizer: PreTrainedTokenizerBase
    pieces: dict[int, str] = field(default_factory=dict)  # of the ids met so far

    def features(self, source: int) -> Iterator[Feature]:
        return (self.store.feature(source, f) for f in range(self.store.info.n_features))

    def text(self, ids: tuple[int, ...]) -> list[str]:
        new = sorted({token for token in ids if token not in self.pieces})
        self.pieces.update(zip(new, token_text(self.tokenizer, new), strict=True))
        return [self.pieces[token] for token in ids]

    def explanation(self, feature: Feature) -> Explanation | None:
        """Where something was found to say."""
        found = self.explanations.get((feature.source, feature.index))
        return found if found is not None and found.text else None


class FeatureExporter(ABC):
    """Abstract. One final class a file; conf/format/<name>.yaml holds its options."""

    name: str

    @abstractmethod
    def refusal(self, info: Info) -> str | None:
        """Why the format can't hold them, what follows `format=<name>: `; None where it can."""

    @abstractmethod
    def write(self, job: FeatureJob, folder: Path) -> None:
        """Fills an empty folder."""

    @abstractmethod
    def check(self, job: FeatureJob, folder: Path) -> str:
        """Reads some of it back as its readers do; a sentence on what was found.

        Raises:
            ValueError: it is not what the store says.
        """


def layer_of(info: Info, source: int) -> int | None:
    """The layer that a row of the code reads, where its site says so."""
    if info.code_sources != len(info.sources):
        return None
    found = re.fullmatch(r"[a-z_]+\.(\d+)", info.sources[source])
    return None if found is None else int(found[1])


def no_layers(info: Info) -> str | None:
    """A sentence where features have no layer of their own."""
    missing = [s for s in range(info.code_sources) if layer_of(info, s) is None]
    if not missing:
        return None
    return (
        f"there a feature belongs to one layer of the model, and those of this {info.kind} read "
        f"{', '.join(info.sources)}"
    )


def said(explanation: Explanation) -> str:
    """Its text, and where it can't be trusted, that."""
    return explanation.text if explanation.reliable else f"[unreliable] {explanation.text}"


def percentiles(feature: Feature) -> list[float]:
    """The 1st to 99th of the positive activations, linear within the bins of the histogram."""
    counts = torch.tensor(feature.histogram, dtype=torch.float64)
    if feature.dead:
        return []
    up_to = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    want = torch.arange(1, 100) / 100 * up_to[-1]
    bin_of = (torch.searchsorted(up_to, want) - 1).clamp(0, len(counts) - 1)
    share = (want - up_to[bin_of]) / counts[bin_of].clamp_min(1)
    return ((bin_of + share) * feature.maximum / len(counts)).tolist()


def spread(n: int, most: int = 50) -> list[int]:
    """Up to `most` of the numbers below n, evenly."""
    return sorted({i * n // min(n, most) for i in range(min(n, most))})
