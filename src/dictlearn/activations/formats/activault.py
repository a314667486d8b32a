"""Read the activations that Activault stores: the folder of one run.

    cfg.json                               run_name, transformer_config: {model_name, ...}, ...
    <hook>/metadata.json                   dtype, shape [n, T, D], input_ids_shape [n, T], bytes_per_file
    <hook>/statistics.json                 mean, std, norm, M2
    <hook>/<uuid>--<number>_<job>.saved.pt states [n, T, D], input_ids [n, T], tensor_bytes

A file with the same uuid is of the same text in every hook. Special tokens were cut out of a window's
beginning, and windows were cut to T tokens, so positions are not known. `std` is that of means over
batches, not of activations, and no statistics are read.

A hook `models.layers.L.{mlp,self_attn}.{pre,post}` is the module's input or output. Where a hook caught
nothing, Activault stored a residual stream in its place without saying so: in some versions always the
one after layer L, in others for `pre` the one before it. So a hook is named here only if it means the
same in both. After the last layer, that is the residual stream after the model's last norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from dictlearn.activations.foreign import (
    File,
    Seen,
    TensorShard,
    check_finite,
    check_together,
    local_file,
    read_json,
    zeros,
)
from dictlearn.activations.place import Place
from dictlearn.activations.protocol import Origin, StoreInfo
from dictlearn.disk.torch_saved import loaded

CONFIG, METADATA = "cfg.json", "metadata.json"
STATES, INPUT_IDS = "states", "input_ids"
SAVED = re.compile(r"(.{1,80})--(\d{1,9})_(\w{1,40})\.saved\.pt")
DTYPES = {f"torch.{name}": getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
LARGEST = 1 << 40
BEFORE = re.compile(r".*(self_attn\.pre|hook_resid_pre)")
AFTER = re.compile(r"blocks\.\d+\.hook_resid_post")
UNCLEAR = (
    "where no hook caught it, as attention's inputs by keyword, it is the residual stream before the "
    "layer or after it, by version"
)
LAST = (
    "is what transformers calls a hidden state: for the model's last layer, that is after the last norm "
    "and no resid_post"
)


@final
class Store:
    """Files of one or several hooks of a run."""

    name: ClassVar[str] = "activault"
    files: ClassVar[str] = f"<hook>/{METADATA}, <hook>/*.saved.pt"

    @classmethod
    def recognises(cls, place: Place) -> bool:
        for folder in place.folders():
            files = place.listed(folder)
            if METADATA in files and any(map(SAVED.fullmatch, files)):
                return True
        return False

    @classmethod
    def opened(cls, place: Place) -> Self:
        files = {hook: _saved(place, hook) for hook in place.folders()}
        files = {hook: groups for hook, groups in files.items() if groups}
        if not files:
            raise ValueError(f"{place.address} has no {cls.files}")
        about = {hook: About(place, hook) for hook in files}
        return cls(place, files, about, tuple(files))

    def __init__(
        self,
        place: Place,
        files: Mapping[str, Mapping[str, File]],
        about: Mapping[str, About],
        hooks: tuple[str, ...],
    ):
        self.place, self._files, self._about = place, files, about
        self._seen = Seen(place)
        self._groups = sorted({group for groups in files.values() for group in groups})
        first = about[hooks[0]]
        absent = {}
        for number, group in enumerate(self._groups):
            for hook in hooks:
                if group not in files[hook]:
                    absent[number] = f"{place.address}/{hook}/{group}--*.saved.pt is missing"
                elif (size := files[hook][group].size) < about[hook].bytes:
                    absent[number] = (
                        f"{place.address}/{files[hook][group].name} is truncated: it has {size:,} bytes, "
                        f"and its tensors {about[hook].bytes:,}"
                    )
        rows = first.windows * first.length
        self.info = StoreInfo(
            sites=tuple(files),
            widths={hook: about[hook].width for hook in files},
            stored=str(first.dtype).removeprefix("torch."),
            dtype=first.dtype,
            shard_rows=tuple(0 if n in absent else rows for n in range(len(self._groups))),
            shuffled=False,
            context=None,
            shard_windows=(),
            origin=Origin(model=self._model()),
            missing=("positions",),
            absent=absent,
            has_specials=True,
            unclear={hook: UNCLEAR for hook in files if BEFORE.fullmatch(hook)},
            cautions={hook: f"{hook} {LAST}" for hook in files if AFTER.fullmatch(hook)},
        )

    def reading(self, sites: Sequence[str]) -> Self:
        return type(self)(self.place, self._files, self._about, tuple(sites))

    def moments(self) -> None:
        return None

    def _model(self) -> str | None:
        if CONFIG not in self.place.listed():
            return None
        said = read_json(self.place, CONFIG)
        config = said.get("transformer_config") if isinstance(said, dict) else None
        name = config.get("model_name") if isinstance(config, dict) else None
        return name if isinstance(name, str) and len(name) < 500 else None

    def shard(self, number: int, sites: Sequence[str]) -> TensorShard:
        if number in self.info.absent:
            raise ValueError(self.info.absent[number])
        ids: Tensor | None = None
        values = {}
        for hook in sites:
            file = self._files[hook][self._groups[number]]
            where = f"{self.place.address}/{file.name}"
            with local_file(self.place, file.name, file.size) as path:
                states, found = self._about[hook].tensors(where, loaded(path, where, mapped=True))
            if ids is not None and found is not None:
                check_together(where, INPUT_IDS, ids, found)
            ids = found if ids is None else ids
            values[hook] = [states.flatten(0, 1)]
            if number not in self._seen:
                check_finite(where, values[hook][0])
        self._seen.add(number)
        rows = self.info.shard_rows[number]
        return TensorShard(values, zeros(rows) if ids is None else ids.flatten(), zeros(rows))


@final
class About:
    """What a hook's metadata says of each of its files."""

    def __init__(self, place: Place, hook: str):
        where, said = f"{place.address}/{hook}/{METADATA}", read_json(place, f"{hook}/{METADATA}")
        shape = said.get("shape") if isinstance(said, dict) else None
        match shape:
            case [int() as windows, int() as length, int() as width] if all(
                0 < n < LARGEST for n in (windows, length, width)
            ):
                self.windows, self.length, self.width = windows, length, width
            case _:
                raise ValueError(f"{where} has no shape [n, T, D] of a file")
        dtype = DTYPES.get(str(said.get("dtype")))
        if dtype is None:
            raise ValueError(
                f"{where} has dtype={str(said.get('dtype'))[:40]}: want {', '.join(DTYPES)}"
            )
        if "bytes_per_file" not in said:
            raise ValueError(
                f"{where} has no bytes_per_file: it was written before the first file was, and its sizes "
                "are those of one batch"
            )
        self.dtype = dtype
        self.bytes = windows * length * width * dtype.itemsize

    def tensors(self, where: str, content: Any) -> tuple[Tensor, Tensor | None]:
        """States [n, T, D] and token ids [n, T] of a file; early files have no ids.

        Raises ValueError, which calls the file `where`, if they have other shapes.
        """
        content = {STATES: content} if isinstance(content, Tensor) else content
        states = content.get(STATES) if isinstance(content, dict) else None
        shape = [self.windows, self.length, self.width]
        if (
            not isinstance(states, Tensor)
            or states.dtype != self.dtype
            or list(states.shape) != shape
        ):
            raise ValueError(f"{where} is damaged: want {STATES} as {self.dtype} {shape}")
        ids = content.get(INPUT_IDS)
        if ids is None:
            return states, None
        if not isinstance(ids, Tensor) or ids.is_floating_point() or list(ids.shape) != shape[:2]:
            raise ValueError(f"{where} is damaged: want {INPUT_IDS} as integers {shape[:2]}")
        return states, ids


def _saved(place: Place, hook: str) -> dict[str, File]:
    """The files of a hook by their group's uuid. Of two attempts at one, the later counts."""
    found: dict[str, tuple[int, File]] = {}
    for name, size in place.listed(hook).items():
        if match := SAVED.fullmatch(name):
            attempt, file = int(match[2]), File(f"{hook}/{name}", size)
            if match[1] not in found or found[match[1]][0] < attempt:
                found[match[1]] = (attempt, file)
    return {group: file for group, (_, file) in sorted(found.items())}
