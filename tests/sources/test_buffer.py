"""Every row once, in an order that is a function of numbers, within the memory stated."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dictlearn.sources.buffer import Read, Rows, ShuffleBuffer, permutation, rows_held

CPU = torch.device("cpu")
WIDTH = 5
ROWS_PER_READ = 40


def kept(number: int) -> torch.Tensor:
    """Which of a read's 40 rows are kept: from one to all."""
    return permutation(ROWS_PER_READ, 7, number)[: 1 + number * 13 % ROWS_PER_READ].sort().values


def read(number: int) -> Read:
    """Row i of read r has token id 1000 r + i, and carries that number in its activations."""
    ids = number * 1000 + torch.arange(ROWS_PER_READ)
    keep = kept(number)
    sites = [(ids[:, None] + site / 10).float().expand(-1, WIDTH) for site in range(3)]
    return Read([sites[:2], sites[2:]], keep, ids[keep], keep)


def buffer(reads_per_chunk: int = 4, seed: int = 0, **options) -> ShuffleBuffer:
    return ShuffleBuffer(
        options.pop("read", read),
        reads_per_chunk=reads_per_chunk,
        rows_per_read=ROWS_PER_READ,
        seed=seed,
        device=CPU,
        **options,
    )


@pytest.fixture(params=[False, True], ids=["in time", "ahead"])
def ahead(request) -> bool:
    return request.param


def ids_of_reads(stop: int) -> list[int]:
    return torch.cat([read(number).tokens_N for number in range(stop)]).tolist()


def equal(a: Rows, b: Rows) -> bool:
    return (
        all(torch.equal(x, y) for x, y in zip(a.groups, b.groups, strict=True))
        and torch.equal(a.tokens_N, b.tokens_N)
        and torch.equal(a.positions_N, b.positions_N)
    )


@pytest.mark.parametrize("reads_per_chunk", [1, 4, 7])
@pytest.mark.parametrize("batch", [1, 17, 64, 1000])
def test_every_row_comes_exactly_once(reads_per_chunk, batch, ahead):
    rows = buffer(reads_per_chunk, ahead=ahead)
    taken: list[int] = []
    while rows.position[0] < 12:
        taken += rows.take(batch).tokens_N.tolist()
    round_ = rows.position[0]
    assert len(set(taken)) == len(taken)
    # What was read more than three rounds ago is out, and nothing that hasn't been read.
    assert set(taken) >= set(ids_of_reads((round_ - 3) * reads_per_chunk))
    assert set(taken) <= set(ids_of_reads((round_ + 1) * reads_per_chunk))


def test_rounds_add_up_to_the_chunks():
    """Rows out after round c: chunks 0..c, less 1/2 of chunk c, 1/4 of c-1 and 1/8 of c-2."""
    rows = buffer()
    sizes = [sum(len(kept(4 * chunk + i)) for i in range(4)) for chunk in range(8)]
    out = 0
    for chunk in range(8):
        rows.take(1)
        assert rows.position == (chunk, 1)
        waiting = [size // 2**age for age, size in enumerate(reversed(sizes[: chunk + 1]), 1)][:3]
        due = sum(sizes[: chunk + 1]) - sum(waiting) - out
        rows.take(due - 1)
        assert rows.position == (chunk, due)
        out += due


def test_rows_keep_their_values_and_origin():
    rows = buffer().take(300)
    sources, targets = rows.groups
    ids = rows.tokens_N.float()[:, None].expand(-1, WIDTH)
    assert torch.allclose(sources[:, 0], ids) and torch.allclose(sources[:, 1], ids + 0.1)
    assert torch.allclose(targets[:, 0], ids + 0.2)
    assert torch.equal(rows.positions_N, rows.tokens_N % 1000)


def test_the_order_does_not_depend_on_the_batch_size():
    one, other = buffer(), buffer()
    whole = other.take(700).tokens_N
    assert torch.equal(torch.cat([one.take(n).tokens_N for n in (1, 99, 300, 7, 293)]), whole)


def test_the_order_depends_on_the_seed():
    assert not torch.equal(buffer(seed=0).take(50).tokens_N, buffer(seed=1).take(50).tokens_N)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 5, 9, 14, 20])
def test_a_restored_buffer_goes_on_where_the_other_stopped(cut, ahead):
    straight = buffer(ahead=ahead)
    for _ in range(cut):
        straight.take(37)
    resumed = buffer(ahead=ahead)
    resumed.restore(*straight.position)
    assert resumed.position == straight.position
    for _ in range(12):  # through several refills
        assert equal(resumed.take(37), straight.take(37))
        assert resumed.position == straight.position


@pytest.mark.parametrize("reads_per_chunk", [1, 2, 4, 7])
@pytest.mark.parametrize("batch", [1, 17, 64, 500])
def test_reading_ahead_changes_nothing(reads_per_chunk, batch):
    ahead, in_time = (buffer(reads_per_chunk, ahead=ahead) for ahead in (True, False))
    while in_time.position[0] < 6:
        assert equal(ahead.take(batch), in_time.take(batch))
        assert ahead.position == in_time.position


def test_reads_are_spread_over_the_batches_before_they_are_needed():
    numbers: list[int] = []

    def counted(number: int) -> Read:
        everything = torch.arange(ROWS_PER_READ)
        numbers.append(number)
        ids = number * 1000 + everything
        return read(number)._replace(keep_N=everything, tokens_N=ids, positions_N=everything)

    rows = buffer(read=counted, ahead=True)
    while rows.position[0] < 5:
        rows.take(10)
    each = []
    while rows.position[0] < 7:
        before = len(numbers)
        rows.take(10)
        each.append(len(numbers) - before)
    assert max(each) == 1  # in time it would be four, and then none for 15 batches
    assert max(numbers) == 8 * 4  # all of the next round's, and the first of the one after it
    assert numbers == sorted(set(numbers))


