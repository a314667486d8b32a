"""Draws contexts for prompts, in which a feature fires or is silent.

A context stays within its document, so that it holds no text of the other half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from dictlearn.explain.sample import Firings, Index, Sample

BEFORE, AFTER = 24, 8  # tokens around a context's peak
INTERVALS = 5


@dataclass(frozen=True)
class Context:
    pieces: tuple[str, ...]
    activations: tuple[float, ...]  # 0 where silent
    peak: int  # index in pieces of the token that the context was drawn for
    document: int

    @property
    def fires(self) -> bool:
        return any(value > 0 for value in self.activations)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def marked(self, indices: Sequence[int] | None = None) -> str:
        """The text with << and >> around the tokens at `indices`; None: around those that fire."""
        chosen = (
            {i for i, value in enumerate(self.activations) if value > 0}
            if indices is None
            else set(indices)
        )
        return "".join(f"<<{p}>>" if i in chosen else p for i, p in enumerate(self.pieces))


@final
class Contexts:
    """Draws contexts of one feature from documents of one half, reproducibly by the seed.

    Args:
        part: "shown" for two thirds of the "explain" half, "chosen" for the rest; None for all.
        neighbours: features like this one, nearest first; half of the near misses are theirs.
    """

    def __init__(
        self,
        sample: Sample,
        firings: Firings,
        feature: tuple[int, int],
        pieces: Sequence[str],
        half: str,
        part: str | None = None,
        seed: int = 0,
        neighbours: Sequence[tuple[int, int]] = (),
    ):
        self.sample, self.pieces = sample, pieces
        self._firings, self._neighbours = firings, neighbours
        self._random = np.random.default_rng([seed, *feature])
        tokens, values = firings.of(*feature)
        self._activation = np.zeros(sample.tokens_WP.size, np.float32)
        self._activation[sample.places_N[tokens]] = values
        used_N: NDArray[np.bool_] = sample.to_score_N == (half == "score")
        if part is not None:
            units = np.unique(sample.units_N)
            belongs = units[[part_of(int(unit)) == part for unit in units]]
            used_N = used_N & np.isin(sample.units_N, belongs)
        self._used_N, self._places = used_N, sample.places_N[used_N]

    def strongest(self, n: int) -> list[Context]:
        return self._contexts(self._ordered()[::-1], n)

    def by_interval(self, n: int) -> list[Context]:
        """About `n` contexts of firings, equally many from each fifth by strength, weakest first."""
        contexts: list[Context] = []
        for part in np.array_split(self._ordered(), INTERVALS):
            contexts += self._contexts(self._random.permutation(part), -(-n // INTERVALS))
        return contexts

    def near_misses(self, n: int) -> list[Context]:
        """Up to `n` silent contexts that are easily confused with firings.

        Up to half of them show firings of neighbours, one each; the others have tokens on which the
        feature fires elsewhere.
        """
        contexts: list[Context] = []
        for neighbour in self._neighbours:
            if len(contexts) == n // 2:
                break
            tokens, _ = self._firings.of(*neighbour)
            places = self.sample.places_N[tokens[self._used_N[tokens]]]
            contexts += [c for c in self._silent(places, 1) if c not in contexts]
        ids = self.sample.tokens_WP.ravel()
        fired = np.unique(ids[self._ordered()])
        alike = self._places[np.isin(ids[self._places], fired)]
        return contexts + self._silent(alike, n - len(contexts))

    def silent(self, n: int) -> list[Context]:
        """Up to `n` random contexts in which the feature never fires."""
        return self._silent(self._places, n)

    def silent_indices(self, context: Context, n: int) -> list[int]:
        """Random indices of up to `n` silent tokens of a context."""
        silent = [i for i, value in enumerate(context.activations) if value == 0]
        return self._random.permutation(silent)[:n].tolist()

    def shuffled(self, n: int) -> list[int]:
        return self._random.permutation(n).tolist()

    def _ordered(self) -> Index:
        fired = self._places[self._activation[self._places] > 0]
        return fired[np.argsort(self._activation[fired], kind="stable")]

    def _silent(self, places: Index, n: int) -> list[Context]:
        contexts: list[Context] = []
        for place in self._random.permutation(places)[: 20 * n]:
            context = self._context(int(place))
            if not context.fires:
                contexts.append(context)
            if len(contexts) == n:
                break
        return contexts

    def _contexts(self, places: Index | NDArray[np.int64], n: int) -> list[Context]:
        """Contexts of the first `n` places whose contexts don't overlap."""
        taken: list[int] = []
        for place in places.tolist():
            if all(abs(place - other) > AFTER for other in taken):
                taken.append(place)
            if len(taken) == n:
                break
        return [self._context(place) for place in taken]

    def _context(self, place: int) -> Context:
        n_positions = self.sample.tokens_WP.shape[1]
        window, position = divmod(place, n_positions)
        documents = self.sample.documents_WP[window]
        first, last = max(0, position - BEFORE), min(n_positions, position + AFTER + 1)
        inside = np.flatnonzero(documents[first:last] == documents[position]) + first
        begin, end = int(inside[0]), int(inside[-1]) + 1
        row = window * n_positions
        return Context(
            tuple(self.pieces[int(i)] for i in self.sample.tokens_WP[window, begin:end]),
            tuple(self._activation[row + begin : row + end].tolist()),
            position - begin,
            int(documents[position]),
        )


def part_of(document: int) -> str:
    """A document's part of the "explain" half: "shown", or "chosen" for choosing among answers."""
    digest = hashlib.sha256(f"part of document {document}".encode()).digest()
    return "chosen" if digest[0] % 3 == 0 else "shown"
