"""A stream that several readers share gives each the batches of a source of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dictlearn.sources.shared import SharedStream, Sites, Tap
from dictlearn.types import Batch
from dictlearn.verbs.turns import Turns

N, D = 3, 2


class Counting:
    """Values that tell their site, batch and row apart; from batch `bad` on a site cannot be read."""

    reads_model = gives_windows = True
    width, batch_tokens, device = D, N, torch.device("cpu")

    def __init__(self, sites: Sites, bad: dict[str, int] | None = None):
        self.sources, self.targets = sites
        self.bad, self.taken, self.reads = bad or {}, 0, []

    def shard(self, rank: int, ranks: int) -> None: ...

    def state(self) -> dict[str, int]:
        return {"taken": self.taken}

    def restore(self, state: dict[str, int]) -> None:
        if state["taken"] < 0:
            raise ValueError("the state of another stream")
        self.taken = state["taken"]

    def next_batch(self) -> Batch:
        batch = self._batch(self.taken)
        self.taken += 1
        return batch

    def sample(self, n: int) -> Batch:
        return self._batch(0)

    def _batch(self, number: int) -> Batch:
        for site in self.sources + self.targets:
            if number >= self.bad.get(site, 1000):
                raise ValueError(f"NaN in {site}")
        self.reads.append(number)
        return self._rows(number)._replace(beside=self._rows(-number))

    def _rows(self, number: int) -> Batch:
        tokens_N = torch.arange(N) + 10 * number
        targets = None if self.sources == self.targets else self._at(self.targets, number)
        return Batch(self._at(self.sources, number), targets, tokens_N, tokens_N)

    def _at(self, sites: tuple[str, ...], number: int) -> Tensor:
        rows = torch.arange(N * D).view(N, D) + 1000.0 * number
        return torch.stack([rows + 10**6 * (ord(site) - 96) for site in sites], 1)


READERS = [
    (("a",), ("a",), 0),
    (("b", "a"), ("c", "b"), 0),
    (("c",), ("c",), 2),  # continues after two batches
]


def shared(
    readers: list[tuple[tuple[str, ...], tuple[str, ...], int]],
    steps: int,
    bad: dict[str, int] | None = None,
    use: Callable[[Tap], object] = lambda tap: None,
) -> tuple[list[list[Batch]], list[Counting], list[Exception | None]]:
    """What each reader got up to batch `steps`, the sources that were built, and errors."""
    built: list[Counting] = []
    turns: list[Turns] = []

    def build(sites: Sites) -> Counting:
        built.append(Counting(sites, bad))
        return built[-1]

    stream = SharedStream(build, lambda ready: turns[0].hand_over(ready))
    taps = [stream.join(*reader) for reader in readers]
    got: list[list[Batch]] = [[] for _ in readers]
    errors: list[Exception | None] = [None] * len(readers)

    def work(i: int) -> Callable[[], None]:
        def run() -> None:
            try:
                use(taps[i])
                if taps[i].position:
                    taps[i].restore({"taken": taps[i].position})
                while taps[i].position < steps:
                    got[i].append(taps[i].next_batch())
                    assert taps[i].state() == {"taken": taps[i].position}
            except ValueError as error:
                errors[i] = error
            finally:
                taps[i].leave()

        return run

    turns.append(Turns([work(i) for i in range(len(readers))]))
    turns[0].run()
    return got, built, errors


def alone(reader: tuple[tuple[str, ...], tuple[str, ...], int], steps: int) -> list[Batch]:
    sources, targets, position = reader
    source = Counting(Sites(sources, targets))
    source.restore({"taken": position})
    return [source.next_batch() for _ in range(position, steps)]


def same(one: Batch | None, other: Batch | None) -> bool:
    if one is None or other is None:
        return one is other
    tensors = zip(one[:6], other[:6], strict=True)
    equal = all(a is b if a is None or b is None else torch.equal(a, b) for a, b in tensors)  # type: ignore[arg-type]
    return equal and same(one.beside, other.beside)


def test_each_reader_gets_the_batches_of_its_own_source_and_each_is_read_once() -> None:
    got, built, errors = shared(READERS, 5)
    assert errors == [None] * 3
    for reader, batches in zip(READERS, got, strict=True):
        expected = alone(reader, 5)
        assert len(batches) == len(expected) == 5 - reader[2]
        assert all(map(same, batches, expected))
    (source,) = built
    assert source.sources == source.targets == ("a", "b", "c")
    assert source.reads == [0, 1, 2, 3, 4]


def test_a_reader_owns_its_batch() -> None:
    got, _, _ = shared([READERS[0], READERS[0]], 1)
    got[0][0].x_NSD.zero_()
    assert same(got[1][0], alone(READERS[0], 1)[0])


@pytest.mark.parametrize("first", [0, 2])
def test_a_site_that_cannot_be_read_stops_those_alone_that_read_it(first: int) -> None:
    readers = [READERS[0], (("b",), ("b",), 0), (("c",), ("c",), 0)]
    got, _, errors = shared(readers, 5, bad={"b": first})
    assert [len(batches) for batches in got] == [5, first, 5]
    assert str(errors[1]) == "NaN in b" and errors[0] is errors[2] is None
    for reader, batches in zip(readers, got, strict=True):
        assert all(map(same, batches, alone(reader, len(batches))))


def test_a_sample_is_read_once_for_all_and_is_each_readers_own() -> None:
    samples: list[tuple[Tap, Batch]] = []
    _, (source,), _ = shared(READERS[:2], 1, use=lambda t: samples.append((t, t.sample(N))))
    assert source.reads == [0, 0]  # the sample, and the first batch
    for (tap, sample), reader in zip(samples, READERS[:2], strict=True):
        assert tap.sources == reader[0] and same(sample, alone(reader, 1)[0])


def test_the_state_of_another_stream_is_refused_for_its_reader_alone() -> None:
    def use(tap: Tap) -> None:
        if tap.sources == ("a",):
            tap.restore({"taken": -1})

    got, _, errors = shared(READERS[:2], 2, use=use)
    assert str(errors[0]) == "the state of another stream"
    assert all(map(same, got[1], alone(READERS[1], 2))) and len(got[1]) == 2


def test_whoever_has_ended_is_not_waited_for() -> None:
    lengths: list[int] = []

    def use(tap: Tap) -> None:
        lengths.append(tap.others)
        if tap.sources == ("a",):
            raise ValueError("ended")

    got, _, _ = shared(READERS[:2], 3, use=use)
    assert lengths == [1, 0] and len(got[1]) == 3
