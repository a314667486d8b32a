"""The loader that Lightning iterates over: a source, cut to the length of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, TypeVar, final

import torch

from dictlearn.sources.protocol import Source
from dictlearn.train.dealt import DealtStreams
from dictlearn.types import Batch

T = TypeVar("T")


@final
class SourceLoader:
    """`steps` batches of a source. Lightning saves its state, and a run resumes between batches.

    Lightning also counts the batches of a pass, across a resume too, so the state is only the
    source's position.

    It is no DataLoader and has a length on purpose. Lightning starts a DataLoader's epoch over after
    a resume, and reads one batch ahead of iterables without a length, which is then lost.

    If several processes train, each has its own share of the stream, and the state holds those of
    all processes, because Lightning saves only the state of rank 0. If another number of processes
    resumes, the shares are dealt out to them (`train/dealt.py`); `another` builds a source like
    `source` for that.
    """

    def __init__(self, source: Source, steps: int, another: Callable[[], Source] | None = None):
        self.source = source
        self._steps, self._another = steps, another
        self._dealt: DealtStreams | None = None  # if the run began with another number of processes

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        if self._dealt is None:
            self.source.shard(*_rank())
        stream = self._dealt or self.source
        for _ in range(self._steps):
            yield stream.next_batch()

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks' sources; all ranks must call this together."""
        if self._dealt is None:
            return {"sources": _gather(self.source.state())}
        states, first = self._dealt.joined(_gather(self._dealt.own_states()))
        return {"sources": states, "first": first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rank, ranks = _rank()
        states = state.get("sources") if isinstance(state, dict) else None
        if not isinstance(states, list) or not states:
            raise ValueError("the checkpoint has no state of a source of activations")
        first = state.get("first", 0)
        if type(first) is not int or not 0 <= first < len(states):
            raise ValueError(f"the checkpoint's first={first!r}: want 0 to {len(states) - 1}")
        for saved in states:
            _refuse_other_counts(saved, self.source.state())
        if len(states) == ranks and first == 0:
            self.source.shard(rank, ranks)
            self.source.restore(states[rank])
            return
        if self._another is None or not getattr(self.source, "elastic", True):
            raise ValueError(
                f"trainer.devices: the run to resume began with {len(states)} processes, this one has "
                f"{ranks}; want as many, as this source's batches depend on their number"
            )
        sources = chain([self.source], iter(self._another, None))
        self._dealt = DealtStreams(lambda: next(sources), states, first, rank, ranks)


def _rank() -> tuple[int, int]:
    """(this process's number, the number of processes)."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _refuse_other_counts(saved: Any, now: dict[str, int]) -> None:
    """Raises ValueError unless the state has the names of `now`, with whole numbers of at least 0."""
    keys = saved.keys() if isinstance(saved, dict) else set()
    for key in sorted({*keys, *now}):
        value = saved.get(key) if isinstance(saved, dict) else None
        if key not in now or type(value) is not int or not 0 <= value < 2**62:
            want = "no such entry" if key not in now else "a whole number from 0 to 2^62"
            raise ValueError(f"the checkpoint's source has {key}={value!r}: want {want}")


def _gather(state: T) -> list[T]:
    _, ranks = _rank()
    if ranks == 1:
        return [state]
    states: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(states, state)
    return states
