"""The protocol of stores of activations.

A store consists of shards. A shard has a row per token, and every site has the same rows in the same
order. A format is one file in `formats/` with a class that implements `ActivationStore`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from dictlearn.activations.place import Place
from dictlearn.activations.statistics import Moments


@dataclass(frozen=True)
class Origin:
    """The model and the text of the activations; None for what is unknown, which is not compared.

    `weights`, `config` and `tokenizer` are fingerprints of `lm.fingerprint.fingerprint`, and `text`
    is one of `sources.fingerprint.of_rows`.
    """

    model: str | None = None  # hub id or folder
    revision: str | None = None
    weights: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    other: str | None = None  # the weights of the model whose sites are other/<site>
    text: str | None = None

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of unknown facts, except `revision` and `other`, which most models don't have."""
        optional = ("revision", "other")
        return tuple(
            fact.name
            for fact in fields(self)
            if fact.name not in optional and getattr(self, fact.name) is None
        )


@dataclass(frozen=True)
class StoreInfo:
    """A store's sizes, which are checked: numbers are positive, and lengths agree.

    `missing` are facts about rows that the format doesn't have, in words ("positions").
    """

    sites: tuple[str, ...]  # the store's names: ours, or what its tool calls them
    widths: Mapping[str, int]  # D of each site
    stored: str  # how numbers are stored, for display
    dtype: torch.dtype  # dtype of `Shard.rows`
    shard_rows: tuple[int, ...]  # rows of every shard; 0 if it is absent
    shuffled: bool  # whether the rows of a shard are in random order
    context: int | None  # P if shards have whole windows in reading order, else None
    shard_windows: tuple[int, ...]  # windows of every shard; empty if `context` is None
    origin: Origin
    missing: tuple[str, ...] = ()
    absent: Mapping[int, str] = field(
        default_factory=dict
    )  # absent shards by number, with the reason
    has_specials: bool = False  # whether rows of BOS and other specials were stored unasked
    unclear: Mapping[str, str] = field(
        default_factory=dict
    )  # sites whose name doesn't say what they hold, with the reason
    cautions: Mapping[str, str] = field(default_factory=dict)  # of sites, said when they are read

    @property
    def rows(self) -> int:
        return sum(self.shard_rows)


class ShardWindows(NamedTuple):
    """The windows of a shard, in the order of its rows."""

    tokens_BP: Tensor  # integers
    kept_BP: Tensor  # bool: the positions that have rows


class Shard(Protocol):
    """An open shard, whose files have the recorded sizes and hashes."""

    @property
    def tokens_N(self) -> Tensor:
        """Token ids, integers; zeros if the format has none."""
        ...

    @property
    def positions_N(self) -> Tensor:
        """Positions in the model's window, integers; zeros if the format has none."""
        ...

    @property
    def kept_N(self) -> Tensor | None:
        """The rows to train on, bool; None for all of them."""
        ...

    @property
    def windows(self) -> ShardWindows | None:
        """The shard's windows; None if the store's `context` is None."""
        ...

    def rows(self, site: str, low: int, high: int) -> Tensor:
        """Rows low to high - 1 of a site: floating-point [high - low, D] on the CPU.

        It may be mapped from the disk and must not be written to.
        """
        ...


class Shards(Protocol):
    """What a stream reads of a store."""

    @property
    def info(self) -> StoreInfo: ...

    def shard(self, number: int, sites: Sequence[str]) -> Shard:
        """Opens a shard for these sites, and compares its hashes if the format has any.

        Several threads call it, also for the same shard. Raises ValueError, in one sentence that names
        the file, if the file is missing, damaged or has other shapes.
        """
        ...

    def moments(self) -> Mapping[str, Moments] | None:
        """The moments of every site over all rows; None if the store doesn't have exact ones.

        Raises ValueError, in one sentence that names the file, if they are damaged.
        """
        ...


class ActivationStore(Shards, Protocol):
    """A store in one format.

    Its files may come from strangers: sizes, names and dtypes are checked, no pickle is loaded and no
    path in a file is followed.
    """

    name: ClassVar[str]  # the value of source.format
    files: ClassVar[str]  # the names of its files, for display

    @classmethod
    def recognises(cls, place: Place) -> bool:
        """Whether the files of a place have this format, judged by their names."""
        ...

    @classmethod
    def opened(cls, place: Place) -> Self:
        """Reads the store's description, without activations.

        Raises ValueError, in one sentence that names the file.
        """
        ...

    def reading(self, sites: Sequence[str]) -> Self:
        """The store for a reader of these sites: a shard that lacks one of them is absent."""
        ...