def test_a_check_that_was_put_off_comes_before_the_rows():
    checked: list[int] = []

    def suspect(number: int) -> Read:
        def check() -> None:
            checked.append(number)
            if number == 9:
                raise OSError("bad")

        return read(number)._replace(check=check)

    rows, sound = buffer(read=suspect, ahead=True), buffer()
    with pytest.raises(OSError, match="bad"):
        while True:
            before = rows.position
            got = rows.take(50)
            assert equal(got, sound.take(50))
            assert int(got.tokens_N.max()) // 1000 in checked
    assert rows.position == before
    assert checked[-1] == 9
    with pytest.raises(OSError, match="bad"):  # a sample that reads on past chunk 0 asks too
        buffer(read=suspect, ahead=True).peek(len(ids_of_reads(9)) + 1)


def test_restoring_reads_four_chunks_at_most():
    numbers: list[int] = []

    def counted(number: int) -> Read:
        numbers.append(number)
        return read(number)

    resumed = buffer(read=counted)
    resumed.restore(9, 5)
    assert numbers == []
    resumed.take(1)
    assert numbers == list(range(6 * 4, 10 * 4))


def test_a_read_that_fails_loses_nothing(ahead):
    fail_at = {9}

    def flaky(number: int) -> Read:
        if number in fail_at:
            raise OSError("gone")
        return read(number)

    flaky_rows, sound = buffer(read=flaky, ahead=ahead), buffer()
    failed = 0
    for _ in range(30):
        try:
            got = flaky_rows.take(50)
        except OSError:
            failed += 1
            fail_at.clear()
            got = flaky_rows.take(50)
        assert equal(got, sound.take(50))
    assert failed == 1


def test_peeking_changes_nothing_and_costs_no_read():
    numbers: list[int] = []

    def counted(number: int) -> Read:
        numbers.append(number)
        return read(number)

    rows, untouched = buffer(read=counted), buffer()
    chunk = sum(len(kept(i)) for i in range(4))
    peeked = rows.peek(chunk)
    assert sorted(peeked.tokens_N.tolist()) == ids_of_reads(4)
    due = untouched.take(20)
    assert equal(rows.take(20), due) and torch.equal(peeked.tokens_N[:20], due.tokens_N)
    assert numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [10, 70, 400])  # of round 0, of chunk 0, beyond
def test_a_peek_is_the_same_at_any_time(n, ahead):
    rows, untouched = buffer(ahead=ahead), buffer()
    first = rows.peek(n)
    assert len(set(first.tokens_N.tolist())) == n
    for _ in range(9):
        assert equal(rows.take(61), untouched.take(61))
        before = rows.position
        assert equal(rows.peek(n), first)
        assert rows.position == before


def test_a_round_is_half_new_and_an_eighth_three_rounds_old():
    everything = torch.arange(ROWS_PER_READ)

    def full(number: int) -> Read:
        ids = number * 1000 + everything
        return read(number)._replace(keep_N=everything, tokens_N=ids, positions_N=everything)

    rows = buffer(16, read=full)
    chunk = 16 * ROWS_PER_READ
    rows.take(chunk * 1 // 2 + chunk * 3 // 4 + chunk * 7 // 8)
    chunks = rows.take(chunk).tokens_N // 1000 // 16
    assert rows.position == (3, chunk)
    assert chunks.bincount().tolist() == [chunk // 8, chunk // 8, chunk // 4, chunk // 2]


def test_neighbours_come_from_different_reads():
    rows = buffer(32)
    rows.take(2000)
    reads = rows.take(1000).tokens_N // 1000
    assert (reads[1:] == reads[:-1]).float().mean() < 0.1  # 1.0 without a shuffle


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 100, 61440])
def test_the_buffer_holds_less_than_two_chunks(n):
    assert n <= rows_held(n) < 2 * n


class PeakMemory(TorchDispatchMode):
    """The most bytes of storage alive at a time among what is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, torch.Tensor):
                self._add(made.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._seen or size == 0:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def test_memory_is_the_capacity_and_one_read():
    width, batch = 256, 8
    site = torch.randn(ROWS_PER_READ, width)
    everything = torch.arange(ROWS_PER_READ)
    wide = Read([[site]], everything, everything, everything)
    with PeakMemory() as memory:
        rows = buffer(25, read=lambda _: wide)
        for _ in range(1000):
            rows.take(batch)
    assert rows.position[0] > 5
    per_row = width * 4
    stated = (rows.capacity + ROWS_PER_READ + batch) * per_row
    slot_numbers = 8 * 8 * rows.capacity  # token ids, positions, and lists of slots
    assert rows.capacity * per_row < memory.peak < stated + slot_numbers


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
def test_dtypes_of_storage_and_delivery(dtype, out_dtype):
    rows = buffer(dtype=dtype, out_dtype=out_dtype)
    for got in (rows.take(30), rows.peek(30), rows.peek(300)):
        assert got.groups[0].dtype == (out_dtype or dtype or torch.float32)
        ids = got.tokens_N.float().to(dtype or torch.float32).float()
        assert torch.equal(got.groups[0][:, 0, 0].float(), ids)


def test_text_without_a_usable_token_is_an_error_not_a_hang():
    nothing = torch.empty(0, dtype=torch.int64)
    empty = Read([[torch.empty(ROWS_PER_READ, WIDTH)]], nothing, nothing, nothing)
    with pytest.raises(ValueError, match="only special tokens, pads"):
        buffer(read=lambda _: empty).take(1)
