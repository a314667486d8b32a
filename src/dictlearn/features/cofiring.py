"""Features that fire on the same tokens.

The measure is the Jaccard index: the number of sampled tokens on which both features fire, over the
number on which either does. At most FIRINGS evenly spread firings of a feature are used: |A and B| is
estimated from them in proportion, and is exact for features without more firings. Pairs with fewer
than TOGETHER common firings are left out: two features that fire once, on the same token, have the
highest index by chance.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.features.sample import Sampled
from dictlearn.store.writer import NOTHING, Sample

FIRINGS, TOGETHER = 256, 3
PAIRS_AT_ONCE = 1 << 22


@final
class Cofiring:
    """Built once from the sample; `of` gives the results for a block of features.

    It holds the sample twice, by feature and by token, and PAIRS_AT_ONCE pairs.
    """

    def __init__(self, sampled: Sampled, n_columns: int):
        keys, order = sampled.keys.sort()
        self.column, self.place = keys // sampled.places, keys % sampled.places
        counts = torch.bincount(self.column, minlength=n_columns)
        self.starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        self.sample = Sample(self.starts, self.place, sampled.values[order], sampled.rows())
        by_place = self.place.argsort(stable=True)
        self.tokens, lengths = self.place[by_place].unique_consecutive(return_counts=True)
        self.token_starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        self.by_token = self.column[by_place]
        self.n_columns = n_columns

    def of(self, first: int, n: int, k: int) -> tuple[Tensor, Tensor]:
        """(columns int64 [n, k], measures float32 [n, k]) of columns first to first + n - 1."""
        columns, measures = torch.full((n, k), NOTHING), torch.zeros(n, k)
        row, token = self._spread(first, n)
        length = self.token_starts.diff()[token]
        low = 0
        ends = length.cumsum(0)
        while low < len(row) and k > 0:  # whole features, about PAIRS_AT_ONCE pairs
            limit = (int(ends[low - 1]) if low else 0) + PAIRS_AT_ONCE
            high = max(int(torch.searchsorted(ends, limit)), low + 1)
            high = int(torch.searchsorted(row, row[high - 1], right=True))
            self._count(row[low:high], token[low:high], first, columns, measures)
            low = high
        return columns, measures

    def _spread(self, first: int, n: int) -> tuple[Tensor, Tensor]:
        """(feature within the block, index of token) for at most FIRINGS firings of each feature."""
        low, high = self.starts[first : first + n], self.starts[first + 1 : first + n + 1]
        taken = (high - low).clamp_max(FIRINGS)
        row = torch.repeat_interleave(torch.arange(n), taken)
        within = torch.arange(len(row)) - (taken.cumsum(0) - taken)[row]
        entry = low[row] + within * (high - low)[row] // taken[row]
        return row, torch.searchsorted(self.tokens, self.place[entry])

    def _count(
        self, row: Tensor, token: Tensor, first: int, columns: Tensor, measures: Tensor
    ) -> None:
        """Writes the k strongest partners of the features in `row` into columns and measures."""
        length = self.token_starts.diff()[token]
        entry = torch.repeat_interleave(torch.arange(len(row)), length)
        within = torch.arange(len(entry)) - (length.cumsum(0) - length)[entry]
        other = self.by_token[self.token_starts[token[entry]] + within]
        pair, together = (row[entry] * self.n_columns + other).unique(return_counts=True)
        row, other = pair // self.n_columns, pair % self.n_columns
        often = (together >= TOGETHER) & (other != row + first)
        row, other, together = row[often], other[often], together[often]
        fired = self.starts.diff()
        own, theirs = fired[row + first].double(), fired[other].double()
        both = (together * own / own.clamp_max(FIRINGS)).minimum(theirs)
        measure = both / (own + theirs - both)
        order = measure.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        row, other, measure = row[order], other[order], measure[order]
        rank = torch.arange(len(row)) - torch.searchsorted(row, row)
        kept = rank < columns.shape[1]
        columns[row[kept], rank[kept]] = other[kept]
        measures[row[kept], rank[kept]] = measure[kept].float()
