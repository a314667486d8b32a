"""Nested Python state <-> tensors.safetensors + state.json, without pickle.

Values that JSON has are written as they are. Others become an object with one "$" key:

    {"$tensor": name}   {"$array": name}   {"$scalar": name}   data in tensors.safetensors
    {"$tuple": [...]}   {"$float": "nan"}  {"$items": [[key, value], ...]}   any other dict

A value of any other type is refused, so every state that can be saved loads with the same types.
A file that `write_state` could not have written raises ValueError.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dictlearn.ckpt.files import STORABLE, read_tensors, write_tensors
from dictlearn.disk.strict_json import read_json

TENSORS = "tensors.safetensors"
STATE = "state.json"
MAX_DEPTH = 100  # real states reach about 8; a cycle ends here too

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors.safetensors and state.json into `folder`.

    Raises:
        TypeError: a value could not be read back; the message names its path in the tree.
        OSError: the file cannot be written.
    """
    tensors, document = encode(state)
    write_tensors(folder / TENSORS, tensors)
    with open(folder / STATE, "w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=1, allow_nan=False))


def read_state(folder: Path) -> dict[str, Any]:
    """The state that `write_state` wrote; tensors are on the CPU and own their memory.

    Raises:
        ValueError: one sentence, for files that `write_state` could not have written.
    """
    path = folder / STATE
    try:
        state = decode(read_tensors(folder / TENSORS), read_json(path))
    except _Malformed as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: want an object at the top")
    return state


def encode(state: Any) -> tuple[dict[str, Tensor], Any]:
    """(tensors by name, JSON document). Tensors that share all their memory are stored once."""
    encoder = _Encoder()
    document = encoder.encode(state, ())
    return encoder.tensors, document


def decode(tensors: Mapping[str, Tensor], document: Any) -> Any:
    """The inverse of `encode`. Every tensor must be used, and every named tensor must exist."""
    decoder = _Decoder(tensors)
    state = decoder.decode(document, ())
    if unused := sorted(tensors.keys() - decoder.used):
        raise _Malformed(f"the tensors {_some(unused)} belong to no entry")
    return state


def leaves(state: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    """(path, value) of everything in `state` that is not a container, and of empty containers."""
    if isinstance(state, dict) and state:
        for key, value in state.items():
            yield from leaves(value, (*path, key))
    elif isinstance(state, list | tuple) and state:
        for index, value in enumerate(state):
            yield from leaves(value, (*path, index))
    else:
        yield path, state


def path_text(path: tuple[str | int, ...]) -> str:
    """("optimizer_states", 0, "lr") -> "optimizer_states[0].lr"."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".") or "the state itself"


class _Malformed(ValueError):
    """The document is not one that `encode` produces."""


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._stored: dict[tuple, str] = {}

    def encode(self, value: Any, path: tuple[str | int, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise TypeError(f"{path_text(path[:6])}...: nested more than {MAX_DEPTH} deep")
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": str(value)}
        if kind is list:
            return [self.encode(item, (*path, i)) for i, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self.encode(item, (*path, i)) for i, item in enumerate(value)]}
        if kind in (dict, OrderedDict):
            return self._mapping(value, path)
        if kind in (Tensor, nn.Parameter):
            return {"$tensor": self._store(value, path)}
        if isinstance(value, np.ndarray | np.generic):
            return self._numpy(value, path)
        raise TypeError(
            f"{path_text(path)} is a {kind.__module__}.{kind.__qualname__}: a checkpoint holds "
            "None, bool, int, float, str, list, tuple, dict, tensors and numpy arrays"
        )

    def _mapping(self, value: dict, path: tuple[str | int, ...]) -> dict[str, Any]:
        if wrong := [key for key in value if type(key) not in (str, int)]:
            raise TypeError(f"{path_text(path)} has the key {wrong[0]!r}: want strings and ints")
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(item, (*path, key)) for key, item in value.items()}
        return {"$items": [[key, self.encode(item, (*path, key))] for key, item in value.items()]}

    def _numpy(self, value: np.ndarray | np.generic, path: tuple[str | int, ...]) -> dict:
        array = np.array(value, order="C")
        native = array.dtype.isnative and array.dtype.kind in "biuf" and array.dtype.itemsize <= 8
        if not native or type(value) not in (np.ndarray, array.dtype.type):
            raise TypeError(f"{path_text(path)} is a numpy {array.dtype}: want native numbers")
        tag = "$array" if isinstance(value, np.ndarray) else "$scalar"
        return {tag: self._store(torch.from_numpy(array), path)}

    def _store(self, tensor: Tensor, path: tuple[str | int, ...]) -> str:
        if tensor.dtype not in STORABLE or tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(
                f"{path_text(path)} is a {tensor.layout} {tensor.dtype} tensor on {tensor.device}: "
                "a checkpoint holds dense real ones with data"
            )
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and memory in self._stored:
            return self._stored[memory]
        name = base = ".".join(map(str, path)) or "tensor"
        copies = 1
        while name in self.tensors or name == "__metadata__":  # the format reserves that name
            copies += 1
            name = f"{base}#{copies}"
        self.tensors[name] = tensor
        self._stored[memory] = name
        return name


class _Decoder:
    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        self.used: set[str] = set()

    def decode(self, value: Any, path: tuple[str | int, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise _Malformed(f"{path_text(path[:6])}...: nested more than {MAX_DEPTH} deep")
        if isinstance(value, list):
            return [self.decode(item, (*path, i)) for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if not any(key.startswith("$") for key in value):
            return {key: self.decode(item, (*path, key)) for key, item in value.items()}
        if len(value) != 1:
            raise _Malformed(f"{path_text(path)} mixes plain keys with {_some(value)}")
        ((tag, content),) = value.items()
        match tag:
            case "$tuple" if isinstance(content, list):
                return tuple(self.decode(content, path))
            case "$float" if isinstance(content, str) and content in _NON_FINITE:
                return _NON_FINITE[content]
            case "$items" if isinstance(content, list):
                return self._items(content, path)
            case "$tensor" if isinstance(content, str):
                return self._take(content, path)
            case "$array" | "$scalar" if isinstance(content, str):
                tensor = self._take(content, path)
                if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
                    raise _Malformed(f"{path_text(path)}: numpy has no {tensor.dtype}")
                if tag == "$scalar" and tensor.ndim:
                    raise _Malformed(f"{path_text(path)}: a scalar of shape {list(tensor.shape)}")
                return tensor.numpy() if tag == "$array" else tensor.numpy()[()]
        raise _Malformed(f"{path_text(path)} holds an unknown {tag!r}")

    def _items(self, content: list, path: tuple[str | int, ...]) -> dict[str | int, Any]:
        decoded: dict[str | int, Any] = {}
        for item in content:
            if not isinstance(item, list) or len(item) != 2 or type(item[0]) not in (str, int):
                raise _Malformed(f"{path_text(path)} has an item that is no [key, value] pair")
            key, value = item
            if key in decoded:
                raise _Malformed(f"{path_text(path)} has the key {key!r} twice")
            decoded[key] = self.decode(value, (*path, key))
        return decoded

    def _take(self, name: str, path: tuple[str | int, ...]) -> Tensor:
        if name not in self._tensors:
            raise _Malformed(f"{path_text(path)} wants the tensor {name!r}, which is missing")
        self.used.add(name)
        return self._tensors[name]


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:5])) + (f" and {len(listed) - 5} more" * (len(listed) > 5))
