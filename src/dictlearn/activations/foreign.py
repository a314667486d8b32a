"""What readers of other tools' stores share: files that nobody has checked, and shards of tensors."""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from dictlearn.activations.place import Place
from dictlearn.activations.protocol import ShardWindows
from dictlearn.disk.errors import CONTENT_ERRORS, content_error
from dictlearn.disk.tensors import HEADER_BYTES, STORABLE

# What pyarrow raises for a damaged file; ArrowInvalid is a ValueError.
OF_ARROW = (*CONTENT_ERRORS, OSError, NotImplementedError)
MANIFEST_BYTES = 16 << 20  # the largest JSON file that is read
ROWS_AT_ONCE = 8192
DTYPES = {name: dtype for dtype, name in STORABLE.items()}  # by safetensors' names

Described = dict[str, tuple[torch.dtype, list[int]]]  # dtype and shape of tensors by name


class File(NamedTuple):
    """A file as its folder lists it."""

    name: str  # with its folder
    size: int


def read_json(place: Place, name: str) -> Any:
    """The content of a JSON file. Raises ValueError, which names it."""
    try:
        return json.loads(place.read(name, MANIFEST_BYTES))
    except (*CONTENT_ERRORS, OSError) as error:
        if str(error).startswith(place.address):
            raise
        raise ValueError(
            f"{place.address}/{name} is not readable: {content_error(error)}"
        ) from None


def described(place: Place, name: str, size: int) -> Described:
    """dtype and shape of the tensors in a safetensors file of `size` bytes, from its first bytes.

    Raises ValueError, which names the file, if it can't hold them.
    """
    where = f"{place.address}/{name}"
    length = int.from_bytes(place.part(name, 0, 8), "little")
    if length > min(HEADER_BYTES, size - 8):
        raise ValueError(f"{where} is no safetensors file, or truncated: it has {size:,} bytes")
    try:
        header = json.loads(place.part(name, 8, 8 + length))
        header.pop("__metadata__", None)
        found = {
            str(tensor): (DTYPES[entry["dtype"]], [int(n) for n in entry["shape"]])
            for tensor, entry in header.items()
        }
    except CONTENT_ERRORS as error:
        raise ValueError(f"{where} is not readable: {content_error(error)}") from None
    needed = sum(dtype.itemsize * math.prod(shape) for dtype, shape in found.values())
    if any(n < 0 for _, shape in found.values() for n in shape) or needed > size:
        raise ValueError(f"{where} is truncated: it has {size:,} bytes, and its tensors {needed:,}")
    return found


@contextmanager
def local_file(place: Place, name: str, size: int) -> Iterator[Path]:
    """A local file with the content of one that was listed with `size` bytes, while it is opened.

    Raises ValueError, which names it, if it is missing or has another size.
    """
    where = f"{place.address}/{name}"
    path = place.fetched(name)
    try:
        actual = path.stat().st_size
        if actual != size and not place.lasting:  # the download may have been cut off
            place.done(path)
            path = place.fetched(name)
            actual = path.stat().st_size
        if actual != size:
            raise ValueError(f"{where} has {actual:,} bytes where {size:,} were listed")
        yield path
    except FileNotFoundError:
        raise ValueError(f"{where} is missing") from None
    finally:
        place.done(path)


@final
class Seen:
    """The shards whose values were checked once; of files that may change, every time."""

    def __init__(self, place: Place):
        self._lasting, self._numbers, self._lock = place.lasting, set[int](), threading.Lock()

    def __contains__(self, number: int) -> bool:
        with self._lock:
            return number in self._numbers

    def add(self, number: int) -> None:
        if self._lasting:
            with self._lock:
                self._numbers.add(number)


def damaged(where: str, error: Exception) -> ValueError:
    """The sentence on a file that raised one of OF_ARROW while it was read."""
    reason = str(error) if isinstance(error, (ValueError, OSError)) else content_error(error)
    return ValueError(f"{where} is damaged: {(reason or 'unreadable').splitlines()[0]}")


def check_finite(where: str, x_ND: Tensor) -> None:
    """Raises ValueError, which calls the tensor `where`, if it has NaN or infinite values."""
    for start in range(0, len(x_ND), ROWS_AT_ONCE):
        finite = torch.isfinite(x_ND[start : start + ROWS_AT_ONCE]).all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise ValueError(f"{where} is damaged: row {row} has values that are not finite")


@final
@dataclass(frozen=True, eq=False)
class TensorShard:
    """A shard whose sites are tensors [rows, D], each in pieces that follow each other."""

    values: Mapping[str, Sequence[Tensor]]
    tokens_N: Tensor
    positions_N: Tensor
    kept_N: Tensor | None = None
    windows: ShardWindows | None = None

    def rows(self, site: str, low: int, high: int) -> Tensor:
        parts, start = [], 0
        for piece in self.values[site]:
            end = start + len(piece)
            if start < high and low < end:
                parts.append(piece[max(0, low - start) : high - start])
            start = end
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else self.values[site][0][:0]


def check_together(where: str, name: str, first: Tensor, other: Tensor) -> None:
    """Raises ValueError, which calls the file `where`, if two sites' columns differ."""
    if not torch.equal(first, other):
        raise ValueError(f"{where} is damaged: its {name} are not those of the other sites")


def scratch(dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor in a temporary file without a name (TMPDIR), so that the system can page it out.

    Raises OSError if the disk has no room for it.
    """
    numbers = math.prod(shape)
    size = max(1, dtype.itemsize * numbers)
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # a write into a mapping can't fail in a better way
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.truncate(size)
        memory = mmap.mmap(file.fileno(), size)  # is freed with the tensor
    return torch.frombuffer(memory, dtype=dtype, count=numbers).view(*shape)


def zeros(rows: int) -> Tensor:
    """Ids of rows that have none, without memory for them."""
    return torch.zeros(1, dtype=torch.int64).expand(rows)


def positions(windows: int, context: int, first: int = 0) -> Tensor:
    """Positions of the rows of whole windows: int64 [windows * context]."""
    return torch.arange(first, first + context).repeat(windows)
