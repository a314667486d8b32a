"""Hashes of a few features at a time, which reveal a flipped bit when a feature is read.

The manifest has a hash of every file, but a block holds thousands of features and is read one feature
at a time. So hashes.safetensors has for each block

    rows-<s>-<n>      uint8 [groups, 32], SHA-256 of each GROUP consecutive features
    columns-<s>-<n>   uint8 [32], of COLUMNS over the whole block
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

FILE = "hashes.safetensors"
GROUP = 16  # features, some 160 kB: hashed in a fraction of a millisecond
COLUMNS = ("count", "maximum", "mean")  # columns that are read for all features at once


def digest(tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of names, types, shapes and values."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha256.digest()


def of_block(source: int, number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The hashes of one block, whose `tensors` have a row for each of its features."""
    n = len(tensors["count"])
    groups = [
        digest({name: tensor[first : first + GROUP] for name, tensor in tensors.items()})
        for first in range(0, n, GROUP)
    ]
    columns = digest({name: tensors[name] for name in COLUMNS})
    return {
        rows_name(source, number): _tensor(groups),
        columns_name(source, number): _tensor([columns])[0],
    }


def rows_name(source: int, number: int) -> str:
    return f"rows-{source}-{number}"


def columns_name(source: int, number: int) -> str:
    return f"columns-{source}-{number}"


def _tensor(digests: list[bytes]) -> Tensor:
    return torch.tensor([list(digest) for digest in digests], dtype=torch.uint8)
