"""The state of a pass for a block of features: updated by firings and merged exactly.

Every part is a function of the set of firings alone: counts, the strongest ones, and those with the
smallest hashes, which are a uniform sample without replacement. So the result depends neither on the
order of the text nor on its division among processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self, final

import torch
from torch import Tensor

from dictlearn.features import histogram
from dictlearn.features.ragged import EMPTY, Firings, Slots
from dictlearn.features.settings import Settings

SLOTS = ("top", "drawn")


@final
@dataclass(eq=False)
class State:
    """n features; slots are [n, K] for the strongest firings and [n, R] for the sampled ones."""

    count: Tensor  # int64 [n]
    total: Tensor  # float64 [n], sum of activations
    maximum: Tensor  # float32 [n]
    octave: Tensor  # int32 [n]
    histogram: Tensor  # int32 [n, N_BINS]
    top: Slots  # at most one per window, strongest first
    drawn: Slots  # with the smallest hashes

    @classmethod
    def empty(cls, n: int, settings: Settings) -> Self:
        return cls(
            torch.zeros(n, dtype=torch.int64),
            torch.zeros(n, dtype=torch.float64),
            torch.zeros(n),
            torch.full((n,), histogram.NOTHING_YET, dtype=torch.int32),
            torch.zeros(n, histogram.N_BINS, dtype=torch.int32),
            Slots.empty(n, settings.examples, settings.length),
            Slots.empty(n, settings.drawn, settings.length),
        )

    def __len__(self) -> int:
        return len(self.count)

    def update(self, seen: Firings, first: int, context: int, settings: Settings) -> None:
        """Adds firings. `first` is the number of the block's first feature, `context` is P."""
        if len(seen.row) == 0:
            return
        n = len(self)
        self.count += torch.bincount(seen.row, minlength=n)
        self.total += torch.bincount(seen.row, weights=seen.value.double(), minlength=n)
        self.maximum = self.maximum.scatter_reduce(0, seen.row, seen.value, "amax")
        octave = torch.where(self.maximum > 0, histogram.octave_of(self.maximum), self.octave)
        counts = histogram.rebased(self.histogram, self.octave, octave)
        self.histogram = counts + histogram.counted(seen.row, seen.value, octave)
        self.octave = octave
        ranks = strength_rank(seen.value)
        peaks = _first_of_windows(seen, ranks, context)
        self.top = self.top.with_best(seen, ranks, peaks, context, settings)
        ranks = hash_rank(seen.row + first, seen.place)
        self.drawn = self.drawn.with_best(seen, ranks, None, context, settings)

    def merge(self, other: State) -> None:
        """Adds the state of other windows."""
        self.count += other.count
        self.total += other.total
        self.maximum = self.maximum.maximum(other.maximum)
        octave = self.octave.maximum(other.octave)
        mine = histogram.rebased(self.histogram, self.octave, octave)
        self.histogram = mine + histogram.rebased(other.histogram, other.octave, octave)
        self.octave = octave
        self.top = self.top.merged(other.top)
        self.drawn = self.drawn.merged(other.drawn)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in SLOTS}
        for name, slots in (("top", self.top), ("drawn", self.drawn)):
            tensors |= {f"{name}.{key}": value for key, value in vars(slots).items()}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        own = {f.name: tensors[f.name] for f in fields(cls) if f.name not in SLOTS}
        top, drawn = (
            Slots(**{f.name: tensors[f"{name}.{f.name}"] for f in fields(Slots)}) for name in SLOTS
        )
        return cls(**own, top=top, drawn=drawn)


def strength_rank(values: Tensor) -> Tensor:
    """Ranks int64, smaller for stronger firings: positive floats are ordered as their bits are."""
    return EMPTY - 1 - values.view(torch.int32).long()


def hash_rank(feature: Tensor, place: Tensor) -> Tensor:
    """Pseudo-random ranks int64 in 0..2^31-1: splitmix64 (Steele et al. 2014) of both numbers."""
    z = feature * -7046029254386353131 + place * -3335678366873096957
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (z >> 33) & (EMPTY - 1)


def _first_of_windows(seen: Firings, ranks: Tensor, context: int) -> Tensor:
    """bool [m]: marks the best-ranked firing of each feature in each window, the first of equals."""
    window = seen.place // context
    new = torch.ones_like(window, dtype=torch.bool)
    new[1:] = (window[1:] != window[:-1]) | (seen.row[1:] != seen.row[:-1])
    segment = new.cumsum(0) - 1
    n_segments = int(segment[-1]) + 1
    lowest = torch.full((n_segments,), EMPTY).scatter_reduce(0, segment, ranks, "amin")
    ties = (ranks == lowest[segment]).nonzero()[:, 0]
    first = torch.full((n_segments,), len(ranks)).scatter_reduce(0, segment[ties], ties, "amin")
    chosen = torch.zeros_like(new)
    chosen[first] = True
    return chosen
