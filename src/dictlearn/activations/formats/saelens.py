"""Read the data sets of activations that SAELens caches (`CacheActivationsRunner`).

    dataset_info.json           features: <hook>: Array2D [P, D], float32 or float16; token_ids: int32 [P]
    state.json                  _data_files: the names of the files, in order
    data-00000-of-00002.arrow   Arrow's stream format, a row for each window of P tokens

A folder has one hook. Rows of BOS and other special tokens are in it. Whether the windows are whole ones
of the model is not known (`seqpos_slice`), nor of which model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self, TypeVar, final

import torch
from torch import Tensor

from dictlearn.activations.arrow import ArrowStream
from dictlearn.activations.foreign import (
    OF_ARROW,
    Seen,
    TensorShard,
    check_finite,
    damaged,
    local_file,
    positions,
    read_json,
    zeros,
)
from dictlearn.activations.place import Place
from dictlearn.activations.protocol import Origin, StoreInfo
from dictlearn.disk.manifest import is_plain_name

INFO, STATE, FILES = "dataset_info.json", "state.json", "_data_files"
TOKEN_IDS, ARRAY = "token_ids", "Array2D"
DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
DATA = re.compile(r"data-\d+-of-\d+\.arrow")
LARGEST = 1 << 30  # the largest P or D
THREADS = 4

Result = TypeVar("Result")


def data_name(number: int, files: int) -> str:
    return f"data-{number:05d}-of-{files:05d}.arrow"


@final
class Store:
    """A folder of `datasets` with the activations of a hook."""

    name: ClassVar[str] = "saelens"
    files: ClassVar[str] = f"{INFO}, {STATE}, data-*.arrow"

    @classmethod
    def recognises(cls, place: Place) -> bool:
        files = place.listed()
        return {INFO, STATE} <= files.keys() and any(map(DATA.fullmatch, files))

    @classmethod
    def opened(cls, place: Place) -> Self:
        return cls(place)

    def __init__(self, place: Place):
        self.place, self._seen = place, Seen(place)
        self._shapes, self._dtype, self._has_tokens = self._features()
        self._names = self._data_files()
        self._sizes = place.listed()
        with ThreadPoolExecutor(THREADS) as pool:
            rows = list(pool.map(self._rows, range(len(self._names))))
        self._windows = [n if isinstance(n, int) else 0 for n in rows]
        context = next(iter(self._shapes.values()))[0]
        self.info = StoreInfo(
            sites=tuple(self._shapes),
            widths={hook: shape[1] for hook, shape in self._shapes.items()},
            stored=str(self._dtype).removeprefix("torch."),
            dtype=self._dtype,
            shard_rows=tuple(n * context for n in self._windows),
            shuffled=False,
            context=None,
            shard_windows=(),
            origin=Origin(),
            missing=("model",) if self._has_tokens else ("model", "token ids"),
            absent={number: n for number, n in enumerate(rows) if isinstance(n, str)},
            has_specials=True,
        )

    def reading(self, sites: Sequence[str]) -> Self:
        return self  # its shards have all sites

    def moments(self) -> None:
        return None

    def _features(self) -> tuple[dict[str, tuple[int, int]], torch.dtype, bool]:
        """The shape of each hook's windows, their dtype, and whether there are token ids."""
        where, content = f"{self.place.address}/{INFO}", read_json(self.place, INFO)
        features = content.get("features") if isinstance(content, dict) else None
        if not isinstance(features, dict):
            raise ValueError(f"{where} describes no features of a data set")
        arrays = {
            name: feature
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == ARRAY
        }
        if not arrays:
            raise ValueError(f"{where} has no {ARRAY}, which SAELens stores activations in")
        shapes = {name: _shape(where, name, array) for name, array in arrays.items()}
        dtypes = {str(array.get("dtype")) for array in arrays.values()}
        if len(dtypes) > 1 or len({shape[0] for shape in shapes.values()}) > 1:
            raise ValueError(f"{where} has arrays of several lengths or dtypes: want one")
        dtype = DTYPES.get(dtypes.pop())
        if dtype is None:
            raise ValueError(f"{where} has arrays that are not {', '.join(DTYPES)}")
        return shapes, dtype, TOKEN_IDS in features

    def _data_files(self) -> list[str]:
        where, content = f"{self.place.address}/{STATE}", read_json(self.place, STATE)
        entries = content.get(FILES) if isinstance(content, dict) else None
        listed = entries if isinstance(entries, list) else []
        names = [entry.get("filename") for entry in listed if isinstance(entry, dict)]
        plain = [n for n in names if isinstance(n, str) and is_plain_name(n)]
        if not plain or len(plain) < len(listed) or len(set(plain)) < len(plain):
            raise ValueError(f"{where} does not list files of this folder in {FILES}")
        return plain

    def _rows(self, number: int) -> int | str:
        """The windows of a file, or a sentence on what is wrong with it."""
        try:
            return self._open(number, lambda stream: stream.rows)
        except ValueError as error:
            return str(error)

    def _open(self, number: int, use: Callable[[ArrowStream], Result]) -> Result:
        """What `use` makes of a file. Raises ValueError, which names it."""
        name = self._names[number]
        where = f"{self.place.address}/{name}"
        if name not in self._sizes:
            raise ValueError(f"{where} is missing")
        with local_file(self.place, name, self._sizes[name]) as path:
            try:
                return use(ArrowStream(path))
            except OF_ARROW as error:
                raise damaged(where, error) from None

    def shard(self, number: int, sites: Sequence[str]) -> TensorShard:
        if number in self.info.absent:
            raise ValueError(self.info.absent[number])
        columns = self._open(number, lambda stream: self._columns(stream, sites))
        where, windows = f"{self.place.address}/{self._names[number]}", self._windows[number]
        if sum(map(len, next(iter(columns.values()), []))) != windows:
            raise ValueError(f"{where} has changed since it was opened")
        context = next(iter(self._shapes.values()))[0]
        tokens = columns.pop(TOKEN_IDS, None)
        values = {hook: [x.flatten(0, 1) for x in pieces] for hook, pieces in columns.items()}
        if number not in self._seen:
            for pieces in values.values():
                for piece in pieces:
                    check_finite(where, piece)
            self._seen.add(number)
        return TensorShard(
            values,
            zeros(windows * context) if tokens is None else torch.cat(tokens).flatten(),
            positions(windows, context),
        )

    def _columns(self, stream: ArrowStream, sites: Sequence[str]) -> dict[str, list[Tensor]]:
        columns = {site: stream.tensors(site, self._dtype, self._shapes[site]) for site in sites}
        if self._has_tokens:
            context = next(iter(self._shapes.values()))[0]
            columns[TOKEN_IDS] = stream.tensors(TOKEN_IDS, torch.int32, (context,))
        return columns


def _shape(where: str, name: str, array: Mapping[str, Any]) -> tuple[int, int]:
    match array.get("shape"):
        case [int() as context, int() as width] if 0 < context < LARGEST and 0 < width < LARGEST:
            return context, width
    raise ValueError(f"{where} has a shape of {ascii(name)} that is not [P, D]")
