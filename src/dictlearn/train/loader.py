"""The loader that Lightning iterates over: a source, cut to the length of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch

from dictlearn.sources.protocol import Source
from dictlearn.types import Batch


@final
class SourceLoader:
    """`steps` batches of a source. Lightning saves its state, and a run resumes between batches.

    Lightning also counts the batches of a pass, across a resume too, so the state is only the
    source's position.

    It is no DataLoader and has a length on purpose. Lightning starts a DataLoader's epoch over after
    a resume, and reads one batch ahead of iterables without a length, which is then lost.

    If several processes train, each has its own share of the stream, and the state holds those of
    all processes, because Lightning saves only the state of rank 0.
    """

    def __init__(self, source: Source, steps: int):
        self.source = source
        self._steps = steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        self.source.shard(*_rank())
        for _ in range(self._steps):
            yield self.source.next_batch()

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks' sources; all ranks must call this together."""
        return {"sources": _gather(self.source.state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rank, ranks = _rank()
        states = state.get("sources") if isinstance(state, dict) else None
        if not isinstance(states, list):
            raise ValueError("the checkpoint has no state of a source of activations")
        if len(states) != ranks:
            raise ValueError(
                f"trainer.devices: the run to resume had {len(states)} processes, "
                f"this one has {ranks}; want as many, as each goes on with its own activations"
            )
        self.source.shard(rank, ranks)
        _refuse_other_counts(states[rank], self.source.state())
        self.source.restore(states[rank])


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


def _gather(state: dict[str, int]) -> list[dict[str, int]]:
    _, ranks = _rank()
    if ranks == 1:
        return [state]
    states: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(states, state)
    return states
