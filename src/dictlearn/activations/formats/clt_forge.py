"""Read the activations that CLT-Forge stores for cross-layer transcoders.

    ctx_<P>/activations_ctx_<P>_split_<i>.safetensors   act_in, act_out [N, L, D]; tokens int64 [N]
    ctx_<P>/activations_ctx_<P>_split_<i>.bin           the same in 8 bits, compressed

`act_in` is every layer's `ln2.hook_normalized`, our mlp_norm.L, and `act_out` its `hook_mlp_out`. Rows
are those of windows of P tokens in reading order. The model read a BOS before each, which has no row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Self, final

import torch

from dictlearn.activations.foreign import (
    MANIFEST_BYTES,
    Described,
    File,
    Seen,
    TensorShard,
    check_finite,
    described,
    local_file,
    zeros,
)
from dictlearn.activations.formats._clt_forge_bin import (
    ACT_IN,
    ACT_OUT,
    TOKENS,
    Compressed,
    decompressed,
)
from dictlearn.activations.place import Place
from dictlearn.activations.protocol import Origin, StoreInfo
from dictlearn.activations.tensors import mapped

SITES = {ACT_IN: "mlp_norm", ACT_OUT: "mlp_out"}
FOLDER = re.compile(r"ctx_(\d{1,9})")
SPLIT = re.compile(r"activations_ctx_(\d{1,9})_split_(\d{1,9})\.(safetensors|bin)")
THREADS = 8  # that read the beginnings of files


@final
class Store:
    """Splits with the inputs and outputs of all MLPs."""

    name: ClassVar[str] = "clt_forge"
    files: ClassVar[str] = "ctx_<P>/activations_ctx_<P>_split_*.safetensors or .bin"

    @classmethod
    def recognises(cls, place: Place) -> bool:
        return bool(_splits(place))

    @classmethod
    def opened(cls, place: Place) -> Self:
        found = _splits(place)
        if len(found) != 1:
            lengths = ", ".join(f"ctx_{context}" for context in sorted(found))
            raise ValueError(
                f"{place.address} has {lengths}: name one of them"
                if found
                else f"{place.address} has no {cls.files}"
            )
        ((context, files),) = found.items()
        return cls(place, context, files)

    def __init__(self, place: Place, context: int, files: Mapping[int, File]):
        self.place, self._context, self._files = place, context, files
        self._seen = Seen(place)
        numbers = range(max(files) + 1) if max(files) <= 100 * len(files) + 1000 else sorted(files)
        self._numbers = list(numbers)
        with ThreadPoolExecutor(THREADS) as pool:
            shapes = list(pool.map(self._shape_of, self._numbers))
        absent = {n: shape for n, shape in enumerate(shapes) if isinstance(shape, str)}
        self._shapes = {n: shape for n, shape in enumerate(shapes) if not isinstance(shape, str)}
        if not self._shapes:
            raise ValueError(next(iter(absent.values())))
        dtype, (_, layers, width) = next(iter(self._shapes.values()))
        for number, (other, shape) in list(self._shapes.items()):
            if other != dtype or shape[1:] != (layers, width):
                absent[number] = (
                    f"{self._where(number)} is {other} {list(shape)}, unlike other splits"
                )
                del self._shapes[number]
        sites = tuple(f"{kind}.{layer}" for kind in SITES.values() for layer in range(layers))
        self.info = StoreInfo(
            sites=sites,
            widths=dict.fromkeys(sites, width),
            stored=str(dtype).removeprefix("torch."),
            dtype=dtype,
            shard_rows=tuple(
                self._shapes[n][1][0] if n in self._shapes else 0 for n in range(len(shapes))
            ),
            shuffled=False,
            context=None,
            shard_windows=(),
            origin=Origin(),
            missing=("model",),
            absent=dict(sorted(absent.items())),
            has_specials=True,
        )

    def reading(self, sites: Sequence[str]) -> Self:
        return self  # its shards have all sites

    def moments(self) -> None:
        return None

    def _where(self, number: int) -> str:
        return f"{self.place.address}/{self._files[self._numbers[number]].name}"

    def _shape_of(self, split: int) -> tuple[torch.dtype, tuple[int, int, int]] | str:
        """dtype and shape [N, L, D] of a split, or a sentence on what is wrong with it."""
        if split not in self._files:
            folder = next(iter(self._files.values())).name.rpartition("_")[0]
            return f"{self.place.address}/{folder}_{split}.safetensors is missing"
        file = self._files[split]
        where = f"{self.place.address}/{file.name}"
        try:
            if file.name.endswith(".bin"):
                return Compressed.of(where, self._beginning(file)).shape
            return _checked(where, described(self.place, file.name, file.size))
        except ValueError as error:
            return str(error)

    def _beginning(self, file: File) -> bytes:
        """The JSON of a compressed split."""
        length = int.from_bytes(self.place.part(file.name, 0, 4), "little")
        if length > min(MANIFEST_BYTES, file.size):
            raise ValueError(f"{self.place.address}/{file.name} is truncated, or not of CLT-Forge")
        return self.place.part(file.name, 4, 4 + length)

    def shard(self, number: int, sites: Sequence[str]) -> TensorShard:
        if number in self.info.absent:
            raise ValueError(self.info.absent[number])
        file, where = self._files[self._numbers[number]], self._where(number)
        dtype, shape = self._shapes[number]
        with local_file(self.place, file.name, file.size) as path:
            if file.name.endswith(".bin"):
                kinds = {site.partition(".")[0] for site in sites}
                read = [entry for entry, kind in SITES.items() if kind in kinds]
                tensors = decompressed(
                    path, where, Compressed.of(where, self._beginning(file)), read
                )
            else:
                both = {entry: (dtype, list(shape)) for entry in SITES}
                wanted = {**both, TOKENS: (torch.int64, [shape[0]])}
                tensors = mapped(path, where, wanted, list(wanted))
        values = {}
        for site in sites:
            kind, _, layer = site.partition(".")
            entry = next(entry for entry, known in SITES.items() if known == kind)
            values[site] = [tensors[entry][:, int(layer)]]
            if number not in self._seen:
                check_finite(where, values[site][0])
        self._seen.add(number)
        tokens_N = tensors.get(TOKENS, zeros(shape[0]))
        return TensorShard(values, tokens_N, torch.arange(shape[0]) % self._context + 1)


def _splits(place: Place) -> dict[int, dict[int, File]]:
    """The splits by P, here or in folders ctx_<P>."""
    found: dict[int, dict[int, File]] = {}
    for folder in ("", *filter(FOLDER.fullmatch, place.folders())):
        for name, size in place.listed(folder).items():
            if match := SPLIT.fullmatch(name):
                splits, split = found.setdefault(int(match[1]), {}), int(match[2])
                file = File(f"{folder}/{name}".lstrip("/"), size)
                # Its own reader prefers the compressed one of two.
                if split not in splits or name.endswith(".bin"):
                    splits[split] = file
    return {context: splits for context, splits in found.items() if context}


def _checked(where: str, shapes: Described) -> tuple[torch.dtype, tuple[int, int, int]]:
    """dtype and [N, L, D] of a split. Raises ValueError, which calls it `where`."""
    if not {ACT_IN, ACT_OUT, TOKENS} <= shapes.keys() or shapes[ACT_IN] != shapes[ACT_OUT]:
        raise ValueError(
            f"{where} is damaged: want {ACT_IN} and {ACT_OUT} of one shape, and {TOKENS}"
        )
    dtype, shape = shapes[ACT_IN]
    if not dtype.is_floating_point or dtype.itemsize == 1 or len(shape) != 3 or 0 in shape:
        raise ValueError(f"{where} is damaged: {ACT_IN} is {dtype} {shape}; want [N, L, D]")
    if shapes[TOKENS] != (torch.int64, shape[:1]):
        raise ValueError(
            f"{where} is damaged: {TOKENS} is {shapes[TOKENS]}; want int64 {shape[:1]}"
        )
    return dtype, (shape[0], shape[1], shape[2])
