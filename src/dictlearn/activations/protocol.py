"""What every store of activations promises, whoever wrote it.

A store is a number of shards. A shard holds rows, one a token, and every site has the same rows in the
same order. A reader of a format is one file in `formats/`: a class that keeps to `ActivationStore`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from dictlearn.activations.place import Place


@dataclass(frozen=True)
class Origin:
    """What the activations are of. None where the store does not say, which nothing then compares.

    The texts of `weights`, `config` and `tokenizer` are those of `lm.fingerprint.fingerprint`, and
    that of `text` is that of `sources.fingerprint.of_rows`.
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
        """What the store does not say, `revision` and `other` aside: most models have none."""
        optional = ("revision", "other")
        return tuple(
            one.name
            for one in fields(self)
            if one.name not in optional and getattr(self, one.name) is None
        )


@dataclass(frozen=True)
class StoreInfo:
    """A store's sizes, checked: every number is positive, and every list is as long as it says.

    `missing` are facts about rows that the format lacks, as words for a sentence ("positions").
    """

    sites: tuple[str, ...]  # by our names
    widths: Mapping[str, int]  # D of each site
    stored: str  # how the numbers are stored, for people
    dtype: torch.dtype  # of what `Shard.rows` gives
    shard_rows: tuple[int, ...]  # rows of every shard; 0 where a shard is not there
    shuffled: bool  # whether the rows of a shard come in an order drawn at random
    context: int | None  # P where shards hold whole windows of text in reading order, else None
    shard_windows: tuple[int, ...]  # windows of every shard; empty where `context` is None
    origin: Origin
    missing: tuple[str, ...] = ()
    absent: Mapping[int, str] = field(default_factory=dict)  # why a shard is not there, by number

    @property
    def rows(self) -> int:
        return sum(self.shard_rows)


class ShardWindows(NamedTuple):
    """The windows whose rows a shard holds, in the order of the rows."""

    tokens_BP: Tensor  # integers
    kept_BP: Tensor  # bool: at these positions there is a row, window by window


class Shard(Protocol):
    """One shard, open and checked: its files have the sizes and hashes that the store says."""

    @property
    def tokens_N(self) -> Tensor:
        """Token ids, integers; zeros where the format has none."""
        ...

    @property
    def positions_N(self) -> Tensor:
        """Positions within the window that the model read, integers; zeros where there are none."""
        ...

    @property
    def windows(self) -> ShardWindows | None:
        """None where the store's `context` is None."""
        ...

    def rows(self, site: str, low: int, high: int) -> Tensor:
        """Rows low to high - 1 of a site: floating-point [high - low, D] on the CPU.

        It may be mapped from the disk; nobody writes into it.
        """
        ...


class ActivationStore(Protocol):
    """A store in one format. Everything in it is data: sizes, names and dtypes are checked on reading,
    no pickle is loaded and no path in it is followed.
    """

    name: ClassVar[str]  # what source.format calls it

    @classmethod
    def recognises(cls, place: Place) -> bool:
        """Whether the files at a place are of this format, by their names alone."""
        ...

    @classmethod
    def opened(cls, place: Place, sites: Sequence[str] = ()) -> Self:
        """Reads what the store says of itself, for `sites` or all that it has; no activations.

        Raises ValueError, in one sentence that names the file.
        """
        ...

    @property
    def info(self) -> StoreInfo: ...

    def shard(self, number: int, sites: Sequence[str]) -> Shard:
        """Opens a shard for these sites, after comparing its hashes where the format has any.

        It is called from several threads, and for one shard more than once. Raises ValueError, in one
        sentence that names the file, where it is missing, damaged or of another shape.
        """
        ...
