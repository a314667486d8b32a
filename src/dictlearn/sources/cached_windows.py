"""Whole windows from a store in reading order, for objectives that run the model on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count
from dictlearn.sources.open_shards import OnDamage
from dictlearn.sources.part_order import PartOrder
from dictlearn.sources.reader import check_state, first_rows
from dictlearn.sources.stored import Same, Special, norms_of, open_for, open_store_shards
from dictlearn.types import Batch, Norms, TextWindows


@final
class CachedWindowsSource:
    """Batches of `batch_tokens` / P windows of a store: their rows, and the windows' tokens.

    They are like those of `source=windows`, without the forward pass that computes the activations.
    The order of windows is a pure function of (seed, epoch) and the store's sizes, and the state is
    the number of batches taken. See `CachedSource` for the arguments.

    Raises:
        ValueError: the store has no windows, is of another model, text or sites, or damaged; sizes
            don't fit; a state is of another stream.
    """

    reads_model = True
    runs_model = False
    gives_windows = True

    def __init__(
        self,
        lm: LanguageModel,
        windows: TextWindows,
        *,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        batch_tokens: int,
        seed: int,
        path: str,
        format: str = "auto",
        names: Mapping[str, str] | None = None,
        model: Same = "same",
        text: Same = "same",
        special: Special = "leave_out",
        on_damage: OnDamage = "stop",
        open_shards: Count = 8,
        threads: Count = 2,
        device: str = "cpu",
    ):
        self.sources, self.targets = tuple(sources), tuple(targets)
        self.batch_tokens, self.device = batch_tokens, torch.device(device)
        self.width = lm.info.width
        sites = list(dict.fromkeys(self.sources + self.targets))
        self._store = open_for(
            lm,
            windows,
            sites,
            path=path,
            format=format,
            names=names,
            model=model,
            text=text,
            special=special,
        )
        context = self._store.info.context
        if context is None:
            raise ValueError(
                f"source.path={path}: its rows are not kept in windows of text; want a store made with "
                f"order=windows, or source=windows, which runs the model"
            )
        if batch_tokens % context:
            raise ValueError(
                f"batch_tokens={batch_tokens}: the store's windows have {context} tokens; want a "
                f"multiple of that"
            )
        self._shards = open_store_shards(self._store, sites, threads, on_damage)
        self._context, self._per_batch = context, batch_tokens // context
        self._seed, self._at_once, self._rank, self._ranks, self._taken = seed, open_shards, 0, 1, 0
        self._n_shards = len(self._store.info.shard_rows)
        self._begin()

    def _begin(self) -> None:
        windows = self._store.info.shard_windows[: self._n_shards]
        self._order = PartOrder(windows, self._seed, self._at_once)
        self._stream = {
            "seed": self._seed,
            "source.shards": self._n_shards,
            "source.windows": sum(windows),
            "source.open_shards": self._at_once,
            "batch_tokens": self.batch_tokens,
        }

    def shard(self, rank: int, ranks: int) -> None:
        """Every rank takes each `ranks`-th batch."""
        self._rank, self._ranks = rank, ranks

    def next_batch(self) -> Batch:
        batch, number = self._next(self._taken)
        self._taken = number + 1
        return batch

    def sample(self, n: int) -> Batch:
        return first_rows(self._next, n)

    def norms(self) -> dict[str, Norms] | None:
        return norms_of(self._store)

    def state(self) -> dict[str, int]:
        return {"batches": self._taken, **self._stream}

    def restore(self, state: dict[str, int]) -> None:
        """Continues a stream; if the store has grown, only its former shards are read."""
        if 0 < state["source.shards"] < len(self._store.info.shard_rows):
            self._n_shards = state["source.shards"]
            self._begin()
        check_state(self._stream, state)
        self._taken = state["batches"]

    def _next(self, number: int) -> tuple[Batch, int]:
        """The first batch from `number` on that has rows, and its number."""
        for later in range(number, number + self._order.per_epoch + 1):
            batch = self._batch(later)
            if len(batch.x_NSD):
                return batch, later
        raise ValueError("source.path: no shard that can be read has a row")

    def _batch(self, number: int) -> Batch:
        """Batch `number` of this rank, without windows of shards that are left out."""
        start = (number * self._ranks + self._rank) * self._per_batch
        tokens: list[Tensor] = []
        kept: list[Tensor] = []
        values: dict[str, list[Tensor]] = {site: [] for site in (*self.sources, *self.targets)}
        for index in range(start, start + self._per_batch):
            part = self._order.at(index)
            shard = self._shards.get(part.shard, self._order.soon(index))
            if shard is None or shard.windows is None:
                continue
            tokens_BP, kept_BP = shard.windows
            low = int(kept_BP[: part.number].sum())
            high = low + int(kept_BP[part.number].sum())
            kept_P, read_N = kept_BP[part.number].clone(), torch.ones(high - low, dtype=torch.bool)
            if shard.kept_N is not None:
                read_N = shard.kept_N[low:high]
                kept_P[kept_P.clone()] = read_N
            tokens.append(tokens_BP[part.number].long())
            kept.append(kept_P)
            for site, rows in values.items():
                rows.append(shard.rows(site, low, high)[read_N].float())
        if not tokens:
            empty = torch.empty(0, len(self.sources), self.width)
            no_ids = torch.empty(0, dtype=torch.int64)
            return Batch(empty, None, no_ids, no_ids)
        tokens_BP, valid_BP = torch.stack(tokens), torch.stack(kept)
        positions_BP = torch.arange(self._context).expand_as(tokens_BP)

        def stack(sites: tuple[str, ...]) -> Tensor:
            return torch.stack([torch.cat(values[site]) for site in sites], 1).to(self.device)

        targets_NTD = None if self.sources == self.targets else stack(self.targets)
        return Batch(
            stack(self.sources),
            targets_NTD,
            tokens_BP[valid_BP].to(self.device),
            positions_BP[valid_BP].to(self.device),
            tokens_BP.to(self.device),
            valid_BP.to(self.device),
        )
