"""One source of activations for several runs: each gets the batches that a source of its own gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar, final

import torch
from torch import Tensor

from dictlearn.sources.protocol import KnowsNorms, Source
from dictlearn.types import Batch, Norms

T = TypeVar("T")
State = dict[str, int]


class Sites(NamedTuple):
    """What a source is built for."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]

    @classmethod
    def of(cls, taps: list[Tap]) -> Sites:
        """All that some readers want, each site once."""
        each = tuple(dict.fromkeys(s for tap in taps for s in tap.sources + tap.targets))
        return cls(each, each)


class Read(NamedTuple):
    """Rows at `sites`, and where the stream is after them."""

    sites: tuple[str, ...]
    batch: Batch
    state: State


@final
class SharedStream:
    """Reads at all sites that any of its readers wants, and each batch once for all of them.

    The readers take turns in one process: `hand_over(ready)` lets the others run, and returns when
    `ready()` is true. A batch is kept until the next one is wanted. Readers may stand at different
    places, as the checkpoints of stopped runs do: one that is ahead waits for the others.

    If reading fails, the sites of each reader are read apart, and only readers for which that fails
    get an error, their own. The stream goes on with the sites of the others.

    Args:
        build: makes a source of some sites, at its beginning.
        hand_over: see above.
    """

    def __init__(
        self,
        build: Callable[[Sites], Source],
        hand_over: Callable[[Callable[[], bool]], None],
    ):
        self._build, self._hand_over = build, hand_over
        self.taps: list[Tap] = []  # of those who read; the first speaks for all
        self._source: Source | None = None
        self._beginning: State = {}
        self._at: int | None = 0  # number of the batch that the source gives next; None: not known
        self._last: tuple[int, Read] | None = None  # the latest batch, with its number
        self._samples: dict[int, Read] = {}  # until a batch is read

    def join(self, sources: tuple[str, ...], targets: tuple[str, ...], position: int) -> Tap:
        """A reader of these sites, which begins at batch `position`. All join before one reads."""
        assert self._source is None, "the sites to read are those of the readers before it"
        self.taps.append(Tap(self, sources, targets, position))
        return self.taps[-1]

    def leave(self, tap: Tap) -> None:
        """The others no longer wait for this reader."""
        self.taps = [other for other in self.taps if other is not tap]
        if not self.taps:
            self._source = self._last = None
            self._samples.clear()

    @property
    def source(self) -> Source:
        if self._source is None:
            self._source, self._at = self._build(Sites.of(self.taps)), 0
            self._beginning = self._source.state()
        return self._source

    @property
    def beginning(self) -> State:
        """The state before the first batch."""
        return dict((self.source, self._beginning)[1])

    def check(self, state: State) -> None:
        """Raises ValueError for the state of another stream."""
        self.source.restore(state)
        self._at = None

    def sample(self, tap: Tap, n: int) -> Batch:
        tap.refuse_failure()
        if n not in self._samples:
            self._samples[n] = self._read(tap, lambda source: source.sample(n))
        return tap.own(self._samples[n])

    def next_batch(self, tap: Tap) -> tuple[Batch, State]:
        """The reader's next batch, and the state of its stream after that."""
        self._hand_over(lambda: tap.failure is not None or tap.position == self._first())
        tap.refuse_failure()
        if self._last is None or self._last[0] != tap.position:
            self._last = None  # its memory is free before the next one is made
            self._samples.clear()
            source = self.source
            if self._at != tap.position:
                source.restore(tap.state())
            read = self._read(tap, lambda source: source.next_batch())
            self._last, self._at = (tap.position, read), tap.position + 1
        _, read = self._last
        return tap.own(read), read.state

    def _first(self) -> int:
        """Where the hindmost readers are."""
        return min(tap.position for tap in self.taps)

    def _read(self, tap: Tap, read: Callable[[Source], Batch]) -> Read:
        state, source = tap.state(), self.source
        try:
            batch = read(source)
        except Exception as error:
            self._source, self._at = None, None
            for other in self.taps:
                other.failure = self._failure(other, read, state)
            failed = [other for other in self.taps if other.failure is not None]
            if not failed:
                raise  # each can be read, but not all together: too much memory, perhaps
            self.taps = [other for other in self.taps if other.failure is None]
            if tap in failed:
                tap.refuse_failure(error)
            source = self.source
            source.restore(state)
            batch = read(source)
        return Read(source.sources, batch, source.state())

    def _failure(
        self, tap: Tap, read: Callable[[Source], object], state: State
    ) -> Exception | None:
        """What reading raises at the sites of one reader."""
        try:
            source = self._build(Sites(tap.sources, tap.targets))
            source.restore(state)
            read(source)
        except Exception as error:
            return error
        return None


@final
class Tap:
    """One reader's view of a shared stream: a `Source` of its own sites."""

    reads_model = True
    gives_windows = True  # where the stream's source does

    def __init__(
        self,
        stream: SharedStream,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        position: int,
    ):
        self.sources, self.targets, self.position = sources, targets, position
        self.failure: Exception | None = None
        self._stream = stream
        self._state: State | None = None  # None: at the beginning

    @property
    def width(self) -> int:
        return self._stream.source.width

    @property
    def batch_tokens(self) -> int:
        return self._stream.source.batch_tokens

    @property
    def device(self) -> torch.device:
        return self._stream.source.device

    @property
    def others(self) -> int:
        """How many other runs read the stream now."""
        return len([tap for tap in self._stream.taps if tap is not self])

    @property
    def speaks(self) -> bool:
        """Whether this run reports for all that read the stream."""
        return self._stream.taps[:1] == [self]

    def shard(self, rank: int, ranks: int) -> None:
        assert ranks == 1, "a run of several processes shares no stream"

    def next_batch(self) -> Batch:
        batch, self._state = self._stream.next_batch(self)
        self.position += 1
        return batch

    def state(self) -> State:
        return self._stream.beginning if self._state is None else dict(self._state)

    def restore(self, state: State) -> None:
        self._stream.check(state)
        self._state = dict(state)

    def sample(self, n: int) -> Batch:
        return self._stream.sample(self, n)

    def norms(self) -> Mapping[str, Norms] | None:
        source = self._stream.source
        return source.norms() if isinstance(source, KnowsNorms) else None

    def leave(self) -> None:
        """Ends this run's part: the others no longer wait for it."""
        if self._state is None and self._stream.taps:
            self._state = self._stream.beginning
        self._stream.leave(self)

    def refuse_failure(self, cause: Exception | None = None) -> None:
        """Raises what reading this run's sites alone has raised."""
        if self.failure is not None:
            raise self.failure from cause

    def own(self, read: Read) -> Batch:
        """The run's own sites, in its order and in memory of its own."""
        x_NSD = read.batch.x_NSD

        def at(sites: tuple[str, ...]) -> Tensor:
            columns = torch.tensor([read.sites.index(site) for site in sites])
            return x_NSD.index_select(1, columns.to(x_NSD.device))

        same, beside = self.sources == self.targets, read.batch.beside
        return read.batch._replace(
            x_NSD=at(self.sources),
            targets_NTD=None if same else at(self.targets),
            beside=None if beside is None else self.own(read._replace(batch=beside)),
        )
