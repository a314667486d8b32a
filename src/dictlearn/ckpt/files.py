"""The two file formats: safetensors, written without a second copy, and JSON, read strictly.

Reading trusts nothing: whatever is in a file, the answer is its content or a ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlearn.disk.errors import content_error, error_text

JSON_BYTES = 256 << 20
HEADER_BYTES = 8 << 20  # of a safetensors file: names and shapes of some 50,000 tensors
WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what one may be

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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, one tensor in memory at a time: a GPU's state needs no second copy.

    Format: 8 bytes of header length, the JSON header, then the data without gaps.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": STORABLE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the data starts aligned
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for name in order:
            flat = tensors[name].detach().contiguous().cpu().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """name -> (dtype in the format's words, shape) of a safetensors file, whose data is not read.

    The format's reader has checked that the file is as long as that takes.

    Raises:
        ValueError: the file is missing or not in the safetensors format, such as a pickle.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is not a readable safetensors file: {error_text(error)}"
        ) from None


def check_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights that are not finite floating-point numbers in float32, naming the tensor."""
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHTS:
            raise ValueError(
                f"{path}: {ascii(name)} holds {str(tensor.dtype).removeprefix('torch.')} numbers; want "
                f"floating-point ones"
            )
        # The extremes are NaN where anything is: one pass, and no copy.
        if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.float().aminmax()):
            raise ValueError(f"{path}: {ascii(name)} holds NaN or Inf; want finite numbers")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in memory of their own.

    Raises:
        ValueError: the file is missing or not in the safetensors format, such as a pickle.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            # clone: the file is mapped at whatever offset it has, and sums depend on alignment
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is not a readable safetensors file: {error_text(error)}"
        ) from None


def _check_header(path: Path) -> None:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > HEADER_BYTES:
        raise OSError(f"its header has {size:,} bytes, more than {HEADER_BYTES >> 20} MiB")


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Strict JSON: no duplicate keys, no NaN, bounded in size and depth.

    Raises:
        ValueError: one sentence naming the file.
    """
    try:
        if path.stat().st_size > most:
            raise ValueError(f"more than {most >> 20} MiB")
        return json.loads(
            path.read_bytes(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable: {content_error(error)}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not readable: {error_text(error)}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same key twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
