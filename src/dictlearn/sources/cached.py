"""Activations from a store, shuffled by token, without running the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import torch

from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count
from dictlearn.sources.open_shards import OnDamage
from dictlearn.sources.row_stream import Rows, RowStream
from dictlearn.sources.stored import Same, Special, norms_of, open_for, open_store_shards
from dictlearn.types import Batch, Norms, TextWindows

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
        info = self._store.info
        self._stream = RowStream(
            Rows(self._shards.get, info.shard_rows, info.shuffled, self.width, info.dtype),
            self.sources,
            self.targets,
            batch_rows=batch_tokens,
            seed=seed,
            open_shards=open_shards,
            buffer_rows=buffer_tokens,
            out_dtype=DTYPES[batch_dtype],
            device=self.device,
        )

    @property
    def buffer_bytes(self) -> int:
        return self._stream.buffer_bytes

    def shard(self, rank: int, ranks: int) -> None:
        self._stream.shard(rank, ranks)

    def next_batch(self) -> Batch:
        return self._stream.next_batch()

    def sample(self, n: int) -> Batch:
        return self._stream.sample(n)

    def norms(self) -> dict[str, Norms] | None:
        return norms_of(self._store)

    def state(self) -> dict[str, int]:
        return self._stream.state()

    def restore(self, state: dict[str, int]) -> None:
        """Continues a stream; if the store has grown, only its former shards are read."""
        self._stream.restore(state)
