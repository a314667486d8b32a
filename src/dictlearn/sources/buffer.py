"""A token-level shuffle buffer whose whole state is two integers.

Time is cut into rounds. Round c reads chunk c, a fixed number of reads, and deals its rows into
parts of 1/2, 1/4, 1/8 and 1/8 that wait 0, 1, 2 and 3 rounds. It emits what is due,

    part 0 of chunk c,  part 1 of chunk c-1,  part 2 of chunk c-2,  part 3 of chunk c-3,

shuffled together. That is the usual buffer that refills when it is half empty, in which a row stays
for another round with probability 1/2, with the geometric tail cut at four rounds. The cut is what
makes it resumable: round c is a pure function of (seed, c) and of four chunks, which are read again
on resume instead of being saved. Every row is emitted exactly once.

Reading `ahead` spreads the reads of chunk c+1 over the batches of round c, and on a GPU puts them on a
stream of their own: the model runs while the dictionary takes its step. Which rows come, and when, is
the same; memory for one read more lets each be under way before it is waited for.
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
    """One read: which rows to keep, of tensors that may hold more (special tokens, pads)."""

    groups: Sequence[Sequence[Tensor]]  # sites that stay together, each [M, D]
    keep_N: Tensor  # int64 row numbers below M, without repeats, on the buffer's device
    tokens_N: Tensor  # int64
    positions_N: Tensor  # int64
    check: Callable[[], None] | None = None  # raises where the rows are bad; put off, as it waits


class Rows(NamedTuple):
    """Rows that left the buffer, in order of delivery."""

    groups: list[Tensor]  # one [N, sites of the group, D] each
    tokens_N: Tensor  # int64
    positions_N: Tensor  # int64


def permutation(n: int, seed: int, *where: int) -> Tensor:
    """A permutation of 0..n-1 that depends on the arguments alone: int64 [n], on the CPU."""
    return torch.from_numpy(np.random.default_rng((seed, *where)).permutation(n))


def rows_held(chunk_rows: int) -> int:
    """Rows that the buffer holds at most, for chunks of at most `chunk_rows`: under twice as many.

    Parts end at ceil(n/2), ceil(3n/4) and ceil(7n/8), so that floor(n/2), floor(n/4) and floor(n/8)
    rows of a chunk still wait after its first, second and third round.
    """
    return chunk_rows + chunk_rows // 2 + chunk_rows // 4 + chunk_rows // 8


@final
class ShuffleBuffer:
    """The rows of `read(0), read(1), ...` in shuffled order, without end.

    Memory: storage for `rows_held(reads_per_chunk * rows_per_read)` rows, allocated once, for
    `rows_per_read` more where it reads ahead, and the one read that is being copied into it.

    Args:
        read: a pure function of the read's number; on resume it is called again for the same ones.
        reads_per_chunk: how many reads are shuffled at a time.
        rows_per_read: the most rows that one read keeps.
        device: of the reads, of the storage and of what is delivered.
        dtype: of the storage; None takes that of the first read.
        out_dtype: of the rows delivered; None takes that of the storage.
        ahead: whether the next round's chunk is read while this round's rows are taken.
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
    ):
        assert reads_per_chunk >= 1 and rows_per_read >= 1
        self.capacity = rows_held(reads_per_chunk * rows_per_read) + ahead * rows_per_read
        self.reads_per_chunk, self.rows_per_read = reads_per_chunk, rows_per_read
        self._ahead = ahead
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
        """(round, rows of that round already taken): the whole state."""
        return self._round, self._taken

    def restore(self, round_: int, taken: int) -> None:
        """Goes to a `position`. Free of charge here; the next `take` reads at most four chunks."""
        self._round, self._taken = round_, taken
        self._loaded = False

    def take(self, n: int) -> Rows:
        """The next n rows. If a read raises, the position stays where it was."""
        before = self.position
        try:
            return self._take(n)
        except BaseException:  # Ctrl-C too: the storage may hold half a round
            self.restore(*before)
            raise

    def peek(self, n: int) -> Rows:
        """n rows of the stream's beginning; the position stays where it is.

        They are what round 0 emits and then the rest of chunk 0, which costs a fresh buffer nothing
        that it doesn't need anyway. Should that be too few, they go on in reading order, with rows
        that will have to be read again when their round comes.
        """
        before = self.position
        gone = self._round > 0 or (self._ahead and self._taken > 0)
        if gone:
            self.restore(0, 0)
        try:
            return self._peek(n)
        finally:
            if gone:
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
            for whole, part, sites in zip(self._groups, out.groups, read.groups, strict=True):
                for s, site in enumerate(sites):
                    kept = site.index_select(0, read.keep_N[:count])
                    part[rows, s] = kept.to(whole.dtype)  # rounded as the stream would round it
            out.tokens_N[rows] = read.tokens_N[:count]
            out.positions_N[rows] = read.positions_N[:count]
            filled, number = rows.stop, number + 1
        return out

    def _load(self) -> None:
        """Brings the storage to the current round, if it is not there already."""
        if self._loaded:
            return
        self._wait()
        self._follow()
        self._coming: list[Tensor] = []  # slots of what is read of the next chunk, a read each
        self._checks: list[Callable[[], None]] = []  # of these reads
        self._freed = 0  # rows of this round whose slots are free again
        nothing = torch.empty(0, dtype=torch.int64, device=self._device)
        self._free = torch.arange(self.capacity, device=self._device)
        self._due = nothing  # slots, in the order in which the current round emits them
        self._waiting = [nothing] * LONGEST_WAIT  # slots due 1, 2 and 3 rounds later
        for chunk in range(max(0, self._round - LONGEST_WAIT), self._round + 1):
            self._refill(chunk)
        assert self._taken <= len(self._due)
        self._loaded = True

    def _refill(self, chunk: int) -> None:
        """Reads what is missing of a chunk into the slots that are free, and deals it out."""
        self._free_slots(len(self._due))
        first = chunk * self.reads_per_chunk
        for number in range(first + len(self._coming), first + self.reads_per_chunk):
            self._coming.append(self._fill(number))
        self._wait()
        for check in self._checks:
            check()
        slots, self._coming, self._checks = torch.cat(self._coming), [], []
        n = len(slots)
        if n == 0:
            raise ValueError(
                f"data: {self.reads_per_chunk} LM batches in a row hold no token to train on, only "
                "special tokens, pads and activations that source.nonfinite=drop dropped"
            )
        # Row i of the chunk is in slots[i]. Which slot that is differs after a resume; i does not.
        slots = slots[permutation(n, self._seed, 0, chunk).to(self._device)]
        now, one, two, three = slots.tensor_split([-(n // -2), -(3 * n // -4), -(7 * n // -8)])
        due = torch.cat([now, self._waiting[0]])
        self._due = due[permutation(len(due), self._seed, 1, chunk).to(self._device)]
        self._freed = 0
        self._waiting = [
            torch.cat([one, self._waiting[1]]),
            torch.cat([two, self._waiting[2]]),
            three,
        ]

    def _read_ahead(self) -> None:
        """As much of the next chunk as of this round has been taken, and a read more."""
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
        with self._aside():  # which may make the host wait for this stream: not for the other
            read = self._read(number)
        if not self._groups:
            self._allocate(read)
        slots = self._shared(self._free[: len(read.keep_N)])
        assert len(slots) == len(read.keep_N), "a read kept more than rows_per_read"
        self._follow()  # rows in these slots were taken on the current stream
        with self._aside():
            for whole, sites in zip(self._groups, read.groups, strict=True):
                for s, site in enumerate(sites):
                    kept = site.index_select(0, read.keep_N).to(whole.dtype)
                    whole[:, s].index_copy_(0, slots, kept)
            self._tokens[slots] = read.tokens_N
            self._positions[slots] = read.positions_N
        if read.check is not None:
            self._checks.append(read.check)
        self._free = self._free[len(slots) :]
        return slots

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream for reads. What a read makes lives and dies there; what belongs to both
        streams is `_shared`.
        """
        if self._side is None:
            yield
            return
        with torch.cuda.stream(self._side):
            yield

    def _follow(self) -> None:
        """Nothing that the stream for reads is asked from here on comes before the current one's."""
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self._device))

    def _shared(self, tensor: Tensor) -> Tensor:
        """Of the current stream; its memory isn't given to others before the reads' is done too."""
        if self._side is not None:
            tensor.record_stream(self._side)
        return tensor

    def _wait(self) -> None:
        """Nothing that the current stream is asked from here on comes before the reads so far."""
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)

    def _allocate(self, read: Read) -> None:
        for sites in read.groups:
            shape = (self.capacity, len(sites), sites[0].shape[1])
            dtype = self._dtype or sites[0].dtype
            whole = torch.empty(shape, dtype=dtype, device=self._device)
            self._groups.append(self._shared(whole))

    def _empty(self, n: int) -> Rows:
        return Rows(
            [
                whole.new_empty((n, *whole.shape[1:]), dtype=self._out_dtype)
                for whole in self._groups
            ],
            self._tokens.new_empty(n),
            self._positions.new_empty(n),
        )

    def _gather(self, slots: Tensor, out: Rows, start: int) -> None:
        rows = slice(start, start + len(slots))
        for whole, part in zip(self._groups, out.groups, strict=True):
            part[rows] = whole.index_select(0, slots)
        out.tokens_N[rows] = self._tokens[slots]
        out.positions_N[rows] = self._positions[slots]
