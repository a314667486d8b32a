"""Streams of a run that goes on with another number of processes: no row is lost, none comes twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from dictlearn.sources.protocol import Source
from dictlearn.types import Batch

State = dict[str, int]


@final
class DealtStreams:
    """The streams of V processes, read by W others.

    All batches have one order: batch n is the next of stream n % V. Process r of W takes the batches
    first + r, first + r + W, ... A stream that several processes share is read by each of them, which
    leaves out the others' batches; that costs the time to make them. If W divides V, none is left out.

    Args:
        make: builds a source; each stream that this process reads gets one.
        states: of the V streams, at their next batches.
        first: the number of the next batch; from 0 to V - 1, as only the turn of the streams counts.
    """

    def __init__(
        self,
        make: Callable[[], Source],
        states: Sequence[State],
        first: int,
        rank: int,
        ranks: int,
    ):
        self._make, self._states = make, list(states)
        self._rank, self._ranks = rank, ranks
        self._number = first + rank  # of this process's next batch
        self._sources: dict[int, Source] = {}
        self._at = [first + (stream - first) % len(states) for stream in range(len(states))]

    def next_batch(self) -> Batch:
        stream = self._number % len(self._states)
        self._skip_to(stream, self._number)
        batch = self._sources[stream].next_batch()
        self._at[stream] += len(self._states)
        self._number += self._ranks
        return batch

    def own_states(self) -> list[State | None]:
        """The streams' states after the batches that all processes have read, None for those unread here.

        All processes must have read equally many.
        """
        end = self._number - self._rank
        for stream in self._sources:
            self._skip_to(stream, end)
        opened = self._sources
        return [opened[s].state() if s in opened else None for s in range(len(self._states))]

    def joined(self, of_all: Sequence[Sequence[State | None]]) -> tuple[list[State], int]:
        """(states, first) from the `own_states` of all processes."""
        states = [
            next((state for state in found if state is not None), before)
            for before, *found in zip(self._states, *of_all, strict=True)
        ]
        return states, (self._number - self._rank) % len(states)

    def _skip_to(self, stream: int, number: int) -> None:
        """Leaves out a stream's batches before `number`, which other processes have read."""
        if stream not in self._sources:
            source = self._sources[stream] = self._make()
            source.shard(stream, len(self._states))
            source.restore(self._states[stream])
        while self._at[stream] < number:
            self._sources[stream].next_batch()
            self._at[stream] += len(self._states)
