"""Features whose decoder vectors point the same way; never the whole table of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.transforms import TransformDecoder

NOTHING = -1  # where a feature has fewer neighbours than were asked for
COLUMNS = 1 << 12  # compared with a block at a time


@final
class Neighbours:
    """Cosines of all that features write: of their vectors to all targets put end to end, with zeros
    where a feature doesn't reach; of transforms those of their maps, by the Frobenius inner product.
    """

    def __init__(self, dictionary: Dictionary, reaches: Sequence[Sequence[int]]):
        self.decoder, self.reaches = dictionary.decoder, reaches
        self.n_sources, self.n_features = dictionary.code_sources, dictionary.n_features
        self.norms_SF = torch.stack([self._norms(s) for s in range(self.n_sources)])

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
        cosine_nC = self._dots(a, b) / scale_nC.clamp_min(1e-30)
        return cosine_nC.masked_fill_(scale_nC == 0, -2.0).cpu()

    def _dots(self, a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
        if isinstance(self.decoder, TransformDecoder):
            return _of_maps(self.decoder.stacked(a[1]), self.decoder.stacked(b[1]))
        shape = [len(range(self.n_features)[rows]) for _, rows in (a, b)]
        dots_nC = self.decoder.b_dec.new_zeros(shape)
        for t in set(self.reaches[a[0]]) & set(self.reaches[b[0]]):
            dots_nC += self.decoder.written(t, *a) @ self.decoder.written(t, *b).T
        return dots_nC

    def _norms(self, source: int) -> Tensor:
        if isinstance(self.decoder, TransformDecoder):
            return self.decoder.norms()[source]
        square_F = self.decoder.b_dec.new_zeros(self.n_features)
        for t in self.reaches[source]:
            square_F += self.decoder.written(t, source, slice(0, self.n_features)).square().sum(1)
        return square_F.sqrt()


def _of_maps(a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """<U_a^T V_a, U_b^T V_b> for all pairs: the sum of (U_a U_b^T) o (V_a V_b^T), block by block."""
    (U_a, V_a, owner_a), (U_b, V_b, owner_b) = a, b
    products = (U_a @ U_b.T) * (V_a @ V_b.T)
    n, c = int(owner_a[-1]) + 1, int(owner_b[-1]) + 1
    by_row = products.new_zeros(n, len(owner_b)).index_add_(
        0, owner_a.to(products.device), products
    )
    return products.new_zeros(n, c).index_add_(1, owner_b.to(products.device), by_row)
