"""Stretches of text in which a feature fires or is silent, drawn for prompts.

A context never leaves its document, so that none of the other half's text is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from dictlearn.explain.sample import Firings, Index, Sample

BEFORE, AFTER = 24, 8  # tokens around the one that a context was picked for
INTERVALS = 5


@dataclass(frozen=True)
class Context:
    pieces: tuple[str, ...]
    activations: tuple[float, ...]  # 0 where silent
    peak: int  # index in pieces of the token it was picked for
    document: int

    @property
    def fires(self) -> bool:
        return any(value > 0 for value in self.activations)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def marked(self, places: Sequence[int] | None = None) -> str:
        """The text with tokens between << and >>: those that fire, or these."""
        chosen = (
            {i for i, value in enumerate(self.activations) if value > 0}
            if places is None
            else set(places)
        )
        return "".join(f"<<{p}>>" if i in chosen else p for i, p in enumerate(self.pieces))


@final
class Contexts:
    """Draws contexts of one feature from documents of one half. The same seed draws the same.

    Args:
        part: of the "explain" half, "shown" or "chosen" for its two thirds and its third; None all.
        neighbours: features often taken for this one, nearest first: near misses come from them too.
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
        wanted: NDArray[np.bool_] = sample.to_score_N == (half == "score")
        if part is not None:
            units = np.unique(sample.units_N)
            belongs = units[[part_of(int(unit)) == part for unit in units]]
            wanted = wanted & np.isin(sample.units_N, belongs)
        self._wanted_N, self._places = wanted, sample.places_N[wanted]

    def strongest(self, n: int) -> list[Context]:
        return self._contexts(self._ordered()[::-1], n)

    def by_interval(self, n: int) -> list[Context]:
        """About `n` where it fires, as many from each fifth of its firings by strength, weakest
        first."""
        found: list[Context] = []
        for part in np.array_split(self._ordered(), INTERVALS):
            found += self._contexts(self._random.permutation(part), -(-n // INTERVALS))
        return found

    def near_misses(self, n: int) -> list[Context]:
        """Silent contexts, fewer where there are fewer: up to half of them of firings of its
        neighbours, one each, the others of tokens that it fires on elsewhere."""
        found: list[Context] = []
        for neighbour in self._neighbours:
            if len(found) == n // 2:
                break
            tokens, _ = self._firings.of(*neighbour)
            places = self.sample.places_N[tokens[self._wanted_N[tokens]]]
            found += [c for c in self._silent(places, 1) if c not in found]
        ids = self.sample.tokens_WP.ravel()
        fired = np.unique(ids[self._ordered()])
        alike = self._places[np.isin(ids[self._places], fired)]
        return found + self._silent(alike, n - len(found))

    def silent(self, n: int) -> list[Context]:
        """Any contexts in which it never fires."""
        return self._silent(self._places, n)

    def some_places(self, context: Context, n: int) -> list[int]:
        """`n` of its silent tokens, or as many as it has."""
        silent = [i for i, value in enumerate(context.activations) if value == 0]
        return self._random.permutation(silent)[:n].tolist()

    def shuffled(self, n: int) -> list[int]:
        return self._random.permutation(n).tolist()

    def _ordered(self) -> Index:
        fired = self._places[self._activation[self._places] > 0]
        return fired[np.argsort(self._activation[fired], kind="stable")]

    def _silent(self, places: Index, n: int) -> list[Context]:
        found: list[Context] = []
        for place in self._random.permutation(places)[: 20 * n]:
            context = self._context(int(place))
            if not context.fires:
                found.append(context)
            if len(found) == n:
                break
        return found

    def _contexts(self, places: Index | NDArray[np.int64], n: int) -> list[Context]:
        """Of the first `n` places whose contexts don't overlap."""
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
    """Of a document to explain from: "shown" to the explainer, or kept to choose among answers."""
    digest = hashlib.sha256(f"part of document {document}".encode()).digest()
    return "chosen" if digest[0] % 3 == 0 else "shown"
