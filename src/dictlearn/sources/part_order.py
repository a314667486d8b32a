"""The order in which parts of shards are read: a pure function of the seed."""

from __future__ import annotations

from bisect import bisect_right
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

    An epoch permutes the shards, and permutes the parts of `at_once` of them at a time. So the parts
    of several shards are mixed, and each shard is opened once per epoch.

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
        self._seed, self._at_once = seed, at_once
        self._epochs: dict[int, _Epoch] = {}

    def at(self, number: int) -> Part:
        """Part `number` of the endless sequence."""
        epoch, index = divmod(number, self.per_epoch)
        order = self._epoch(epoch)
        return Part(order.shards[index], order.parts[index])

    def span(self, start: int, stop: int) -> list[Part]:
        return [self.at(number) for number in range(start, stop)]

    def soon(self, number: int) -> list[int]:
        """The shards to have open at part `number`: the group that is mixed, and some of the next.

        The fraction of the next group is the fraction of this one that was read, so that shards are
        opened at an even rate.
        """
        epoch, index = divmod(number, self.per_epoch)
        order = self._epoch(epoch)
        group = bisect_right(order.ends, index)
        start = order.ends[group - 1] if group else 0
        if group + 1 < len(order.groups):
            following = order.groups[group + 1]
        else:
            following = self._epoch(epoch + 1).groups[0]
        share = (index - start) / (order.ends[group] - start)
        return [*order.groups[group], *following[: int(share * (len(following) + 1))]]

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._permuted(epoch)
        return self._epochs[epoch]

    def _permuted(self, epoch: int) -> _Epoch:
        shards = np.flatnonzero(self._parts)
        shards = shards[permutation(len(shards), self._seed, 3, epoch).numpy()]
        groups, shard_parts, part_parts = [], [], []
        for group, start in enumerate(range(0, len(shards), self._at_once)):
            mixed = shards[start : start + self._at_once]
            counts = self._parts[mixed]
            shard_M = np.repeat(mixed, counts)
            part_M = np.concatenate([np.arange(count) for count in counts])
            order = permutation(len(shard_M), self._seed, 4, epoch, group).numpy()
            groups.append([int(shard) for shard in mixed])
            shard_parts.append(shard_M[order])
            part_parts.append(part_M[order])
        return _Epoch(
            np.concatenate(shard_parts).tolist(),
            np.concatenate(part_parts).tolist(),
            groups,
            np.cumsum([len(part) for part in shard_parts]).tolist(),
        )


class _Epoch(NamedTuple):
    shards: list[int]  # the shard of each part of the epoch
    parts: list[int]  # its number there
    groups: list[list[int]]  # the shards of each group
    ends: list[int]  # end of each group's parts
