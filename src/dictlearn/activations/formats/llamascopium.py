"""Read the chunks of activations that Llamascopium (lm-saes) writes.

    <hook>/chunk-00000012.safetensors          activation, tokens, mask, attention_mask
    <hook>/shard-3-chunk-00000012.safetensors  the same, of process 3
    <hook>/chunk-00000012.meta.json            a list of dicts: model_name, ...

`activation` is [n, P, D], n windows in reading order, or [N, D], rows that were shuffled before they
were written. The others are [n, P] or [N]. Rows where a mask is 0 are not trained on: `mask` leaves out
special tokens and `attention_mask` pads; earlier versions wrote neither. A chunk has the same rows in
every hook. Instead of safetensors it may be a file of torch.save (.pt).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from dictlearn.activations.foreign import (
    Described,
    File,
    Seen,
    TensorShard,
    check_finite,
    check_together,
    described,
    local_file,
    positions,
    read_json,
    zeros,
)
from dictlearn.activations.place import Place
from dictlearn.activations.protocol import Origin, ShardWindows, StoreInfo
from dictlearn.activations.tensors import mapped
from dictlearn.disk.torch_saved import loaded

ACTIVATION, TOKENS, MASK, ATTENTION_MASK = "activation", "tokens", "mask", "attention_mask"
MASKS = (MASK, ATTENTION_MASK)
META, MODEL_NAME = ".meta.json", "model_name"
CHUNK = re.compile(r"(?:shard-(\d{1,6})-)?chunk-(\d{1,12})\.(safetensors|pt)")
THREADS = 8  # that read the beginnings of files
NO_CHUNK = "has no chunk-*.safetensors, shard-*-chunk-*.safetensors or *.pt in the folder of a hook"


def chunk_name(chunk: int) -> str:
    """The name of a chunk's file in the folder of a hook."""
    return f"chunk-{chunk:08d}.safetensors"


class Key(NamedTuple):
    process: int
    chunk: int


Files = Mapping[str, Mapping[Key, File]]  # of every hook


