"""Plain arrays of activations that somebody has, without a language model or a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dictlearn.activations.arrays import fingerprint
from dictlearn.ranges import Count, ProperFraction
from dictlearn.sources.array_sites import SiteRows, layers, open_sites
from dictlearn.sources.protocol import RowsOf
from dictlearn.sources.row_stream import Rows, RowStream
from dictlearn.types import Batch, ModelInfo

NAME = "tensors"  # in the place of a model's name
SHARD_ROWS = 32_768


@final
class TensorsSource:
    """Rows of arrays, shuffled. The last ones are held out: neighbours may be of one document.

    Arrays are [N, D], one a site, or [N, S, D] with the dictionary's sites in its own order: its
    sources, then its targets that are not sources too. Rows of several arrays belong together.
    Their order is a pure function of the seed, the epoch and the number of rows.

    Args:
        path: a file (.npy, .npz, .safetensors) or a folder of them, see `activations.arrays`.
        names: the array of each site; None for the same name, or the only array.
        held_out: the share of the rows, or their number, that is evaluated on and not trained on.
        held_out_path: other arrays to evaluate on instead; all rows of `path` are then trained on.
        buffer_tokens: rows that are shuffled together.
        open_shards: parts of the arrays whose rows are mixed.
        device: device of the batches: cpu, cuda or cuda:N.

    Raises:
        ValueError: the arrays can't be read, or are not those of the dictionary's sites.
    """

    reads_model = False
    gives_windows = False

    def __init__(
        self,
        lm: object = None,
        windows: object = None,
        *,
        batch_tokens: int,
        seed: int,
        path: str,
        sources: tuple[str, ...] = (),
        targets: tuple[str, ...] = (),
        names: Mapping[str, str] | None = None,
        held_out: ProperFraction | Count = 0.1,
        held_out_path: str | None = None,
        buffer_tokens: Count = 65536,
        open_shards: Count = 8,
        device: str = "cpu",
    ):
        del lm, windows  # every source takes these; this one reads no text
        self.sources, self.targets = tuple(sources), tuple(targets)
        self.batch_tokens, self.device = batch_tokens, torch.device(device)
        self._names, sites = dict(names or {}), tuple(dict.fromkeys(self.sources + self.targets))
        own = open_sites("source.path", path, self._names, sites)
        self._arrays, self._sites, self.width = own.by_name, own.sites, own.width
        self._trained = own.rows if held_out_path else _trained_rows(own.rows, held_out)
        self._held_out = own.sites, range(self._trained, own.rows)
        if held_out_path:
            other = open_sites("source.held_out_path", held_out_path, self._names, sites)
            if other.width != self.width:
                raise ValueError(
                    f"source.held_out_path={held_out_path}: is {other.width} wide, and "
                    f"source.path={path} {self.width}; want activations of the same sites"
                )
            self._held_out = other.sites, range(other.rows)
        self._stream = None
        if sites:
            self._stream = self._streamed(seed, open_shards, min(buffer_tokens, self._trained))

    def _streamed(self, seed: int, open_shards: int, buffer_rows: int) -> RowStream:
        starts = range(0, self._trained, SHARD_ROWS)
        shard_rows = tuple(min(SHARD_ROWS, self._trained - start) for start in starts)

        def shard(number: int, soon: Sequence[int]) -> _Shard:
            return _Shard(self._sites, starts[number], shard_rows[number])

        stored = next(iter(self._sites.values())).array.dtype
        dtype = torch.float32 if stored == torch.float64 else stored
        return RowStream(
            Rows(shard, shard_rows, False, self.width, dtype),
            self.sources,
            self.targets,
            batch_rows=self.batch_tokens,
            seed=seed,
            open_shards=open_shards,
            buffer_rows=buffer_rows,
            out_dtype=torch.float32,
            device=self.device,
        )

    @property
    def info(self) -> ModelInfo:
        """Sizes for building a dictionary, in place of those of a language model."""
        return ModelInfo(NAME, None, NAME, layers(self._arrays, self._names), self.width, 0, 0)

    @property
    def fingerprint(self) -> str:
        """Changes with the arrays."""
        return fingerprint(self._arrays)

    @property
    def held_out(self) -> RowsOf:
        """The rows to evaluate on."""
        return _RowsOf(self, *self._held_out)

    @property
    def trained(self) -> RowsOf:
        """The rows that are trained on."""
        return _RowsOf(self, self._sites, range(self._trained))

    @property
    def buffer_bytes(self) -> int:
        return self._rows.buffer_bytes

    def shard(self, rank: int, ranks: int) -> None:
        self._rows.shard(rank, ranks)

    def next_batch(self) -> Batch:
        return self._rows.next_batch()

    def sample(self, n: int) -> Batch:
        return self._rows.sample(n)

    def state(self) -> dict[str, int]:
        return self._rows.state()

    def restore(self, state: dict[str, int]) -> None:
        self._rows.restore(state)

    @property
    def _rows(self) -> RowStream:
        assert self._stream is not None, "built without sites, for its info alone"
        return self._stream


def _trained_rows(rows: int, held_out: float) -> int:
    kept = rows - (max(1, round(held_out * rows)) if held_out < 1 else int(held_out))
    if kept < 1:
        raise ValueError(
            f"source.held_out={held_out}: leaves none of {rows} rows to train on; want fewer"
        )
    return kept


@final
@dataclass(frozen=True, eq=False)
class _Shard:
    """Consecutive rows of all sites, which have no tokens."""

    sites: Mapping[str, SiteRows]
    start: int
    n: int
    kept_N: None = None

    @property
    def tokens_N(self) -> Tensor:
        return torch.zeros(self.n, dtype=torch.int64)

    @property
    def positions_N(self) -> Tensor:
        return torch.zeros(self.n, dtype=torch.int64)

    def rows(self, site: str, low: int, high: int) -> Tensor:
        return self.sites[site].rows(self.start + low, self.start + high)


@final
@dataclass(frozen=True, eq=False)
class _RowsOf:
    """Some of the rows of arrays, as batches in their order."""

    source: TensorsSource
    sites: Mapping[str, SiteRows]
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def batches(self, most: int) -> Iterator[Batch]:
        size = min(self.source.batch_tokens, len(self))
        pieces, wanted = -(-len(self) // size), -(-min(most, len(self)) // size)
        for i in range(wanted):
            low = self.numbers.start + i * pieces // wanted * size
            left = most - i * size
            yield self._batch(low, min(low + min(size, left), self.numbers.stop))

    def _batch(self, low: int, high: int) -> Batch:
        source = self.source

        def stacked(sites: tuple[str, ...]) -> Tensor:
            rows = [self.sites[site].rows(low, high) for site in sites]
            return torch.stack([one.to(source.device).float() for one in rows], 1)

        zeros_N = torch.zeros(high - low, dtype=torch.int64, device=source.device)
        y_NTD = None if source.sources == source.targets else stacked(source.targets)
        return Batch(stacked(source.sources), y_NTD, zeros_N, zeros_N)
