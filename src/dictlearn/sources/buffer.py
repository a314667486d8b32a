"""A token-level shuffle buffer whose whole state is two integers.

The stream is divided into rounds. Round c reads chunk c, a fixed number of reads, and splits its rows
into parts of 1/2, 1/4, 1/8 and 1/8 that wait 0, 1, 2 and 3 rounds. Then it emits

    part 0 of chunk c,  part 1 of chunk c-1,  part 2 of chunk c-2,  part 3 of chunk c-3,

shuffled together. The usual buffer refills when it is half empty, so a row stays for another round
with probability 1/2; here no row stays longer than four rounds. This makes the buffer resumable:
round c is a pure function of (seed, c) and of four chunks, which are read again on resume instead of
being saved. Every row is emitted exactly once.

With `ahead` the reads of chunk c+1 are spread over the batches of round c. On a GPU they run on a
stream of their own, so the language model runs during the dictionary's steps. The rows and their
order are the same; memory for one more read lets a read start before its rows are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

LONGEST_WAIT = 3  # rounds


class Read(NamedTuple):
    """The tensors of one read, and which of their rows to keep (no special tokens, no pads)."""

    groups: Sequence[Sequence[Tensor]]  # the sites of each group, [M, D]
    keep_N: Tensor  # int64 row numbers below M, ascending, on the buffer's device
    tokens_N: Tensor  # int64
    positions_N: Tensor  # int64
    check: Callable[[], None] | None = (
        None  # raises for bad rows; called late, as it waits for a GPU
    )


class Rows(NamedTuple):
    """Rows that the buffer emitted, in order."""

    groups: list[Tensor]  # [N, sites of the group, D] each
    tokens_N: Tensor  # int64
    positions_N: Tensor  # int64


def permutation(n: int, seed: int, *key: int) -> Tensor:
    """A permutation of 0..n-1 that depends on the arguments only: int64 [n], on the CPU."""
    return torch.from_numpy(np.random.default_rng((seed, *key)).permutation(n))


def rows_held(chunk_rows: int) -> int:
    """The largest number of rows in the buffer, for chunks of at most `chunk_rows`; under twice that.

    Parts end at ceil(n/2), ceil(3n/4) and ceil(7n/8), so that floor(n/2), floor(n/4) and floor(n/8)
    rows of a chunk still wait after its first, second and third round.
    """
    return chunk_rows + chunk_rows // 2 + chunk_rows // 4 + chunk_rows // 8


@final
class ShuffleBuffer:
    """Shuffles the endless sequence of rows that `read(0)`, `read(1)`, ... return.

    The storage for `rows_held(reads_per_chunk * rows_per_read)` rows, and with `ahead` for
    `rows_per_read` more, is allocated once. Beside it there is the read that is being copied.

    Args:
        read: a pure function of the read's number; resuming calls it again for some numbers.
        reads_per_chunk: the number of reads that are shuffled together.
        rows_per_read: the largest number of rows that a read keeps.
        device: the device of reads, storage and emitted rows.
        dtype: the storage's dtype; None takes the dtype of the first read.
        out_dtype: the dtype of emitted rows; None takes the storage's.
        ahead: whether the next chunk is read while this round's rows are taken.
        gaps: whether a chunk may be empty; otherwise that is an error.
    """

    def __init__(
        self,
        read: Callable[[int], Read],
        *,
        reads_per_chunk: int,
        rows_per_read: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        out_dtype: torch.dtype | None = None,
        ahead: bool = False,
        gaps: bool = False,
    ):
        assert reads_per_chunk >= 1 and rows_per_read >= 1
        self.capacity = rows_held(reads_per_chunk * rows_per_read) + ahead * rows_per_read
        self.reads_per_chunk, self.rows_per_read = reads_per_chunk, rows_per_read
        self._ahead, self._gaps = ahead, gaps
        self._side = torch.cuda.Stream(device) if ahead and device.type == "cuda" else None
        self._read = read
        self._seed = seed
        self._device = device
        self._dtype = dtype
        self._out_dtype = out_dtype
        self._groups: list[Tensor] = []  # [capacity, sites, D] each, from the first read on
        self._tokens = self._shared(torch.empty(self.capacity, dtype=torch.int64, device=device))
        self._positions = self._shared(torch.empty_like(self._tokens))
        self.restore(0, 0)

    @property
    def position(self) -> tuple[int, int]:
        """(round, rows already taken of it), which is the whole state."""
        return self._round, self._taken

    def restore(self, round_: int, taken: int) -> None:
        """Goes to a `position`. The next `take` then reads at most four chunks."""
        self._round, self._taken = round_, taken
        self._loaded = False

    def take(self, n: int) -> Rows:
        """The next n rows. If a read raises, the position stays where it was."""
        before = self.position
        try:
            return self._take(n)
        except BaseException:  # Ctrl-C too: the storage may be inconsistent
            self.restore(*before)
            raise

    def peek(self, n: int) -> Rows:
        """n rows from the start of the stream; the position stays where it is.

        They are the rows that round 0 emits and then the rest of chunk 0, so a new buffer reads
        nothing extra. If n is larger, further reads follow in order, which are read again later.
        """
        before = self.position
        moved = self._round > 0 or (self._ahead and self._taken > 0)
        if moved:
            self.restore(0, 0)
        try:
            return self._peek(n)
        finally:
            if moved:
                self.restore(*before)

    def _take(self, n: int) -> Rows:
        self._load()
        out = self._empty(n)
        filled = 0
        while filled < n:
            if self._taken == len(self._due):
                self._refill(self._round + 1)
                self._round, self._taken = self._round + 1, 0
            slots = self._due[self._taken : self._taken + n - filled]
            self._gather(slots, out, filled)
            self._taken += len(slots)
            filled += len(slots)
        if self._ahead:
            self._read_ahead()
        return out

    def _peek(self, n: int) -> Rows:
        self._load()
        out = self._empty(n)
        slots = torch.cat([self._due, *self._waiting])[:n]
        self._gather(slots, out, 0)
        filled, number = len(slots), self.reads_per_chunk
        while filled < n:
            read = self._read(number)
            if read.check is not None:
                read.check()
            rows = slice(filled, min(n, filled + len(read.keep_N)))
            count = rows.stop - rows.start
            for storage, part, sites in zip(self._groups, out.groups, read.groups, strict=True):
                for s, site in enumerate(sites):
                    kept = site.index_select(0, read.keep_N[:count])
                    part[rows, s] = kept.to(storage.dtype)  # rounded as in the stream
            out.tokens_N[rows] = read.tokens_N[:count]
            out.positions_N[rows] = read.positions_N[:count]
            filled, number = rows.stop, number + 1
        return out

    def _load(self) -> None:
        """Reads the chunks of the current round, unless they are in the storage."""
        if self._loaded:
            return
        self._wait()
        self._follow()
        self._coming: list[Tensor] = []  # slots of each read of the next chunk
        self._checks: list[Callable[[], None]] = []  # checks of these reads
        self._freed = 0  # rows of this round whose slots are free
        empty = torch.empty(0, dtype=torch.int64, device=self._device)
        self._free = torch.arange(self.capacity, device=self._device)
        self._due = empty  # slots of the current round, in the order of emission
        self._waiting = [empty] * LONGEST_WAIT  # slots due 1, 2 and 3 rounds later
        for chunk in range(max(0, self._round - LONGEST_WAIT), self._round + 1):
            self._refill(chunk)
        assert self._taken <= len(self._due)
        self._loaded = True

    def _refill(self, chunk: int) -> None:
        """Reads the rest of a chunk into free slots, and assigns its rows to rounds."""
        self._free_slots(len(self._due))
        first = chunk * self.reads_per_chunk
        for number in range(first + len(self._coming), first + self.reads_per_chunk):
            self._coming.append(self._fill(number))
        self._wait()
        for check in self._checks:
            check()
        slots, self._coming, self._checks = torch.cat(self._coming), [], []
        n = len(slots)
        if n == 0 and not self._gaps:
            raise ValueError(
                f"data: {self.reads_per_chunk} LM batches in a row hold no token to train on, only "
                "special tokens, pads and activations that source.nonfinite=drop dropped"
            )
        # Row i of the chunk is in slots[i]. The slots may differ after a resume; i does not.
        slots = slots[permutation(n, self._seed, 0, chunk).to(self._device)]
        wait_0, wait_1, wait_2, wait_3 = slots.tensor_split(
            [-(n // -2), -(3 * n // -4), -(7 * n // -8)]
        )
        due = torch.cat([wait_0, self._waiting[0]])
        self._due = due[permutation(len(due), self._seed, 1, chunk).to(self._device)]
        self._freed = 0
        self._waiting = [
            torch.cat([wait_1, self._waiting[1]]),
            torch.cat([wait_2, self._waiting[2]]),
            wait_3,
        ]

    def _read_ahead(self) -> None:
        """Reads the share of the next chunk that was taken of this round, plus one read."""
        self._free_slots(self._taken)
        first = (self._round + 1) * self.reads_per_chunk
        wanted = self.reads_per_chunk * self._taken // len(self._due) + 1
        for i in range(len(self._coming), min(wanted, self.reads_per_chunk)):
            if len(self._free) < self.rows_per_read:
                return
            self._coming.append(self._fill(first + i))

    def _free_slots(self, taken: int) -> None:
        self._free = torch.cat([self._free, self._due[self._freed : taken]])
        self._freed = taken

    def _fill(self, number: int) -> Tensor:
        """Copies a read into free slots; returns the slots in reading order."""
        with self._on_side_stream():  # a read may wait for its stream, not for the current one
            read = self._read(number)
        if not self._groups:
            self._allocate(read)
        slots = self._shared(self._free[: len(read.keep_N)])
        assert len(slots) == len(read.keep_N), "a read kept more than rows_per_read"
        self._follow()  # the current stream took the rows that were in these slots
        with self._on_side_stream():
            for storage, sites in zip(self._groups, read.groups, strict=True):
                for s, site in enumerate(sites):
                    all_kept = len(read.keep_N) == len(site)
                    kept = site if all_kept else site.index_select(0, read.keep_N)
                    kept = kept.to(storage.dtype)
                    storage[:, s].index_copy_(0, slots, kept)
            self._tokens[slots] = read.tokens_N
            self._positions[slots] = read.positions_N
        if read.check is not None:
            self._checks.append(read.check)
        self._free = self._free[len(slots) :]
        return slots

    @contextmanager
    def _on_side_stream(self) -> Iterator[None]:
        """Runs its body on the stream for reads. Tensors that both streams use are `_shared`."""
        if self._side is None:
            yield
            return
        with torch.cuda.stream(self._side):
            yield

    def _follow(self) -> None:
        """Makes the stream for reads wait for all that the current stream has been given."""
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self._device))

    def _shared(self, tensor: Tensor) -> Tensor:
        """Keeps the memory of a current-stream tensor until the stream for reads is done with it."""
        if self._side is not None:
            tensor.record_stream(self._side)
        return tensor

    def _wait(self) -> None:
        """Makes the current stream wait for the reads so far."""
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)

    def _allocate(self, read: Read) -> None:
        for sites in read.groups:
            shape = (self.capacity, len(sites), sites[0].shape[1])
            dtype = self._dtype or sites[0].dtype
            storage = torch.empty(shape, dtype=dtype, device=self._device)
            self._groups.append(self._shared(storage))

    def _empty(self, n: int) -> Rows:
        return Rows(
            [
                storage.new_empty((n, *storage.shape[1:]), dtype=self._out_dtype)
                for storage in self._groups
            ],
            self._tokens.new_empty(n),
            self._positions.new_empty(n),
        )

    def _gather(self, slots: Tensor, out: Rows, start: int) -> None:
        rows = slice(start, start + len(slots))
        for storage, part in zip(self._groups, out.groups, strict=True):
            part[rows] = storage.index_select(0, slots)
        out.tokens_N[rows] = self._tokens[slots]
        out.positions_N[rows] = self._positions[slots]