@final
class Store:
    """Chunks of one or several hooks."""

    name: ClassVar[str] = "llamascopium"
    files: ClassVar[str] = "<hook>/chunk-*.safetensors"

    @classmethod
    def recognises(cls, place: Place) -> bool:
        return any(map(CHUNK.fullmatch, _first_listing(place)))

    @classmethod
    def opened(cls, place: Place) -> Self:
        files = {hook: _chunks(place, hook) for hook in place.folders()}
        files = {hook: chunks for hook, chunks in files.items() if chunks}
        if not files:
            raise ValueError(f"{place.address} {NO_CHUNK}")
        return cls(place, files, tuple(files))

    def __init__(self, place: Place, files: Files, hooks: tuple[str, ...]):
        self.place, self._files, self._hooks = place, files, hooks
        self._keys = _expected(files)
        self._seen = Seen(place)
        lacking = {n: r for n, key in enumerate(self._keys) if (r := self._lacks(key))}
        whole = [n for n in range(len(self._keys)) if n not in lacking]
        with ThreadPoolExecutor(THREADS) as pool:
            shapes = dict(zip(whole, pool.map(self._described, whole), strict=True))
        self._shapes = {n: shape for n, shape in shapes.items() if not isinstance(shape, str)}
        absent = lacking | {n: reason for n, reason in shapes.items() if isinstance(reason, str)}
        if not self._shapes:
            raise ValueError(next(iter(absent.values())))
        self.info = self._info(absent)

    def reading(self, sites: Sequence[str]) -> Self:
        return type(self)(self.place, self._files, tuple(sites))

    def moments(self) -> None:
        return None

    def _lacks(self, key: Key) -> str | None:
        """A sentence if one of the hooks doesn't have a chunk."""
        for hook in self._hooks:
            if key not in self._files[hook]:
                process = f"shard-{key.process}-" if key.process >= 0 else ""
                name = f"{hook}/{process}chunk-{key.chunk:08d}"
                return f"{self.place.address}/{name}.safetensors is missing"
        return None

    def _described(self, number: int) -> Described | str:
        """dtypes and shapes in the first hook's chunk, or a sentence on what is wrong with it."""
        file = self._files[self._hooks[0]][self._keys[number]]
        try:
            return checked(f"{self.place.address}/{file.name}", _described(self.place, file))
        except ValueError as error:
            return str(error)

    def _info(self, absent: dict[int, str]) -> StoreInfo:
        first = next(iter(self._shapes.values()))
        dtype, shape = first[ACTIVATION]
        context = shape[1] if len(shape) == 3 else None
        for number, shapes in list(self._shapes.items()):
            other, at = shapes[ACTIVATION]
            if other != dtype or at[1:] != shape[1:]:
                where = self._where(number, self._hooks[0])
                absent[number] = f"{where} is {other} {at}, and other chunks are {dtype} {shape}"
                del self._shapes[number]
        count = range(len(self._keys))
        sizes = {n: shapes[ACTIVATION][1] for n, shapes in self._shapes.items()}
        windows = {n: size[0] for n, size in sizes.items()}
        return StoreInfo(
            sites=tuple(self._files),
            widths={hook: self._width(hook) for hook in self._files},
            stored=str(dtype).removeprefix("torch."),
            dtype=dtype,
            shard_rows=tuple(windows.get(n, 0) * (context or 1) for n in count),
            shuffled=context is None,
            context=context,
            shard_windows=tuple(windows.get(n, 0) for n in count) if context else (),
            origin=Origin(model=self._model()),
            missing=() if context else ("positions",),
            absent=dict(sorted(absent.items())),
            has_specials=MASK not in first,
        )

    def _width(self, hook: str) -> int:
        """D of a hook, from its first chunk."""
        file = next(iter(self._files[hook].values()))
        shapes = checked(f"{self.place.address}/{file.name}", _described(self.place, file))
        return shapes[ACTIVATION][1][-1]

    def _model(self) -> str | None:
        """The model's name, as the file beside the first chunk gives it."""
        for file in self._files[self._hooks[0]].values():
            folder, _, name = file.name.partition("/")
            meta = f"{name.rpartition('.')[0]}{META}"
            if meta not in self.place.listed(folder):
                return None
            entries = read_json(self.place, f"{folder}/{meta}")
            entry = entries[0] if isinstance(entries, list) and entries else entries
            name = entry.get(MODEL_NAME) if isinstance(entry, dict) else None
            return name if isinstance(name, str) and len(name) < 500 else None
        return None

    def _where(self, number: int, hook: str) -> str:
        return f"{self.place.address}/{self._files[hook][self._keys[number]].name}"

    def shard(self, number: int, sites: Sequence[str]) -> TensorShard:
        if number in self.info.absent:
            raise ValueError(self.info.absent[number])
        columns: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for hook in sites or self._hooks[:1]:
            tensors = self._read(number, hook)
            values[hook] = tensors.pop(ACTIVATION).flatten(0, -2)
            where = self._where(number, hook)
            for name, column in tensors.items():
                check_together(where, name, columns.setdefault(name, column), column)
            if number not in self._seen:
                check_finite(where, values[hook])
        self._seen.add(number)
        return self._assembled(values, columns)

    def _read(self, number: int, hook: str) -> dict[str, Tensor]:
        """The tensors of a chunk, which have the shapes of the first hook's."""
        file, where = self._files[hook][self._keys[number]], self._where(number, hook)
        dtype, shape = self._shapes[number][ACTIVATION]
        wanted = {
            **self._shapes[number],
            ACTIVATION: (dtype, [*shape[:-1], self.info.widths[hook]]),
        }
        names = [name for name in (ACTIVATION, TOKENS, *MASKS) if name in wanted]
        wanted = {name: wanted[name] for name in names}
        with local_file(self.place, file.name, file.size) as path:
            if is_safetensors(file.name):
                return mapped(path, where, wanted, names, others=True)
            tensors = of_torch(where, loaded(path, where, mapped=True))
        for name, (kind, size) in wanted.items():
            tensor = tensors.get(name)
            if tensor is None or tensor.dtype != kind or list(tensor.shape) != size:
                raise ValueError(f"{where} is damaged: want {name} as {kind} {size}")
        return {name: tensors[name] for name in names}

    def _assembled(self, values: dict[str, Tensor], columns: dict[str, Tensor]) -> TensorShard:
        tokens = columns[TOKENS]
        masks = [columns[name].flatten() != 0 for name in MASKS if name in columns]
        kept_N = torch.stack(masks).all(0) if masks else None
        context = self.info.context
        pieces = {hook: [x_ND] for hook, x_ND in values.items()}
        if context is None:
            return TensorShard(pieces, tokens, zeros(len(tokens)), kept_N)
        windows = ShardWindows(tokens, torch.ones(1, dtype=torch.bool).expand(tokens.shape))
        where_N = positions(len(tokens), context)
        return TensorShard(pieces, tokens.flatten(), where_N, kept_N, windows)


