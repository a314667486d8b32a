"""Arrays that numpy.savez wrote, read as data: no pickle, and no size that the file does not hold."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from dictlearn.disk.errors import error_text

MOST_TIMES = 8  # a compressed file unpacks to no more than this, times its own size
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, MemoryError, RuntimeError),
    *(ValueError, TypeError, LookupError, NotImplementedError, SyntaxError, OverflowError),
)


def read_npz(path: Path) -> dict[str, Tensor]:
    """name -> tensor, for arrays of floating-point numbers.

    Raises:
        ValueError: one sentence that names the file.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            members = parts.infolist()
            if sum(one.file_size for one in members) > MOST_TIMES * path.stat().st_size:
                raise ValueError(f"it unpacks to more than {MOST_TIMES} times its size")
            return {one.filename.removesuffix(".npy"): _array(parts, one) for one in members}
    except UNREADABLE as error:
        raise ValueError(f"{path}: is not a readable npz file: {_reason(error)}") from None


def _array(parts: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    name = ascii(member.filename)
    with parts.open(member) as file:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"{name} has a header of version {version}")
        shape, fortran, dtype = read_header[version](file)
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise ValueError(f"{name} holds {dtype} values; want floating-point numbers")
        data = file.read()
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} says shape {list(shape)} and holds {len(data):,} bytes")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(array, dtype.newbyteorder("="), order="C"))


def _reason(error: BaseException) -> str:
    """Numpy's own sentences may be long and quote the file: of those, only what is printable."""
    said = " ".join(error_text(error).split()) or type(error).__name__
    return said if said.isprintable() and len(said) <= 300 else type(error).__name__
