"""Open safetensors files that somebody else may have written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dictlearn.disk.errors import error_text

HEADER_BYTES = 8 << 20  # the largest header that is read: names and shapes of some 50,000 tensors

UNREADABLE = (SafetensorError, OSError, RuntimeError, AttributeError, KeyError)

STORABLE = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextmanager
def open_tensors(path: Path, name: str | None = None) -> Iterator[Any]:
    """Yields an open file. Raises ValueError, which calls it `name` or by its path, if unreadable."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > HEADER_BYTES:
            raise OSError(f"its header has {size:,} bytes, more than {HEADER_BYTES >> 20} MiB")
        with safe_open(path, framework="pt") as file:
            yield file
    except UNREADABLE as error:
        reason = error_text(error)
        raise ValueError(f"{name or path} is not a readable safetensors file: {reason}") from None
