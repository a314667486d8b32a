"""Keeps the few best firings of each row in slots, without a loop over rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from dictlearn.features.settings import Settings
from dictlearn.store.writer import NOTHING, scaled

EMPTY = 1 << 31  # rank of an empty slot, after all others
CONTEXTS_AT_ONCE = 1 << 15


@dataclass(frozen=True, eq=False)
class Firings:
    """Firings of a block of n features, ordered by feature, then by place.

    A place is row of window * P + position. All firings of a window are present.
    """

    row: Tensor  # int64 [m], the feature within the block
    place: Tensor  # int64 [m]
    value: Tensor  # float32 [m], positive


class Columns(NamedTuple):
    """The fields of Slots, for single firings."""

    rank: Tensor
    place: Tensor
    value: Tensor
    scale: Tensor
    shares: Tensor


@final
@dataclass(frozen=True, eq=False)
class Slots:
    """The K best firings of each of n features, best first; ties go to the first in the text."""

    rank: Tensor  # int64 [n, K], smaller is better; EMPTY in an empty slot
    place: Tensor  # int64 [n, K]
    value: Tensor  # float32 [n, K]
    scale: Tensor  # float32 [n, K] and
    shares: Tensor  # float16 [n, K, L]: the feature's activations around the place

    @classmethod
    def empty(cls, n: int, k: int, length: int) -> Self:
        return cls(
            torch.full((n, k), EMPTY),
            torch.full((n, k), NOTHING),
            torch.zeros(n, k),
            torch.zeros(n, k),
            torch.zeros(n, k, length, dtype=torch.float16),
        )

    def with_best(
        self,
        seen: Firings,
        ranks: Tensor,
        among: Tensor | None,
        context: int,
        settings: Settings,
    ) -> Slots:
        """The K best of these slots and of the firings seen, or of those marked by `among`."""
        n, k = self.rank.shape
        if k == 0:
            return self
        better = ranks <= self.rank[:, -1][seen.row]
        index = (better if among is None else better & among).nonzero()[:, 0]
        index = index[best(seen.row[index], ranks[index], seen.place[index], n, k)]
        contexts = contexts_of(seen, index, context, settings)
        scale, shares = scaled(contexts)
        rows = seen.row[index]
        new = Columns(ranks[index], seen.place[index], seen.value[index], scale, shares)
        return self._joined(rows, new)

    def merged(self, other: Slots) -> Slots:
        n, k = other.rank.shape
        rows = torch.arange(n).repeat_interleave(k)
        return self._joined(
            rows, Columns(*(column.flatten(0, 1) for column in vars(other).values()))
        )

    def _joined(self, rows: Tensor, new: Columns) -> Slots:
        """The K best of these slots and of new firings, whose features are `rows`."""
        n, k = self.rank.shape
        own_rows = torch.arange(n).repeat_interleave(k)
        row = torch.cat([own_rows, rows])
        rank = torch.cat([self.rank.flatten(), new.rank])
        place = torch.cat([self.place.flatten(), new.place])
        kept = best(
            row, rank, place, n, k
        )  # exactly k for each row, as empty slots are entries too
        columns = [
            torch.cat([mine.flatten(0, 1), theirs])[kept].view_as(mine)
            for mine, theirs in zip(vars(self).values(), new, strict=True)
        ]
        return Slots(*columns)


def best(row: Tensor, rank: Tensor, place: Tensor, n: int, k: int) -> Tensor:
    """Indices of the k entries with the lowest (rank, place) in each of n rows, sorted by row, rank."""
    order = place.argsort()
    order = order[((row << 32) | rank)[order].argsort(stable=True)]
    return order[_number_within(row[order]) < k]


def contexts_of(seen: Firings, index: Tensor, context: int, settings: Settings) -> Tensor:
    """The feature's activations around each firing: float32 [len(index), L], 0 outside its window.

    Firings of a feature are sorted by place, so those around firing i are within `before` entries
    before it and `after` entries after it.
    """
    contexts = torch.zeros(len(index), settings.length)
    offset = torch.arange(-settings.before, settings.after + 1)
    for low in range(0, len(index), CONTEXTS_AT_ONCE):
        own = index[low : low + CONTEXTS_AT_ONCE, None]
        near = (own + offset).clamp(0, len(seen.row) - 1)
        place, near_place = seen.place[own], seen.place[near]
        same = (seen.row[near] == seen.row[own]) & (near_place // context == place // context)
        distance = near_place - place + settings.before
        same &= (distance >= 0) & (distance < settings.length)
        value = torch.where(same, seen.value[near], 0.0)
        where = torch.where(same, distance, 0)
        # Clamping repeats entries with equal values, so a maximum changes nothing.
        contexts[low : low + len(own)].scatter_reduce_(1, where, value, "amax")
    return contexts


def _number_within(row: Tensor) -> Tensor:
    """0, 1, 2, ... within each run of equal rows."""
    new = torch.ones_like(row, dtype=torch.bool)
    new[1:] = row[1:] != row[:-1]
    at = torch.arange(len(row))
    return at - torch.where(new, at, 0).cummax(0).values
