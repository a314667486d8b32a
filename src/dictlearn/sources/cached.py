"""Activations from a store, shuffled by token, without running the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import torch

from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count
from dictlearn.sources.buffer import Read, ShuffleBuffer
from dictlearn.sources.open_shards import OnDamage
from dictlearn.sources.part_order import Part, PartOrder
from dictlearn.sources.reader import check_state
from dictlearn.sources.run_reader import Run, RunReader
from dictlearn.sources.stored import Same, Special, open_for, open_store_shards
from dictlearn.types import Batch, TextWindows

LEAST_RUN = 64  # rows; shorter runs would take longer to find than to copy
DTYPES = {"stored": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@final
class CachedSource:
    """Rows of a store, in an order that is a pure function of (seed, epoch) and the store's sizes.

    If the rows were shuffled when they were written, runs of them are read from `open_shards` shards
    at a time; a batch has about as many runs as that, so that its tokens come from the text of all of
    these shards. Rows in reading order go through a shuffle buffer, as live activations do.

    The memory is a few batches, and for a store in reading order `buffer_tokens` rows. Of shards on
    another machine `open_shards` and a few more lie in temporary files while they are open.

    Args:
        lm: the model of the activations, which is checked; it may have no weights.
        windows: the text of the activations, which is checked.
        sources, targets: sites that x_NSD and y_NTD stack, any of the store's.
        batch_tokens: N, rows in every batch.
        path: the store's address.
        format: the store's format; "auto" detects it by the names of its files.
        names: names in the store of sites, where it doesn't say which sites they are.
        model: "same", or "any" to accept a store that names another model.
        text: "same", or "any" to accept a store of other text.
        special: "leave_out" or "keep" rows of special tokens, of another tool's store with token ids.
        on_damage: "stop" at a shard that can't be read, or "skip" it with a warning.
        open_shards: shards whose rows are mixed.
        threads: threads that open shards ahead.
        buffer_tokens: rows that are shuffled together, for a store in reading order.
        batch_dtype: dtype of the batches; "stored" is the store's.
        device: device of the batches: cpu, cuda or cuda:N.

    Raises:
        ValueError: the store is of another model, text or sites, or damaged; a state is of another
            stream.
    """

    reads_model = True
    runs_model = False
    gives_windows = False

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
        buffer_tokens: Count = 65536,
        batch_dtype: Literal["stored", "float32", "bfloat16"] = "float32",
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
        self._shards = open_store_shards(self._store, sites, threads, on_damage)
        self._groups = [self.sources]
        if self.sources != self.targets:
            self._groups.append(self.targets)
        self._seed, self._at_once, self._rank, self._ranks = seed, open_shards, 0, 1
        self._n_shards = len(self._store.info.shard_rows)
        self._run_rows = max(LEAST_RUN, batch_tokens // open_shards)
        self._rows_at_once = max(2 * self._run_rows, buffer_tokens)
        self._dtype = DTYPES[batch_dtype]
        self._begin()

    def _begin(self) -> None:
        """Starts the stream over the first `_n_shards` shards."""
        rows = self._store.info.shard_rows[: self._n_shards]
        self._order = PartOrder([-(-n // self._run_rows) for n in rows], self._seed, self._at_once)
        self._stream = {
            "seed": self._seed,
            "source.shards": self._n_shards,
            "source.rows": sum(rows),
            "source.open_shards": self._at_once,
            "source.run_rows": self._run_rows,
        }
        if self._store.info.shuffled:
            self._rows: RunReader | ShuffleBuffer = RunReader(
                self._run, device=self.device, out_dtype=self._dtype
            )
            return
        chunk = self._rows_at_once // 2 // self._run_rows
        self._stream["source.parts_per_refill"] = chunk
        self._rows = ShuffleBuffer(
            self._read,
            reads_per_chunk=chunk,
            rows_per_read=self._run_rows,
            seed=self._seed,
            device=self.device,
            out_dtype=self._dtype,
            gaps=True,  # for shards that are left out
        )

    def shard(self, rank: int, ranks: int) -> None:
        """Every rank takes each `ranks`-th run of rows."""
        if (rank, ranks) != (self._rank, self._ranks):
            self._rank, self._ranks = rank, ranks
            self._rows.restore(*self._rows.position)  # its rows belong to another rank

    def next_batch(self) -> Batch:
        return self._batch(self.batch_tokens, from_start=False)

    def sample(self, n: int) -> Batch:
        return self._batch(n, from_start=True)

    def state(self) -> dict[str, int]:
        first, taken = self._rows.position
        return {"first": first, "taken": taken, **self._stream}

    def restore(self, state: dict[str, int]) -> None:
        """Continues a stream; if the store has grown, only its former shards are read."""
        if 0 < state["source.shards"] < len(self._store.info.shard_rows):
            self._n_shards = state["source.shards"]
            self._begin()
        check_state(self._stream, state)
        self._rows.restore(state["first"], state["taken"])

    def _batch(self, n: int, from_start: bool) -> Batch:
        rows = self._rows.peek(n) if from_start else self._rows.take(n)
        x_NSD, *targets = rows.groups
        return Batch(x_NSD, targets[0] if targets else None, rows.tokens_N, rows.positions_N)

    def _run(self, number: int) -> Run:
        """Run `number` of this rank."""
        index = number * self._ranks + self._rank
        part = self._order.at(index)
        shard = self._shards.get(part.shard, self._order.soon(index))
        low, high = self._span(part)
        if shard is None:
            no_ids = torch.empty(0, dtype=torch.int64)
            empty = torch.empty(0, self.width, dtype=self._store.info.dtype)
            return Run([[empty for _ in sites] for sites in self._groups], no_ids, no_ids)
        rows = [[shard.rows(site, low, high) for site in sites] for sites in self._groups]
        tokens_N, positions_N = shard.tokens_N[low:high], shard.positions_N[low:high]
        if shard.kept_N is None:
            return Run(rows, tokens_N, positions_N)
        kept_N = shard.kept_N[low:high]
        return Run(
            [[x[kept_N] for x in sites] for sites in rows], tokens_N[kept_N], positions_N[kept_N]
        )

    def _read(self, number: int) -> Read:
        run = self._run(number)
        return Read(
            [[site.to(self.device) for site in sites] for sites in run.groups],
            torch.arange(len(run.tokens_N), device=self.device),
            run.tokens_N.long().to(self.device),
            run.positions_N.long().to(self.device),
        )

    def _span(self, part: Part) -> tuple[int, int]:
        low = part.number * self._run_rows
        return low, min(low + self._run_rows, self._store.info.shard_rows[part.shard])
