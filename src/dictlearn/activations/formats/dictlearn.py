"""Read stores in our own format, which `layout.py` describes."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from dictlearn.activations import layout
from dictlearn.activations.layout import About, Record, read_about, read_record
from dictlearn.activations.packing import DTYPES, INT8, SCALE, stored_shapes, unpacked
from dictlearn.activations.place import Place
from dictlearn.activations.protocol import ShardWindows, StoreInfo
from dictlearn.activations.statistics import Moments, merged, nothing
from dictlearn.activations.tensors import mapped, read_soon
from dictlearn.disk.manifest import sha256

THREADS = 8  # that read small files
RECORD = re.compile(r"(\d{6})\.json")


@final
class Store:
    """Shards that `dictlearn cache` wrote."""

    name: ClassVar[str] = "dictlearn"
    files: ClassVar[str] = f"{layout.ABOUT}, {layout.SHARDS}/*.safetensors"

    @classmethod
    def recognises(cls, place: Place) -> bool:
        return layout.ABOUT in place.listed()

    @classmethod
    def opened(cls, place: Place) -> Self:
        return cls(place)

    def reading(self, sites: Sequence[str]) -> Self:
        return self  # its shards have all sites

    def __init__(self, place: Place):
        self.place, self.about = place, read_about(place)
        files = place.listed(layout.SHARDS)
        numbers = sorted(int(m[1]) for name in files if (m := RECORD.fullmatch(name)))
        if numbers and max(numbers) >= self.about.shards:
            last = f"{place.address}/{layout.record_name(max(numbers))}"
            raise ValueError(f"{last} belongs to a shard beyond the text of {layout.ABOUT}")
        expected = max([-1, *numbers]) + 1
        expected = max(expected, layout.read_complete(place, self.about))
        self.records: dict[int, Record] = {}
        self.absent: dict[int, str] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            records = list(pool.map(partial(self._record, files=files), numbers))
        for number, record in zip(numbers, records, strict=True):
            if isinstance(record, str):
                self.absent[number] = record
            else:
                self.records[number] = record
        for number in set(range(expected)) - set(numbers):
            self.absent[number] = f"{place.address}/{layout.record_name(number)} is missing"
        self._lock, self._checked = threading.Lock(), set[int]()
        self.info = self._info(len(self.records) + len(self.absent))

    def _record(self, number: int, files: Mapping[str, int]) -> Record | str:
        """A shard's record, or a sentence if it or the size of its data is wrong."""
        try:
            record = read_record(self.place, number, self.about)
            name = layout.data_name(number)
            size = files.get(name.rpartition("/")[2])
            if size != record.bytes:
                raise ValueError(_wrong_size(f"{self.place.address}/{name}", size, record.bytes))
            return record
        except ValueError as error:
            return str(error)

    def _info(self, shards: int) -> StoreInfo:
        about = self.about
        windows = about.order == layout.WINDOWS
        records = self.records
        return StoreInfo(
            sites=about.sites,
            widths=dict.fromkeys(about.sites, about.width),
            stored=about.dtype,
            dtype=torch.bfloat16 if about.dtype == INT8 else DTYPES[about.dtype],
            shard_rows=tuple(records[i].rows if i in records else 0 for i in range(shards)),
            shuffled=not windows,
            context=about.context if windows else None,
            shard_windows=tuple(about.windows_of(i) if i in records else 0 for i in range(shards))
            if windows
            else (),
            origin=about.origin,
            absent=dict(sorted(self.absent.items())),
        )

    def shard(self, number: int, sites: Sequence[str]) -> OwnShard:
        if number in self.absent:
            raise ValueError(self.absent[number])
        try:
            return self._opened(number, sites)
        except ValueError:
            if self.place.lasting:
                raise
            return self._opened(number, sites)  # the download may have been cut off

    def _opened(self, number: int, sites: Sequence[str]) -> OwnShard:
        record, name = self.records[number], layout.data_name(number)
        known = f"{self.place.address}/{name}"
        path = self.place.fetched(name)
        try:
            with self._lock:
                checked = number in self._checked and self.place.lasting
            if checked:
                read_soon(path)
            else:
                _check_hash(path, known, record.bytes, record.sha256)
            windows = self.about.windows_of(number)
            shapes = self.about.shapes(record.rows, windows)
            ends = stored_shapes(0, self.about.width, self.about.dtype)
            read = [site + end for site in sites for end in ends]
            columns = [column for column in shapes if column in OF_ROWS]
            tensors = mapped(path, known, shapes, [*read, *columns])
        finally:
            self.place.done(path)
        shard = OwnShard(tensors, self.about)
        if not checked:
            if reason := shard.defect():
                raise ValueError(f"{known} is damaged: {reason}")
            with self._lock:
                self._checked.add(number)
        return shard

    def moments(self) -> dict[str, Moments] | None:
        """Those that were written when the store was complete, if they are of the rows that are there."""
        if self.absent or layout.STATISTICS not in self.place.listed():
            return None
        known = f"{self.place.address}/{layout.STATISTICS}"
        path = self.place.fetched(layout.STATISTICS)
        try:
            shapes = layout.statistics_shapes(self.about.sites, self.about.width)
            moments = layout.moments_in(mapped(path, known, shapes, list(shapes)), self.about.sites)
        finally:
            self.place.done(path)
        if any(site.rows != self.info.rows for site in moments.values()):
            return None  # more shards have been written since
        for site, of_site in moments.items():
            if not 0 < of_site.norm < math.inf or not 0 < of_site.mean_square < math.inf:
                raise ValueError(f"{known} is damaged: its norm of {site} is no positive number")
        return moments

    def statistics(self) -> dict[str, Moments]:
        """The moments of every site over all shards, merged in order."""
        total = {site: nothing(self.about.width) for site in self.about.sites}
        for number in self.records:
            for site, part in self.statistics_of(number).items():
                total[site] = merged(total[site], part)
        return total

    def statistics_of(self, number: int) -> dict[str, Moments]:
        record, name = self.records[number], layout.statistics_name(number)
        known, path = f"{self.place.address}/{name}", self.place.fetched(name)
        try:
            _check_hash(path, known, record.statistics_bytes, record.statistics_sha256)
            shapes = layout.statistics_shapes(self.about.sites, self.about.width)
            tensors = mapped(path, known, shapes, list(shapes))
        finally:
            self.place.done(path)
        moments = layout.moments_in(tensors, self.about.sites)
        if any(site.rows != record.rows for site in moments.values()):
            raise ValueError(f"{known} is damaged: its number of rows is not the shard's")
        return moments


