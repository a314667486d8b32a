"""Read arrays that numpy.savez wrote, without pickle and without trusting their sizes."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from dictlearn.disk.errors import NUMPY_ERRORS, error_text

LARGEST_RATIO = 8  # of the size of the unpacked content to the file's


def read_npz(path: Path) -> dict[str, Tensor]:
    """name -> tensor, for arrays of floating-point numbers.

    Raises:
        ValueError: one sentence that names the file.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            members = parts.infolist()
            if sum(member.file_size for member in members) > LARGEST_RATIO * path.stat().st_size:
                raise ValueError(f"it unpacks to more than {LARGEST_RATIO} times its size")
            return {m.filename.removesuffix(".npy"): _array(parts, m) for m in members}
    except NUMPY_ERRORS as error:
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
    """The error's message, or its type if the message is long or not printable."""
    text = " ".join(error_text(error).split()) or type(error).__name__
    return text if text.isprintable() and len(text) <= 300 else type(error).__name__
