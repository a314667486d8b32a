"""Rows of shards that were shuffled when they were written, passed on in runs: nothing is gathered.

A run of rows is copied from the mapped file into the batch, which is as fast as reading the file in
order; picking rows one by one is several times slower. A batch is some runs of shards that are open
together, each run a sample of its shard's text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, final

import torch
from torch import Tensor

from dictlearn.sources.buffer import Rows

AHEAD = 2  # batches that a thread makes before they are taken


class Run(NamedTuple):
    """Rows that lie next to each other, in tensors that nobody writes into."""

    groups: Sequence[Sequence[Tensor]]  # sites that stay together, each [M, D]
    tokens_N: Tensor  # integers [M]
    positions_N: Tensor


class Position(NamedTuple):
    run: int
    taken: int  # rows of it


@final
class Passing:
    """The rows of `read(0), read(1), ...`, each run from its first row to its last.

    Args:
        read: a pure function of a run's number. One thread at a time calls it.
        device: of what is delivered; it is put together on the CPU.
        out_dtype: of the rows delivered; None takes that of the first run.
    """

    def __init__(
        self,
        read: Callable[[int], Run],
        *,
        device: torch.device,
        out_dtype: torch.dtype | None,
    ):
        self._read, self._device, self._out_dtype = read, device, out_dtype
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming: deque[tuple[Position, int, Future[tuple[Rows, Position]]]] = deque()
        self._position = Position(0, 0)

    @property
    def position(self) -> tuple[int, int]:
        """(run, rows of it already taken): the whole state."""
        return self._position

    def restore(self, run: int, taken: int) -> None:
        self._position = Position(run, taken)
        self._coming.clear()

    def take(self, n: int) -> Rows:
        """The next n rows. If a read raises, the position stays where it was."""
        if not self._coming or self._coming[0][:2] != (self._position, n):
            self._coming.clear()
            start = self._position
            self._coming.append((start, n, self._thread.submit(self._made, start, n)))
        try:
            rows, self._position = self._coming[0][2].result()
        except BaseException:
            self._coming.clear()
            raise
        self._coming.popleft()
        self._go_on(n)
        return self._sent(rows)

    def peek(self, n: int) -> Rows:
        """n rows of the stream's beginning; the position stays where it is."""
        return self._sent(self._thread.submit(self._made, Position(0, 0), n).result()[0])

    def _go_on(self, n: int) -> None:
        """Has the next batches made, each from where the one before it ends."""
        while len(self._coming) < AHEAD:
            if not self._coming:
                start = self._position
            else:
                before = self._coming[-1][2]
                if not before.done() or before.exception() is not None:
                    return
                start = before.result()[1]
            self._coming.append((start, n, self._thread.submit(self._made, start, n)))

    def _made(self, start: Position, n: int) -> tuple[Rows, Position]:
        out: Rows | None = None
        (number, taken), filled = start, 0
        while filled < n:
            run = self._read(number)
            length = len(run.tokens_N)
            if out is None:
                out = self._empty(run, n)
            count = min(n - filled, length - taken)
            self._copy(run, taken, count, out, filled)
            filled, taken = filled + count, taken + count
            if taken >= length and filled < n:
                number, taken = number + 1, 0
        assert out is not None
        return out, Position(number, taken)

    def _empty(self, run: Run, n: int) -> Rows:
        pin = self._device.type == "cuda"

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, pin_memory=pin)

        groups = []
        for sites in run.groups:
            dtype = sites[0].dtype if pin else self._out_dtype or sites[0].dtype
            groups.append(empty(n, len(sites), sites[0].shape[1], dtype=dtype))
        return Rows(groups, empty(n, dtype=torch.int64), empty(n, dtype=torch.int64))

    def _copy(self, run: Run, start: int, count: int, out: Rows, at: int) -> None:
        here, there = slice(start, start + count), slice(at, at + count)
        for whole, sites in zip(out.groups, run.groups, strict=True):
            for s, site in enumerate(sites):
                whole[there, s] = site[here]
        out.tokens_N[there] = run.tokens_N[here]
        out.positions_N[there] = run.positions_N[here]

    def _sent(self, rows: Rows) -> Rows:
        """On the device, in the dtype asked for: a GPU widens the numbers after they are sent."""
        if self._device.type == "cpu":
            return rows
        sent = [t.to(self._device, non_blocking=True) for t in rows.groups]
        groups = [t if self._out_dtype is None else t.to(self._out_dtype) for t in sent]
        tokens, positions = (t.to(self._device, non_blocking=True) for t in rows[1:])
        return Rows(groups, tokens, positions)
