"""Features whose decoder vectors point the same way; never the whole table of pairs."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.types import DictionaryLike

NOTHING = -1  # where a feature has fewer neighbours than were asked for
COLUMNS = 1 << 12  # compared with a block at a time


@final
class Neighbours:
    """Cosines of all that features write: of their vectors to all targets put end to end, with zeros
    where a feature doesn't reach; of transforms those of their maps, by the Frobenius inner product.
    """

    def __init__(self, dictionary: DictionaryLike):
        self.decoder = dictionary.decoder
        self.n_sources, self.n_features = dictionary.code_sources, dictionary.n_features
        self.norms_SF = torch.stack([self.decoder.lengths(s) for s in range(self.n_sources)])

    def nearest(self, source: int, rows: slice, k: int) -> tuple[Tensor, Tensor]:
        """(columns int64 [n, k], cosines float32 [n, k]) of the nearest others, of all sources.

        `rows` may have a step. A feature that writes nothing, by `norms_SF`, has no neighbours and is
        nobody's.
        """
        own = torch.arange(self.n_features)[rows] + source * self.n_features
        most, column = torch.full((len(own), k), -2.0), torch.full((len(own), k), NOTHING)
        for other in range(self.n_sources):
            for low in range(0, self.n_features, COLUMNS):
                there = slice(low, min(low + COLUMNS, self.n_features))
                columns = torch.arange(there.start, there.stop) + other * self.n_features
                cosine_nC = self._cosines((source, rows), (other, there))
                cosine_nC[own[:, None] == columns] = -2.0
                nearest, place = cosine_nC.topk(min(k, len(columns)), dim=1)
                most, order = torch.cat([most, nearest], 1).topk(k, dim=1)
                column = torch.cat([column, columns[place]], 1).gather(1, order)
        found = most > -2.0
        return torch.where(found, column, NOTHING), torch.where(found, most, 0.0)

    def _cosines(self, a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
        """[n, C], on the CPU; -2 where there is none."""
        scale_nC = self.norms_SF[a][:, None] * self.norms_SF[b]
        cosine_nC = self.decoder.inner(a, b) / scale_nC.clamp_min(1e-30)
        return cosine_nC.masked_fill_(scale_nC == 0, -2.0).cpu()