def is_safetensors(name: str) -> bool:
    return name.endswith(".safetensors")


def of_torch(where: str, content: object) -> dict[str, Tensor]:
    """The tensors of a file of torch.save. Raises ValueError, which calls it `where`."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} is damaged: it holds no dict of tensors")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def checked(where: str, shapes: Described) -> Described:
    """The shapes of a chunk if they fit each other. Raises ValueError, which calls it `where`."""
    for name in (ACTIVATION, TOKENS):
        if name not in shapes:
            raise ValueError(f"{where} is damaged: it holds no {name!r}")
    dtype, shape = shapes[ACTIVATION]
    if not dtype.is_floating_point or dtype.itemsize == 1 or len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(
            f"{where} is damaged: {ACTIVATION} is {dtype} {shape}; want floating-point [n, P, D] or "
            "[N, D]"
        )
    for name in (TOKENS, *MASKS):
        if name in shapes and (shapes[name][0].is_floating_point or shapes[name][1] != shape[:-1]):
            raise ValueError(
                f"{where} is damaged: {name} is {shapes[name][0]} {shapes[name][1]}; want integers "
                f"{shape[:-1]}"
            )
    return shapes


def _described(place: Place, file: File) -> Described:
    if is_safetensors(file.name):
        return described(place, file.name, file.size)
    where = f"{place.address}/{file.name}"
    with local_file(place, file.name, file.size) as path:
        tensors = of_torch(where, loaded(path, where, mapped=True))
    return {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()}


def _first_listing(place: Place) -> Mapping[str, Any]:
    """The files of the first folder that has any."""
    return next((files for folder in place.folders() if (files := place.listed(folder))), {})


def _chunks(place: Place, hook: str) -> dict[Key, File]:
    """The chunks of a hook, in order."""
    found: dict[Key, File] = {}
    for name, size in place.listed(hook).items():
        if match := CHUNK.fullmatch(name):
            key = Key(int(match[1]) if match[1] else -1, int(match[2]))
            if key in found:
                raise ValueError(
                    f"{place.address}/{hook}/{name} and {found[key].name} are the same chunk: want one"
                )
            found[key] = File(f"{hook}/{name}", size)
    return dict(sorted(found.items()))


def _expected(files: Files) -> list[Key]:
    """All chunks that any hook has, and those missing before a process's last."""
    known = sorted({key for chunks in files.values() for key in chunks})
    last = {key.process: key.chunk for key in known}
    if sum(last.values()) > 100 * len(known) + 1000:  # so numbers are no sizes to believe
        return known
    return [Key(process, chunk) for process, end in last.items() for chunk in range(end + 1)]
