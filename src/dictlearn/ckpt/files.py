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

JSON_BYTES = 256 << 20

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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in memory of their own.

    Raises:
        ValueError: the file is missing or not in the safetensors format, such as a pickle.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # clone: the file is mapped at whatever offset it has, and sums depend on alignment
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def read_json(path: Path) -> Any:
    """Strict JSON: no duplicate keys, no NaN, bounded in size and depth.

    Raises:
        ValueError: one sentence naming the file.
    """
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ValueError(f"more than {JSON_BYTES >> 20} MiB")
        return json.loads(
            path.read_bytes(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError(f"{path} is not readable: nested too deeply") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not readable: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same key twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
