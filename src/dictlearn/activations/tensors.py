"""Safetensors files that somebody else may have written: mapped after a look at what they hold."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlearn.disk.errors import error_text

HEADER_BYTES = 8 << 20
UNREADABLE = (SafetensorError, OSError, RuntimeError, AttributeError, KeyError)
WORDS = {  # of the format, for what we store
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def mapped(
    path: Path,
    name: str,
    wanted: Mapping[str, tuple[torch.dtype, list[int]]],
    read: Collection[str],
) -> dict[str, Tensor]:
    """Tensors `read` of a file that has `wanted` and nothing else, without a copy of their data.

    `name` is what the file is called in sentences. Raises ValueError.
    """
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > HEADER_BYTES:
            raise OSError(f"its header has {header:,} bytes, more than {HEADER_BYTES >> 20} MiB")
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for tensor in sorted({*names, *wanted}):
                if tensor not in wanted or tensor not in names:
                    no = "no " if tensor in wanted else ""
                    raise ValueError(f"{name} is damaged: it holds {no}{ascii(tensor)}")
                found = file.get_slice(tensor)
                kind, shape = wanted[tensor]
                if found.get_dtype() != WORDS[kind] or list(found.get_shape()) != shape:
                    raise ValueError(
                        f"{name} is damaged: {tensor} is {found.get_dtype()} {found.get_shape()}, not "
                        f"{WORDS[kind]} {shape}"
                    )
            return {tensor: file.get_tensor(tensor) for tensor in read}
    except UNREADABLE as error:
        raise ValueError(
            f"{name} is not a readable safetensors file: {error_text(error)}"
        ) from None


def read_soon(path: Path) -> None:
    """Tells the system to read a file into memory now, without waiting for it."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
