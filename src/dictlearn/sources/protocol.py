"""The protocol of sources of activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from dictlearn.types import Batch, ModelInfo, Norms


@runtime_checkable
class Source(Protocol):
    """An endless, resumable stream of activations.

    The stream depends on the constructor's arguments only, and `next_batch` on the state only. So a
    source restored from `state()` continues where the other one stopped, bit for bit on a CPU. Any
    number of dictionaries may read the same batches.

    Every source is built with the run-time arguments `lm, windows, sources, targets, batch_tokens,
    seed`. One that needs no language model ignores the first two, and gives `sources` and `targets`
    defaults: it is built once more without them to read its `info` (see `MakesActivations`).
    """

    reads_model: bool  # class attribute: whether it needs `lm` and `windows`
    # Optional: a class with `runs_model = False` compares `lm` with the origin of its activations, but
    # never runs it, so `lm` may have no weights.
    # Optional, too: `elastic = False` where a process's batches depend on more than its share of the
    # stream, so that a run can't go on with another number of processes.
    # Optional: `buffer_bytes`, the memory of rows that wait, where no model's batches fill a buffer.
    gives_windows: bool  # class attribute: whether some batches are whole windows

    @property
    def sources(self) -> tuple[str, ...]:
        """The sites that `x_NSD` stacks, in order."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """The sites that `y_NTD` stacks. If they equal `sources`, `targets_NTD` is None."""
        ...

    @property
    def width(self) -> int:
        """D, the same for all sites."""
        ...

    @property
    def batch_tokens(self) -> int:
        """N, the rows of every batch."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        ...

    def shard(self, rank: int, ranks: int) -> None:
        """Restricts the stream to one process's share; no two of the `ranks` processes share a row.

        A state is valid for the rank that made it. A repeated call changes nothing.
        """
        ...

    def next_batch(self) -> Batch:
        """The next `batch_tokens` rows. If it raises, the state is unchanged."""
        ...

    def state(self) -> dict[str, int]:
        """The position in the stream, as integers."""
        ...

    def restore(self, state: dict[str, int]) -> None:
        """Continues from the `state()` of a source with the same arguments."""
        ...

    def sample(self, n: int) -> Batch:
        """n rows from the start of the stream; the state is unchanged.

        The normaliser, initial biases and initial directions are computed from them.
        """
        ...


@runtime_checkable
class MakesActivations(Protocol):
    """A source without a language model (`reads_model` is False) has sizes of its own."""

    @property
    def info(self) -> ModelInfo:
        """Name, width and number of layers, from which a dictionary is built.

        Stored activations of a model have that model's name, so that evals can load it.
        """
        ...


@runtime_checkable
class KnowsNorms(Protocol):
    """A source that may know the norms of all its rows, so that a sample needn't tell them."""

    def norms(self) -> Mapping[str, Norms] | None:
        """The norms of each site; None if they aren't known."""
        ...


@runtime_checkable
class KnowsTruth(Protocol):
    """A source whose activations are sums of known features."""

    @property
    def truth(self) -> Tensor:
        """The features, [F_true, D]."""
        ...


class RowsOf(Protocol):
    """Activations without a text, to evaluate on."""

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def batches(self, most: int) -> Iterator[Batch]:
        """`most` rows, or all if there are fewer, in pieces evenly spread over all of them."""
        ...


@runtime_checkable
class HoldsOut(Protocol):
    """A source without a model that keeps some activations out of training."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def held_out(self) -> RowsOf: ...

    @property
    def trained(self) -> RowsOf:
        """The activations that are trained on, for baselines to be fitted on."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the activations, by which a resumed run knows them."""
        ...


@final
class NoText:
    """One empty window, with which a source can be built and checked before the text is read."""

    def __init__(self, context: int):
        self.context = context

    def __len__(self) -> int:
        return 1

    def window_batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        return torch.zeros(len(indices), self.context, dtype=torch.int64)

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor:
        return torch.zeros(len(indices), self.context, dtype=torch.bool)
