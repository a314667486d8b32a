"""Find features with similar decoder vectors, without a table of all pairs."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.types import DictionaryLike

NOTHING = -1  # the column of a missing neighbour
COLUMNS = 1 << 12  # features per block of comparisons


@final
class Neighbours:
    """Finds the features with the largest cosine similarity of what they write.

    Their vectors for all targets are concatenated, with zeros for targets that they don't write to.
    For transforms, the cosine uses the Frobenius inner product of the maps.
    """

    def __init__(self, dictionary: DictionaryLike):
        self.decoder = dictionary.decoder
        self.n_sources, self.n_features = dictionary.code_sources, dictionary.n_features
        self.norms_SF = torch.stack([self.decoder.lengths(s) for s in range(self.n_sources)])

    def nearest(self, source: int, rows: slice, k: int) -> tuple[Tensor, Tensor]:
        """(columns int64 [n, k], cosines float32 [n, k]) of the nearest other features of all sources.

        `rows` may have a step. A feature of norm 0 has no neighbours and is none.
        """
        own = torch.arange(self.n_features)[rows] + source * self.n_features
        best, column = torch.full((len(own), k), -2.0), torch.full((len(own), k), NOTHING)
        for other in range(self.n_sources):
            for low in range(0, self.n_features, COLUMNS):
                block = slice(low, min(low + COLUMNS, self.n_features))
                columns = torch.arange(block.start, block.stop) + other * self.n_features
                cosine_nC = self._cosines((source, rows), (other, block))
                cosine_nC[own[:, None] == columns] = -2.0
                nearest, index = cosine_nC.topk(min(k, len(columns)), dim=1)
                best, order = torch.cat([best, nearest], 1).topk(k, dim=1)
                column = torch.cat([column, columns[index]], 1).gather(1, order)
        exists = best > -2.0
        return torch.where(exists, column, NOTHING), torch.where(exists, best, 0.0)

    def _cosines(self, a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
        """Cosines [n, C] on the CPU; -2 for features of norm 0."""
        scale_nC = self.norms_SF[a][:, None] * self.norms_SF[b]
        cosine_nC = self.decoder.inner(a, b) / scale_nC.clamp_min(1e-30)
        return cosine_nC.masked_fill_(scale_nC == 0, -2.0).cpu()
