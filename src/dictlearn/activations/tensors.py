"""Map safetensors files into memory, after a check of names, dtypes and shapes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dictlearn.disk.tensors import STORABLE, open_tensors


def mapped(
    path: Path,
    name: str,
    wanted: Mapping[str, tuple[torch.dtype, list[int]]],
    read: Collection[str],
    others: bool = False,
) -> dict[str, Tensor]:
    """The tensors `read` of a file with the tensors `wanted`, without copying the data.

    With `others` the file may have other tensors too.

    Raises ValueError, which calls the file `name`, if it is unreadable or has others.
    """
    with open_tensors(path, name) as file:
        names = set(file.keys())
        for tensor in sorted({*wanted} if others else {*names, *wanted}):
            if tensor not in wanted or tensor not in names:
                no = "no " if tensor in wanted else ""
                raise ValueError(f"{name} is damaged: it holds {no}{ascii(tensor)}")
            data = file.get_slice(tensor)
            kind, shape = wanted[tensor]
            if data.get_dtype() != STORABLE[kind] or list(data.get_shape()) != shape:
                raise ValueError(
                    f"{name} is damaged: {tensor} is {data.get_dtype()} {data.get_shape()}, not "
                    f"{STORABLE[kind]} {shape}"
                )
        return {tensor: file.get_tensor(tensor) for tensor in read}


def read_soon(path: Path) -> None:
    """Tells the system to read a file into memory now, without waiting for it."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
