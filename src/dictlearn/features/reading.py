"""The pass over text: it collects firings and saves its state, from which a killed pass resumes.

Firings are collected in a buffer. When it is full, or after some minutes, it is sorted by feature,
and the states of all features are read, updated and written again, one block at a time, into a
folder that is committed whole. So memory holds the buffer and one block, and the disk always holds
the state after a number of whole batches of windows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dictlearn.ckpt import commit
from dictlearn.ckpt.files import read_tensors, write_tensors
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.features.ragged import Firings
from dictlearn.features.sample import Sampled
from dictlearn.features.settings import Settings
from dictlearn.features.state import State
from dictlearn.features.text import Text
from dictlearn.lm.capture import batch_at
from dictlearn.lm.language_model import LanguageModel
from dictlearn.types import Progress

ENCODED_AT_ONCE = 1 << 24  # pre-activations in memory


@final
@dataclass(eq=False)
class Reading:
    """One process's share of the pass: batches `rank`, `rank` + `processes`, ...

    Args:
        folder: the process's own; its state is in `folder`/state.
        key: fingerprint of all that the state depends on; a state with another key is dropped.
    """

    dictionary: Dictionary
    lm: LanguageModel
    text: Text
    settings: Settings
    folder: Path
    key: str
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        self.n_columns = self.dictionary.code_sources * self.dictionary.n_features
        self.n_places = len(self.text) * self.text.context
        self.batches = range(self.rank, self.text.n_batches, self.processes)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.buffered = 0
        self.done, self.tokens, self.sampled = self._saved()

    def run(self, progress: Progress = lambda done, total: None) -> None:
        """Reads the rest of the share and saves the state after it."""
        last = time.monotonic()
        for number in range(self.done, len(self.batches)):
            self._read(self.batches[number])
            self.done = number + 1
            late = time.monotonic() - last > 60 * self.settings.checkpoint_minutes
            if self.buffered >= self.settings.buffer or late:
                self._flush()
                last = time.monotonic()
            progress(self.done, len(self.batches))
        if self.buffered or not self._state.is_dir():
            self._flush()

    @torch.no_grad()
    def _read(self, batch: int) -> None:
        rows = self.text.rows(batch)
        numbers = self.text.numbers(rows)
        tokens_BP = self.text.windows.window_batch(numbers)
        valid_BP = self.text.windows.kept(numbers)
        places_N = (rows.start * self.text.context + valid_BP.flatten().nonzero()[:, 0]).cpu()
        self.tokens += len(places_N)
        x_NSD = batch_at(self.lm, tokens_BP, valid_BP, self.dictionary.sources).x_NSD
        n_at_once = max(1, ENCODED_AT_ONCE // self.n_columns)
        chunks = zip(x_NSD.split(n_at_once), places_N.split(n_at_once), strict=True)
        for x_CSD, places_C in chunks:
            code = self.dictionary.encode(x_CSD)
            token, source = code.rows // code.n_sources, code.rows % code.n_sources
            column = (code.features + source * code.n_features).cpu()
            self.keys.append(column * self.n_places + places_C[token.cpu()])
            self.values.append(code.values.float().cpu())
            self.buffered += len(column)

    def _flush(self) -> None:
        """Adds the buffer to the state and commits it."""
        keys, order = torch.cat([torch.zeros(0, dtype=torch.int64), *self.keys]).sort()
        values = torch.cat([torch.zeros(0), *self.values])[order]
        self.keys, self.values, self.buffered = [], [], 0
        self.sampled.update(keys, values)
        old = self._state if self._state.is_dir() else None

        def write(temporary: Path) -> None:
            for number, first, n in self.blocks():
                state = self._block(old, number, n)
                state.update(
                    self._firings(keys, values, first, n), first, self.text.context, self.settings
                )
                write_tensors(temporary / block_file(number), state.tensors())
            sample = {"keys": self.sampled.keys, "values": self.sampled.values}
            write_tensors(temporary / "sample.safetensors", sample)

        details = {
            "what": self.key,
            "done": self.done,
            "tokens": self.tokens,
            "stride": self.sampled.stride,
        }
        commit.commit(self._state, write, sort="a pass under way", details=details)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yields (number, first column, features) of every block; a block has one source."""
        number, n_features = 0, self.dictionary.n_features
        for source in range(self.dictionary.code_sources):
            for first in range(0, n_features, self.settings.block):
                n = min(self.settings.block, n_features - first)
                yield number, source * n_features + first, n
                number += 1

    def block(self, number: int, n: int) -> State:
        """A block's state on disk."""
        return self._block(self._state, number, n)

    def forget(self) -> None:
        """Deletes the state; other files in the folder stay."""
        if self._state.is_dir():
            commit.delete(self._state)
        with suppress(OSError):
            self.folder.rmdir()

    def _block(self, folder: Path | None, number: int, n: int) -> State:
        if folder is None:
            return State.empty(n, self.settings)
        return State.from_tensors(read_tensors(folder / block_file(number)))

    def _firings(self, keys: Tensor, values: Tensor, first: int, n: int) -> Firings:
        ends = torch.tensor([first * self.n_places, (first + n) * self.n_places])
        low, high = torch.searchsorted(keys, ends).tolist()
        keys = keys[low:high]
        return Firings(keys // self.n_places - first, keys % self.n_places, values[low:high])

    @property
    def _state(self) -> Path:
        return self.folder / "state"

    def _saved(self) -> tuple[int, int, Sampled]:
        """(batches done, tokens seen, firings sampled) of the state on disk, or of an empty one."""
        commit.collect_garbage(self.folder)
        windows = max(1, self.settings.sample_tokens // self.text.context)
        stride = -(-len(self.text) // windows)
        most = self.settings.sample_firings
        sampled = Sampled.empty(stride, most, self.text.context, self.n_places)
        if not self._state.is_dir():
            return 0, 0, sampled
        try:
            details = commit.verify(self._state)
        except ValueError:  # damaged: the share is read again
            details = {}
        if details.get("what") != self.key:
            commit.delete(self._state)
            return 0, 0, sampled
        sampled.stride = int(details["stride"])
        tensors = read_tensors(self._state / "sample.safetensors")
        sampled.keys, sampled.values = tensors["keys"], tensors["values"]
        return int(details["done"]), int(details["tokens"]), sampled


def block_file(number: int) -> str:
    return f"block-{number}.safetensors"


def fingerprint(dictionary: Dictionary, lm: LanguageModel, text: Text, settings: Settings) -> str:
    """Hash of all that the state depends on: weights, model, token ids, and settings of the pass."""
    tokens = hashlib.sha256()
    for batch in range(text.n_batches):
        numbers = text.numbers(text.rows(batch))
        tokens.update(lm.seen_bytes(text.windows.window_batch(numbers), text.windows.kept(numbers)))
    parts: list[Any] = [sha256_of(dictionary), lm.info.name, lm.info.revision, tokens.hexdigest()]
    described = json.dumps([*parts, settings.of_the_pass()])
    return hashlib.sha256(described.encode()).hexdigest()
