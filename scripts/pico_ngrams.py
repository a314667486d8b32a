"""The baselines of pico's model card: interpolated modified Kneser-Ney n-grams.

Chen and Goodman 1998, equation 4.30: properly normalised, and the strongest of the classical
smoothings, so that beating it means something. A context is packed into one int64.
"""

from __future__ import annotations

import numpy as np


def _packed(rows: np.ndarray, order: int, vocabulary: int) -> np.ndarray:
    """The `order` tokens that end at each position as one number; positions before that miss some.

    rows is [B, P] or [P]; the result drops the first order - 1 positions.
    """
    length = rows.shape[-1] - order + 1
    packed = np.zeros((*rows.shape[:-1], length), dtype=np.int64)
    for offset in range(order):
        packed = packed * vocabulary + rows[..., offset : offset + length]
    return packed


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values at the sorted keys that are wanted, 0 where absent."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


class _Level:
    """One order: discounted counts of n-grams, and what the discounts leave to the order below."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray, vocabulary: int):
        self.vocabulary, self.grams = vocabulary, grams
        n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
        y = n1 / max(1, n1 + 2 * n2)
        by_count = [1 - 2 * y * n2 / max(1, n1), 2 - 3 * y * n3 / max(1, n2)]
        by_count.append(3 - 4 * y * n4 / max(1, n3))
        # Above zero, so that what was never seen keeps some probability.
        discounts = np.clip(by_count, 0.1, [1.0, 2.0, 3.0])[np.minimum(counts, 3) - 1]
        self.discounted = counts - discounts
        self.contexts, inverse = np.unique(grams // vocabulary, return_inverse=True)
        self.totals = np.bincount(inverse, counts)
        self.left_over = np.bincount(inverse, discounts)

    def interpolate(self, grams: np.ndarray, below: np.ndarray) -> np.ndarray:
        contexts = grams // self.vocabulary
        totals = _look_up(self.contexts, self.totals, contexts)
        left_over = _look_up(self.contexts, self.left_over, contexts)
        mass = _look_up(self.grams, self.discounted, grams) + left_over * below
        return np.where(totals > 0, mass / np.maximum(totals, 1), below)


class KneserNey:
    """An n-gram model of the given order, which backs off as far as the uniform distribution."""

    def __init__(self, stream: np.ndarray, order: int, vocabulary: int):
        self.order, self.vocabulary = order, vocabulary
        self.levels: list[_Level] = []
        stream = stream.astype(np.int64)
        grams, counts = np.unique(_packed(stream, order, vocabulary), return_counts=True)
        for level in range(order, 0, -1):
            self.levels.append(_Level(grams, counts, vocabulary))
            # Below the highest order an n-gram counts once for each different token before it.
            if level > 1:
                grams, counts = np.unique(grams % vocabulary ** (level - 1), return_counts=True)
        self.levels.reverse()

    def log_probabilities(self, rows: np.ndarray) -> np.ndarray:
        """log p of each token given those before it in its row: [B, P] in, float64 [B, P] out.

        Early positions use the shorter contexts that they have.
        """
        rows = rows.astype(np.int64)
        probabilities = np.full(rows.shape, 1 / self.vocabulary)
        for order, level in enumerate(self.levels, start=1):
            grams = _packed(rows, order, self.vocabulary)
            reached = probabilities[..., order - 1 :]
            probabilities[..., order - 1 :] = level.interpolate(grams, reached)
        return np.log(probabilities)
