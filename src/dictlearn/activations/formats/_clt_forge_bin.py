"""Read the compressed splits that CLT-Forge writes as .bin files.

    u32 length | JSON | u32 entries | for each: u32 length, name, u64 length, compressed bytes

The entries are act_in_data, act_in_scale (float32), the same of act_out, and tokens (int64).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dictlearn.activations.foreign import scratch
from dictlearn.disk.errors import CONTENT_ERRORS, content_error

ACT_IN, ACT_OUT, TOKENS = "act_in", "act_out", "tokens"
QUANTISED = {"none": np.dtype(np.float16), "int8": np.dtype(np.int8)}
ORIGINAL = {f"torch.{name}": getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
CODECS = ("none", "zstd", "lz4")
ROWS_AT_ONCE = 256


@final
class Compressed:
    """What the JSON of a compressed split says, as far as it can be read here."""

    def __init__(self, where: str, said: Mapping[str, Any]):
        self.where = where
        dtype, stored, codec = (
            said.get(key) for key in ("original_dtype", "quantization", "compression")
        )
        if dtype not in ORIGINAL or stored not in QUANTISED or codec not in CODECS:
            raise ValueError(
                f"{where} has {stored} of {dtype}, compressed by {codec}: want "
                f"{' or '.join(QUANTISED)} of "
                f"{', '.join(ORIGINAL)}, by {', '.join(CODECS)}"
            )
        if stored != "none" and said.get("symmetric") is not True:
            raise ValueError(
                f"{where} has 8 bits with a zero point, whose shape it does not say: want symmetric ones"
            )
        self.stored, self.codec, self.has_tokens = QUANTISED[stored], codec, said.get("has_tokens")
        shapes = [said.get(f"original_shape_{end}") for end in ("in", "out")]
        match shapes[0]:
            case [int() as rows, int() as layers, int() as width] if min(rows, layers, width) > 0:
                self.shape = (ORIGINAL[dtype], (rows, layers, width))
            case _:
                raise ValueError(f"{where} has a shape that is not [N, L, D]")
        self.scales = {e: said.get(f"scale_shape_{e[4:]}") for e in (ACT_IN, ACT_OUT)}
        allowed = ([1], [], [1, layers, 1])
        if shapes[1] != shapes[0] or any(shape not in allowed for shape in self.scales.values()):
            raise ValueError(f"{where} has shapes that do not fit each other")

    @classmethod
    def of(cls, where: str, data: bytes) -> Self:
        try:
            said = json.loads(data)
            assert isinstance(said, dict), "no JSON object"
        except (*CONTENT_ERRORS, AssertionError) as error:
            reason = content_error(error) if isinstance(error, ValueError) else "no JSON object"
            raise ValueError(f"{where} is not readable: {reason}") from None
        return cls(where, said)

    def unpacked(self, data: bytes, size: int) -> np.ndarray:
        """The bytes of an entry, which has to unpack to `size` of them."""
        if self.codec == "none":
            raw = data
        else:
            try:
                raw = pa.Codec(self.codec).decompress(data, decompressed_size=size)
            except (OSError, ValueError):
                raw = b""
        if len(raw) != size:
            raise ValueError(f"{self.where} is damaged: an entry does not unpack to {size:,} bytes")
        return np.frombuffer(raw, dtype=np.uint8)


def decompressed(
    path: Path, where: str, about: Compressed, read: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors `read` of a compressed split, in a file that has no name, and its tokens.

    Raises ValueError, which calls the file `where`.
    """
    with open(path, "rb") as file:
        file.seek(4 + int.from_bytes(file.read(4), "little"))
        entries = dict(_entries(file, where, path.stat().st_size))
        names = [f"{entry}_{end}" for entry in read for end in ("data", "scale")]
        names += [TOKENS] if about.has_tokens else []
        for name in names:
            if name not in entries:
                raise ValueError(f"{where} is damaged: it holds no {name}")

        def entry(name: str, kind: np.dtype, count: int) -> np.ndarray:
            start, length = entries[name]
            file.seek(start)
            return about.unpacked(file.read(length), count * kind.itemsize).view(kind)

        dtype, shape = about.shape
        tensors: dict[str, Tensor] = {}
        for name in read:
            scale = entry(
                f"{name}_scale", np.dtype(np.float32), math.prod(about.scales[name] or [1])
            )
            packed = entry(f"{name}_data", about.stored, math.prod(shape)).reshape(shape)
            tensors[name] = scratch(dtype, shape)
            layers_1L1 = torch.from_numpy(scale.copy()).view(1, -1, 1)
            for low in range(0, shape[0], ROWS_AT_ONCE):
                part = torch.from_numpy(packed[low : low + ROWS_AT_ONCE].astype(np.float32))
                tensors[name][low : low + ROWS_AT_ONCE] = part * layers_1L1
        if about.has_tokens:
            tensors[TOKENS] = torch.from_numpy(entry(TOKENS, np.dtype(np.int64), shape[0]).copy())
    return tensors


def _entries(file: BinaryIO, where: str, size: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, start and length of the entries of a compressed split."""
    for _ in range(min(16, int.from_bytes(file.read(4), "little"))):
        name = file.read(min(64, int.from_bytes(file.read(4), "little"))).decode(errors="replace")
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - file.tell():
            raise ValueError(f"{where} is truncated in {ascii(name)}")
        yield name, (file.tell(), length)
        file.seek(length, 1)
