"""Read the activations that BioNeMo's sparse autoencoders store (`ActivationStore`).

    metadata.json         n_samples, hidden_dim, n_shards, shard_size; often model_name and layer
    shard_00000.parquet   a row for each token, a column for each dimension: dim_0, dim_1, ...

There are no token ids. `layer` is a number that the extracting script gave; what it stands for is not
said, so the user names the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self, TypeVar, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dictlearn.activations.foreign import (
    OF_ARROW,
    Seen,
    TensorShard,
    check_finite,
    damaged,
    local_file,
    read_json,
    scratch,
    zeros,
)
from dictlearn.activations.place import Place
from dictlearn.activations.protocol import Origin, StoreInfo

METADATA, SITE = "metadata.json", "activations"  # the site has no name in the store
SHARD = re.compile(r"shard_(\d{5,9})\.parquet")
SIZES = ("n_samples", "hidden_dim", "n_shards")
LARGEST = 1 << 40
DTYPES = {"halffloat": torch.float16, "float": torch.float32, "double": torch.float64}
COLUMNS_AT_ONCE = 64
THREADS = 4

Result = TypeVar("Result")


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.parquet"


@final
class Store:
    """Shards with the activations of one layer."""

    name: ClassVar[str] = "bionemo"
    files: ClassVar[str] = f"{METADATA}, shard_*.parquet"

    @classmethod
    def recognises(cls, place: Place) -> bool:
        files = place.listed()
        return METADATA in files and any(map(SHARD.fullmatch, files))

    @classmethod
    def opened(cls, place: Place) -> Self:
        return cls(place)

    def __init__(self, place: Place):
        self.place, self._seen, self._sizes = place, Seen(place), place.listed()
        said = read_json(place, METADATA)
        rows, self._width, shards = _sizes(f"{place.address}/{METADATA}", said)
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(self._described, range(shards)))
        absent = {n: reason for n, reason in enumerate(found) if isinstance(reason, str)}
        self._found = {n: shard for n, shard in enumerate(found) if not isinstance(shard, str)}
        if not self._found:
            raise ValueError(next(iter(absent.values())))
        total = sum(count for _, count in self._found.values())
        if not absent and total != rows:
            raise ValueError(
                f"{place.address}/{METADATA} has n_samples={rows}, and there are {total}"
            )
        dtype = next(iter(self._found.values()))[0]
        for number, (other, _) in list(self._found.items()):
            if other != dtype:
                absent[number] = f"{self._where(number)} is {other}, and other shards are {dtype}"
                del self._found[number]
        model, layer = said.get("model_name"), said.get("layer")
        at = f"of layer {layer}" if type(layer) is int else "of a layer that it does not name"
        self.info = StoreInfo(
            sites=(SITE,),
            widths={SITE: self._width},
            stored=str(dtype).removeprefix("torch."),
            dtype=dtype,
            shard_rows=tuple(self._found[n][1] if n in self._found else 0 for n in range(shards)),
            shuffled=False,
            context=None,
            shard_windows=(),
            origin=Origin(model=model if isinstance(model, str) and len(model) < 500 else None),
            missing=("token ids", "positions"),
            absent=dict(sorted(absent.items())),
            unclear={SITE: f"{METADATA} says only that they are {at}"},
        )

    def reading(self, sites: Sequence[str]) -> Self:
        return self

    def moments(self) -> None:
        return None

    def _where(self, number: int) -> str:
        return f"{self.place.address}/{shard_name(number)}"

    def _described(self, number: int) -> tuple[torch.dtype, int] | str:
        """dtype and rows of a shard, or a sentence on what is wrong with it."""
        try:
            return self._open(number, self._dtype_and_rows)
        except ValueError as error:
            return str(error)

    def _open(self, number: int, use: Callable[[pq.ParquetFile], Result]) -> Result:
        """What `use` makes of a file. Raises ValueError, which names it."""
        name, where = shard_name(number), self._where(number)
        if name not in self._sizes:
            raise ValueError(f"{where} is missing")
        with local_file(self.place, name, self._sizes[name]) as path:
            try:
                return use(pq.ParquetFile(pa.memory_map(str(path))))
            except OF_ARROW as error:
                raise damaged(where, error) from None

    def _dtype_and_rows(self, file: pq.ParquetFile) -> tuple[torch.dtype, int]:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        names = {f"dim_{i}" for i in range(self._width)}
        types = {str(schema.field(name).type) for name in names & set(schema.names)}
        if not names <= set(schema.names) or len(types) != 1 or (kind := types.pop()) not in DTYPES:
            raise ValueError(
                f"want columns dim_0 to dim_{self._width - 1} of one floating-point dtype"
            )
        if rows < 1:
            raise ValueError("it has no rows")
        return DTYPES[kind], rows

    def shard(self, number: int, sites: Sequence[str]) -> TensorShard:
        if number in self.info.absent:
            raise ValueError(self.info.absent[number])
        dtype, rows = self._found[number]
        # The columns side by side, in a temporary file: they may be more than the memory holds.
        x_ND = scratch(dtype, (rows, self._width))
        self._open(number, lambda file: self._read(file, x_ND))
        if number not in self._seen:
            check_finite(self._where(number), x_ND)
            self._seen.add(number)
        return TensorShard({SITE: [x_ND]}, zeros(rows), zeros(rows))

    def _read(self, file: pq.ParquetFile, x_ND: Tensor) -> None:
        if self._dtype_and_rows(file) != (x_ND.dtype, len(x_ND)):
            raise ValueError("it has changed since it was opened")
        for low in range(0, self._width, COLUMNS_AT_ONCE):
            names = [f"dim_{i}" for i in range(low, min(low + COLUMNS_AT_ONCE, self._width))]
            table = file.read(columns=names)
            for i, name in enumerate(names):
                column = table.column(name)
                if column.null_count:
                    raise ValueError(f"{name} has nulls")
                x_ND[:, low + i] = torch.from_numpy(column.to_numpy().copy())


def _sizes(where: str, said: Any) -> tuple[int, int, int]:
    """The three numbers of the metadata that are needed. Raises ValueError, which names it."""
    if not isinstance(said, dict):
        raise ValueError(f"{where} has no sizes of shards")
    sizes: list[int] = []
    for name in SIZES:
        value, most = said.get(name), LARGEST if name == "n_samples" else 1 << 20
        if type(value) is not int or not 0 < value < most:
            raise ValueError(f"{where} has {name}={str(value)[:40]}: want a whole number above 0")
        sizes.append(value)
    rows, width, shards = sizes
    return rows, width, shards
