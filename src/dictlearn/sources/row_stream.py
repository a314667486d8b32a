"""An endless stream of shuffled batches from rows that lie in shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from dictlearn.sources.buffer import Read, ShuffleBuffer
from dictlearn.sources.part_order import Part, PartOrder
from dictlearn.sources.reader import check_state
from dictlearn.sources.run_reader import AHEAD, Run, RunReader
from dictlearn.types import Batch

LEAST_RUN = 64  # rows; shorter runs would take longer to find than to copy


class RowShard(Protocol):
    """The part of `activations.protocol.Shard` that is read here."""

    @property
    def tokens_N(self) -> Tensor: ...
    @property
    def positions_N(self) -> Tensor: ...
    @property
    def kept_N(self) -> Tensor | None: ...
    def rows(self, site: str, low: int, high: int) -> Tensor: ...


class Rows(NamedTuple):
    """Where rows come from: `shard(number, soon)` opens one, or gives None for one to leave out.

    `soon` are the numbers of those that are wanted next.
    """

    shard: Callable[[int, Sequence[int]], RowShard | None]
    shard_rows: tuple[int, ...]
    shuffled: bool  # whether the rows of a shard are in random order
    width: int
    dtype: torch.dtype


@final
class RowStream:
    """Batches of rows, in an order that is a pure function of (seed, epoch) and the shards' sizes.

    Runs of rows are read from `open_shards` shards at a time. Shuffled rows go into batches as they
    are; rows in reading order go through a shuffle buffer of `buffer_rows`.
    """

    def __init__(
        self,
        rows: Rows,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        *,
        batch_rows: int,
        seed: int,
        open_shards: int,
        buffer_rows: int,
        out_dtype: torch.dtype | None,
        device: torch.device,
    ):
        self._source, self._device, self._dtype = rows, device, out_dtype
        self._groups = [sources] if sources == targets else [sources, targets]
        self._batch_rows, self._seed, self._at_once = batch_rows, seed, open_shards
        self._rank, self._ranks = 0, 1
        self._n_shards = len(rows.shard_rows)
        self._run_rows = max(LEAST_RUN, batch_rows // open_shards)
        self._rows_at_once = max(2 * self._run_rows, buffer_rows)
        self._begin()

    def _begin(self) -> None:
        """Starts the stream over the first `_n_shards` shards."""
        rows = self._source.shard_rows[: self._n_shards]
        self._order = PartOrder([-(-n // self._run_rows) for n in rows], self._seed, self._at_once)
        self._stream = {
            "seed": self._seed,
            "source.shards": self._n_shards,
            "source.rows": sum(rows),
            "source.open_shards": self._at_once,
            "source.run_rows": self._run_rows,
        }
        if self._source.shuffled:
            self._rows: RunReader | ShuffleBuffer = RunReader(
                self._run, device=self._device, out_dtype=self._dtype
            )
            return
        chunk = self._rows_at_once // 2 // self._run_rows
        self._stream["source.parts_per_refill"] = chunk
        self._rows = ShuffleBuffer(
            self._read,
            reads_per_chunk=chunk,
            rows_per_read=self._run_rows,
            seed=self._seed,
            device=self._device,
            out_dtype=self._dtype,
            gaps=True,  # for shards that are left out
        )

    @property
    def buffer_bytes(self) -> int:
        """The memory of rows that wait: in the shuffle buffer, or in batches made ahead."""
        numbers = sum(map(len, self._groups)) * self._source.width
        if isinstance(self._rows, ShuffleBuffer):
            rows, dtype = self._rows.capacity, self._source.dtype
        else:
            rows, dtype = AHEAD * self._batch_rows, self._dtype or self._source.dtype
        return rows * (numbers * dtype.itemsize + 2 * torch.int64.itemsize)

    def shard(self, rank: int, ranks: int) -> None:
        """Every rank takes each `ranks`-th run of rows."""
        if (rank, ranks) != (self._rank, self._ranks):
            self._rank, self._ranks = rank, ranks
            self._rows.restore(*self._rows.position)  # its rows belong to another rank

    def next_batch(self) -> Batch:
        return self._batch(self._batch_rows, from_start=False)

    def sample(self, n: int) -> Batch:
        return self._batch(n, from_start=True)

    def state(self) -> dict[str, int]:
        first, taken = self._rows.position
        return {"first": first, "taken": taken, **self._stream}

    def restore(self, state: dict[str, int]) -> None:
        """Continues a stream; if there are more shards by now, only its former ones are read."""
        if 0 < state["source.shards"] < len(self._source.shard_rows):
            self._n_shards = state["source.shards"]
            self._begin()
        check_state(self._stream, state)
        self._rows.restore(state["first"], state["taken"])

    def _batch(self, n: int, from_start: bool) -> Batch:
        rows = self._rows.peek(n) if from_start else self._rows.take(n)
        x_NSD, *targets = rows.groups
        return Batch(x_NSD, targets[0] if targets else None, rows.tokens_N, rows.positions_N)

    def _run(self, number: int) -> Run:
        """Run `number` of this rank."""
        index = number * self._ranks + self._rank
        part = self._order.at(index)
        shard = self._source.shard(part.shard, self._order.soon(index))
        low, high = self._span(part)
        if shard is None:
            no_ids = torch.empty(0, dtype=torch.int64)
            empty = torch.empty(0, self._source.width, dtype=self._source.dtype)
            return Run([[empty for _ in sites] for sites in self._groups], no_ids, no_ids)
        rows = [[shard.rows(site, low, high) for site in sites] for sites in self._groups]
        tokens_N, positions_N = shard.tokens_N[low:high], shard.positions_N[low:high]
        if shard.kept_N is None:
            return Run(rows, tokens_N, positions_N)
        kept_N = shard.kept_N[low:high]
        return Run(
            [[x[kept_N] for x in sites] for sites in rows], tokens_N[kept_N], positions_N[kept_N]
        )

    def _read(self, number: int) -> Read:
        run = self._run(number)
        return Read(
            [[site.to(self._device) for site in sites] for sites in run.groups],
            torch.arange(len(run.tokens_N), device=self._device),
            run.tokens_N.long().to(self._device),
            run.positions_N.long().to(self._device),
        )

    def _span(self, part: Part) -> tuple[int, int]:
        low = part.number * self._run_rows
        return low, min(low + self._run_rows, self._source.shard_rows[part.shard])
