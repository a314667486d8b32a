"""What every source of activations promises."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dictlearn.types import Batch, ModelInfo


@runtime_checkable
class Source(Protocol):
    """An endless, resumable stream of activations.

    The stream is a pure function of how the source was built: what `next_batch` returns depends on
    the state alone, so a source restored from `state()` continues bit for bit (on a CPU) where the
    other one stopped. Any number of dictionaries may read the same batches.

    Every source is built with the run-time arguments `lm, windows, sources, targets, batch_tokens,
    seed`; one that needs no language model ignores the first two.

    Such a source is built once more with `batch_tokens` and `seed` alone, to learn its `info` (see
    `MakesActivations`): its `sources` and `targets` have defaults.
    """

    reads_model: bool  # of the class: whether it needs `lm` and `windows`
    gives_windows: bool  # of the class: whether some or all of its batches are whole windows

    @property
    def sources(self) -> tuple[str, ...]:
        """The sites that `x_NSD` stacks, in order."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """The sites that `y_NTD` stacks. Equal to `sources`: batches then have no `targets_NTD`."""
        ...

    @property
    def width(self) -> int:
        """D, one for all sites."""
        ...

    @property
    def batch_tokens(self) -> int:
        """N of every batch."""
        ...

    @property
    def device(self) -> torch.device:
        """Where batches live."""
        ...

    def shard(self, rank: int, ranks: int) -> None:
        """Makes this the stream of one of several processes, which share no row among them.

        A state belongs to the rank that it was taken at. Doing it twice is doing it once.
        """
        ...

    def next_batch(self) -> Batch:
        """The next `batch_tokens` rows. If it raises, the state is as it was before the call."""
        ...

    def state(self) -> dict[str, int]:
        """Where the stream is, as plain integers; never any activations."""
        ...

    def restore(self, state: dict[str, int]) -> None:
        """Continues from a `state()` of a source that was built in the same way."""
        ...

    def sample(self, n: int) -> Batch:
        """n rows of the stream's beginning, whatever the state is, which stays as it is.

        For what must be known before training: the normaliser, initial biases and directions.
        """
        ...


@runtime_checkable
class MakesActivations(Protocol):
    """A source that reads no model (`reads_model` is False) says what stands in for one."""

    @property
    def info(self) -> ModelInfo:
        """Name, width and number of layers, from which a dictionary is built.

        Of a real model, where the activations are its own: the dictionary is then evaluated on it.
        """
        ...


@runtime_checkable
class KnowsTruth(Protocol):
    """A source whose activations are sums of known features."""

    @property
    def truth(self) -> Tensor:
        """The features, [F_true, D]."""
        ...
