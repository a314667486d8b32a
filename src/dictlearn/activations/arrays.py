"""Plain arrays of activations in files that any tool can have written: .npy, .npz, .safetensors.

    x.npy                       one array, named x
    x.npz, x.safetensors        arrays by key
    folder/<name>.npy           one array a file, named by it
    folder/<name>/*.npy         one array, whose rows are in several files, in the order of their names
    folder/*.npz, *.safetensors the same of arrays by key: every file has the same keys

Files are mapped into memory, except compressed ones. Sizes in headers are compared with the files', and
no pickle is loaded.
"""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, cast, final

import numpy as np
import torch
from torch import Tensor

from dictlearn.disk.errors import NUMPY_ERRORS, error_text
from dictlearn.disk.tensors import open_tensors

SUFFIXES = (".npy", ".npz", ".safetensors")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INFLATED_BYTES = 4 << 30  # the largest compressed array that is read, as it has to lie in memory
ROWS_HASHED = 64  # of each array, evenly spread


@final
@dataclass(frozen=True, eq=False)
class Array:
    """Rows [N, D] or [N, S, D], in one tensor or several that follow one another."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(part) for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part) for part in self.parts))

    def rows(self, low: int, high: int) -> Tensor:
        """Rows low to high - 1; mapped from the disk if they are in one part."""
        pieces = []
        number = bisect_right(self._ends, low)
        while low < high:
            start = self._ends[number] - len(self.parts[number])
            pieces.append(self.parts[number][low - start : high - start])
            low, number = self._ends[number], number + 1
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


def open_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a file or a folder, by name.

    Raises ValueError, in one sentence that names the file, if there is none or one can't be read.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: want a file that ends in {', '.join(SUFFIXES)}, or a folder")
    if not path.is_file():
        raise ValueError(f"{path} is not there")
    return {name: Array((tensor,)) for name, tensor in _in_file(path).items()}


def as_array(name: str, value: Any) -> Array:
    """An array of numpy or torch as it is, without a copy. Raises ValueError, which calls it `name`."""
    if isinstance(value, np.ndarray):
        value = _as_tensor(value, name)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: is a {type(value).__name__}; want an array of numpy or torch")
    return Array((_checked(value.detach(), name),))


def fingerprint(arrays: Mapping[str, Array]) -> str:
    """A hash of names, shapes, dtypes and some rows of each array, as all of them could take hours."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array}\n".encode())
        n = array.shape[0]
        for number in sorted({i * (n - 1) // ROWS_HASHED for i in range(ROWS_HASHED + 1)}):
            row = array.rows(number, number + 1).cpu().contiguous()
            digest.update(row.view(torch.uint8).numpy().tobytes())
    return f"sha256 {digest.hexdigest()[:16]}"


def _in_folder(folder: Path) -> dict[str, Array]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    kinds = sorted({path.suffix for path in files})
    if len(kinds) > 1:
        raise ValueError(
            f"{folder}: holds files that end in {' and in '.join(kinds)}; want one kind"
        )
    if kinds == [".npy"]:
        return {path.stem: Array((_npy(path),)) for path in files}
    if files:
        return _joined(folder, {path.name: _in_file(path) for path in files})
    found = {}
    for inside in sorted(path for path in folder.iterdir() if path.is_dir()):
        parts = sorted(inside.glob("*.npy"))
        if parts:
            rows = {path.name: {inside.name: _npy(path)} for path in parts}
            found |= _joined(inside, rows)
    if not found:
        raise ValueError(f"{folder}: has no file that ends in {', '.join(SUFFIXES)}")
    return found


def _joined(folder: Path, files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Array]:
    """Arrays whose rows are in several files, which have the same names, widths and dtypes."""
    first_file, first = next(iter(files.items()))
    for file, arrays in files.items():
        for name in sorted({*first, *arrays}):
            ours, theirs = (_row(some.get(name)) for some in (arrays, first))
            if ours != theirs:
                raise ValueError(
                    f"{folder / file}: a row of {name} is {ours}, and in {first_file} {theirs}; want "
                    f"files whose rows can follow one another"
                )
    return {name: Array(tuple(arrays[name] for arrays in files.values())) for name in first}


def _row(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    return f"{list(tensor.shape[1:])} {str(tensor.dtype).removeprefix('torch.')}"


def _in_file(path: Path) -> dict[str, Tensor]:
    """The arrays of a file that can be activations; others, such as labels, are left out."""
    match path.suffix:
        case ".npy":
            return {path.stem: _npy(path)}
        case ".npz":
            found = _npz(path)
        case _:
            with open_tensors(path) as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kept = {name: tensor for name, tensor in found.items() if _can_be_rows(tensor)}
    if not kept:
        there = ", ".join(f"{name} {_row(t[None])}" for name, t in found.items()) or "nothing"
        raise ValueError(f"{path}: holds {there}; {WANTED}")
    return kept


WANTED = "want rows of float16, bfloat16, float32 or float64: [N, width] or [N, sites, width]"


def _can_be_rows(tensor: Tensor) -> bool:
    return tensor.dtype in DTYPES and tensor.ndim in (2, 3) and 0 not in tensor.shape


def _checked(tensor: Tensor, where: str) -> Tensor:
    if tensor.layout != torch.strided:
        raise ValueError(f"{where}: is a sparse tensor; want a dense one, such as x.to_dense()")
    if not _can_be_rows(tensor):
        raise ValueError(f"{where}: is {_row(tensor[None])}; {WANTED}")
    return tensor


def _npy(path: Path) -> Tensor:
    return _checked(read_npy(path), str(path))


def read_npy(path: Path) -> Tensor:
    """The numbers of a .npy file, mapped into memory. Raises ValueError, which names the file."""
    try:  # copy-on-write, as torch has no read-only tensors; nothing writes to it
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except NUMPY_ERRORS as error:
        raise _unreadable(path, error) from None
    if not isinstance(array, np.ndarray):  # a zip file with another name
        raise ValueError(f"{path} is not a readable .npy file: it is an archive")
    return _as_tensor(array, str(path))


def _npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an archive: those that are stored as they are mapped, compressed ones read."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    name = member.filename.removesuffix(".npy")
                    with archive.open(member) as inside:
                        array = _member(path, file, member, cast(BinaryIO, inside))
                    if array.dtype.kind in "fiub":
                        found[name] = _as_tensor(array, f"{path}, {name},")
    except NUMPY_ERRORS as error:
        raise _unreadable(path, error) from None
    return found


def _member(path: Path, file: BinaryIO, member: zipfile.ZipInfo, inside: BinaryIO) -> np.ndarray:
    """One array of an archive, after a comparison of its header with its size."""
    version = np.lib.format.read_magic(inside)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _header_2_0
    shape, fortran, dtype = read(inside)
    header, size = inside.tell(), math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects, which are never loaded")
    if header + size != member.file_size:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, not {header + size}")
    order = "F" if fortran else "C"
    if member.compress_type == zipfile.ZIP_STORED:
        file.seek(member.header_offset + 26)  # the lengths of name and extra field, which follow
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        offset = member.header_offset + 30 + name + extra + header
        return np.memmap(path, dtype, "c", offset, shape, order)
    if size > INFLATED_BYTES:
        raise ValueError(
            f"{member.filename} is compressed and takes {size:,} bytes of memory; want numpy.savez, "
            f"which does not compress"
        )
    return np.frombuffer(bytearray(inside.read(size)), dtype).reshape(shape, order=order)


def _header_2_0(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_2_0(file)


def _as_tensor(array: np.ndarray, where: str) -> Tensor:
    """The array as a tensor; it is copied only if its rows go backwards."""
    if array.dtype.kind not in "fiub" or not array.dtype.isnative or array.dtype.itemsize > 8:
        raise ValueError(f"{where}: is of {array.dtype}; {WANTED}")
    if any(step < 0 for step in array.strides):
        array = array.copy()
    with warnings.catch_warnings():  # of a read-only array, which nothing here writes to
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _unreadable(path: Path, error: BaseException) -> ValueError:
    text = " ".join(error_text(error).split()).rstrip(".")
    if "allow_pickle" in text or "Python objects in dtype" in text:
        text = "it is not in NumPy's format, or holds Python objects, which are never loaded"
    return ValueError(
        f"{path} is not a readable {path.suffix} file: {text or type(error).__name__}"
    )


def names_of(arrays: Iterable[str]) -> str:
    """Names for a sentence, the first few of many."""
    listed = list(arrays)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
