"""Write safetensors without a second copy, and read safetensors strictly.

Whatever a file contains, reading returns its content or raises ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dictlearn.disk.tensors import STORABLE, open_tensors

WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # dtypes of weights


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file; at most one tensor at a time is copied to the CPU.

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
    """name -> (the format's name of the dtype, shape) of a safetensors file, without reading data.

    The reader checks that the file has the length that the header implies.

    Raises:
        ValueError: the file is missing or not in the safetensors format, such as a pickle.
    """
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}


def check_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a tensor that is not floating point or not finite in float32."""
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHTS:
            raise ValueError(
                f"{path}: {ascii(name)} holds {str(tensor.dtype).removeprefix('torch.')} numbers; want "
                f"floating-point ones"
            )
        # One NaN makes both extremes NaN, so this is one pass without a copy.
        if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.float().aminmax()):
            raise ValueError(f"{path}: {ascii(name)} holds NaN or Inf; want finite numbers")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; each owns its memory.

    Raises:
        ValueError: the file is missing or not in the safetensors format, such as a pickle.
    """
    with open_tensors(path) as file:
        # clone aligns the data, which is mapped at any offset: sums depend on alignment
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
