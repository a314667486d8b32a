"""The order in which parts of shards are read: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np

from dictlearn.sources.buffer import permutation


class Part(NamedTuple):
    shard: int
    number: int  # within the shard


@final
class PartOrder:
    """The endless sequence of parts: all parts in every epoch, in an order of its own.

    An epoch permutes the shards. Each has its parts, permuted too, spread over the time that `at_once`
    shards take to read, and one begins when another ends. So as many shards are mixed at all times,
    and a part is soon followed by parts of all of these. What would come after the end of the epoch
    comes at its start: those few shards are opened twice.

    Args:
        parts: the number of parts of each shard.
        seed: the orders are pure functions of (seed, epoch).
        at_once: the number of shards whose parts are mixed.
    """

    def __init__(self, parts: Sequence[int], seed: int, at_once: int):
        if seed < 0:
            raise ValueError(f"seed={seed}: want 0 or more")
        assert sum(parts) > 0
        self.per_epoch = sum(parts)
        self._parts = np.array(parts)
        self._shards = np.flatnonzero(self._parts)
        self._seed, self._at_once = seed, min(at_once, len(self._shards))
        # Parts to look ahead: as many as a shard has, and enough to see all that are mixed.
        self._ahead = max(4 * at_once, self.per_epoch // len(self._shards))
        self._epochs: dict[int, tuple[list[int], list[int]]] = {}

    def at(self, number: int) -> Part:
        """Part `number` of the endless sequence."""
        epoch, index = divmod(number, self.per_epoch)
        shards, parts = self._epoch(epoch)
        return Part(shards[index], parts[index])

    def span(self, start: int, stop: int) -> list[Part]:
        return [self.at(number) for number in range(start, stop)]

    def soon(self, number: int) -> list[int]:
        """The shards to have open at part `number`, in the order in which they are wanted."""
        epoch, index = divmod(number, self.per_epoch)
        following = self._epoch(epoch)[0][index : index + self._ahead]
        if len(following) < self._ahead:
            following = following + self._epoch(epoch + 1)[0][: self._ahead - len(following)]
        return list(dict.fromkeys(following))

    def _epoch(self, epoch: int) -> tuple[list[int], list[int]]:
        """The shard of each part of an epoch, and the part's number there."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._permuted(epoch)
        return self._epochs[epoch]

    def _permuted(self, epoch: int) -> tuple[list[int], list[int]]:
        n = len(self._shards)
        shards = self._shards[permutation(n, self._seed, 3, epoch).numpy()]
        random = np.random.default_rng((self._seed, 4, epoch))
        times, parts = [], []
        for start, count in enumerate(self._parts[shards]):
            # In units of the time that one shard takes alone; random within a part's own share.
            spread = (np.arange(count) + random.random(count)) / count
            times.append((start + self._at_once * spread) % n)
            parts.append(permutation(int(count), self._seed, 5, epoch, start).numpy())
        order = np.argsort(np.concatenate(times), kind="stable")
        shard_M = np.repeat(shards, self._parts[shards])
        return shard_M[order].tolist(), np.concatenate(parts)[order].tolist()