OF_ROWS = (*layout.COLUMNS, layout.WINDOW_TOKENS, layout.KEPT)


@final
@dataclass(frozen=True, eq=False)
class OwnShard:
    """Some tensors of a shard, mapped from its file."""

    tensors: Mapping[str, Tensor]
    about: About

    @property
    def tokens_N(self) -> Tensor:
        return self.tensors[layout.TOKENS]

    @property
    def positions_N(self) -> Tensor:
        return self.tensors[layout.POSITIONS]

    @property
    def documents_N(self) -> Tensor:
        """The number of each row's document, as in `TokenWindows.documents`."""
        return self.tensors[layout.DOCUMENTS]

    @property
    def kept_N(self) -> None:
        return None

    @property
    def windows(self) -> ShardWindows | None:
        if self.about.order != layout.WINDOWS:
            return None
        return ShardWindows(self.tensors[layout.WINDOW_TOKENS], self.tensors[layout.KEPT].bool())

    def rows(self, site: str, low: int, high: int) -> Tensor:
        values = self.tensors[site][low:high]
        if self.about.dtype != INT8:
            return values
        return unpacked(values, self.tensors[site + SCALE][low:high])

    def defect(self) -> str | None:
        """What is wrong with its integers, or None."""
        for name, end in {
            layout.TOKENS: self.about.vocabulary,
            layout.POSITIONS: self.about.context,
        }.items():
            column = self.tensors[name]
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) < end:
                return f"{name} are not all from 0 to {end - 1}"
        windows = self.windows
        if windows is None:
            return None
        tokens_BP, kept_BP = windows
        if int(self.tensors[layout.KEPT].max()) > 1 or int(kept_BP.sum()) != len(self.tokens_N):
            return f"{layout.KEPT} marks other positions than there are rows"
        if not 0 <= int(tokens_BP.min()) <= int(tokens_BP.max()) < self.about.vocabulary:
            return f"{layout.WINDOW_TOKENS} are not all from 0 to {self.about.vocabulary - 1}"
        positions = torch.arange(self.about.context).expand_as(kept_BP)[kept_BP]
        same = torch.equal(tokens_BP[kept_BP], self.tokens_N)
        if not same or not torch.equal(positions.int(), self.positions_N):
            return "its rows are not those of its windows"
        return None


def _check_hash(path: Path, known: str, size: int, digest: str) -> None:
    try:
        actual = path.stat().st_size
        if actual != size:
            raise ValueError(_wrong_size(known, actual, size))
        if sha256(path) != digest:
            raise ValueError(f"{known} does not match its record (sha256 differs): it is damaged")
    except FileNotFoundError:
        raise ValueError(f"{known} is missing") from None


def _wrong_size(known: str, actual: int | None, size: int) -> str:
    if actual is None:
        return f"{known} is missing"
    state = "truncated" if actual < size else "damaged"
    return f"{known} has {actual} bytes where its record says {size}: it is {state}"
