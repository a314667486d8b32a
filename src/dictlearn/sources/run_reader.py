"""Make batches of runs of rows, from shards whose rows were shuffled when they were written.

A run is copied from the mapped file into the batch, which is as fast as reading the file in order;
picking single rows is several times slower. A batch consists of runs of several shards, and each run
is a random sample of its shard's rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, final

import torch
from torch import Tensor

from dictlearn.sources.buffer import Rows

AHEAD = 2  # batches that a thread makes in advance


class Run(NamedTuple):
    """Consecutive rows of a shard, in read-only tensors."""

    groups: Sequence[Sequence[Tensor]]  # the sites of each group, [M, D]
    tokens_N: Tensor  # integers [M]
    positions_N: Tensor


class Position(NamedTuple):
    run: int
    taken: int  # rows taken of it


@final
class RunReader:
    """The rows of `read(0), read(1), ...`, each run from its first row to its last.

    Args:
        read: a pure function of a run's number. One thread at a time calls it.
        device: the device of batches, which are made on the CPU.
        out_dtype: the dtype of batches; None takes the first run's.
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
        """(run, rows already taken of it), which is the whole state."""
        return self._position

    def restore(self, run: int, taken: int) -> None:
        self._position = Position(run, taken)
        self._coming.clear()

    def take(self, n: int) -> Rows:
        """The next n rows. If a read raises, the position stays where it was."""
        if not self._coming or self._coming[0][:2] != (self._position, n):
            self._coming.clear()
            start = self._position
            self._coming.append((start, n, self._thread.submit(self._batch, start, n)))
        try:
            rows, self._position = self._coming[0][2].result()
        except BaseException:
            self._coming.clear()
            raise
        self._coming.popleft()
        self._read_ahead(n)
        return self._send(rows)

    def peek(self, n: int) -> Rows:
        """n rows from the start of the stream; the position stays where it is."""
        return self._send(self._thread.submit(self._batch, Position(0, 0), n).result()[0])

    def _read_ahead(self, n: int) -> None:
        """Starts to make the next batches; each begins where the one before it ends."""
        while len(self._coming) < AHEAD:
            if not self._coming:
                start = self._position
            else:
                before = self._coming[-1][2]
                if not before.done() or before.exception() is not None:
                    return
                start = before.result()[1]
            self._coming.append((start, n, self._thread.submit(self._batch, start, n)))

    def _batch(self, start: Position, n: int) -> tuple[Rows, Position]:
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
        source, target = slice(start, start + count), slice(at, at + count)
        for group, sites in zip(out.groups, run.groups, strict=True):
            for s, site in enumerate(sites):
                group[target, s] = site[source]
        out.tokens_N[target] = run.tokens_N[source]
        out.positions_N[target] = run.positions_N[source]

    def _send(self, rows: Rows) -> Rows:
        """The rows on the device, converted to `out_dtype`; a GPU converts after the transfer."""
        if self._device.type == "cpu":
            return rows
        groups = [t.to(self._device, non_blocking=True) for t in rows.groups]
        groups = [t if self._out_dtype is None else t.to(self._out_dtype) for t in groups]
        tokens, positions = (t.to(self._device, non_blocking=True) for t in rows[1:])
        return Rows(groups, tokens, positions)
