"""The configuration of the parts of a mixture of texts.

`data.parts={code: {data: text, paths: [...]}, chats: {data: chat, path: ...}}` gives each part a kind of
data and that kind's own keys. Each part becomes the configuration that `data=<kind>` would be, before
its keys are checked. Keys that all parts share belong to the mixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

SHARED = ("context", "held_out")  # keys with one value for all parts
EXAMPLE = "{data: text, paths: [notes.txt]}"


def texts_in(data: Mapping[Any, Any], key: str = "data") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The texts of a configuration's `data` with their keys: `data` itself, or the mixture's parts."""
    parts = data.get("parts")
    if not isinstance(parts, Mapping):
        yield key, data
        return
    for name, part in parts.items():
        if isinstance(part, Mapping):
            yield from texts_in(part, f"{key}.parts.{name}")


@contextmanager
def naming_part(key: str) -> Iterator[None]:
    """Makes errors of a part name its keys as in the mixture: data.parts.code.paths."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if key == "data" or text.startswith(tuple(f"data.{name}=" for name in SHARED)):
            raise
        if text.startswith("data."):
            raise ValueError(f"{key}.{text.removeprefix('data.')}") from error
        raise ValueError(f"{key}: {text}") from error


def with_kinds(data: DictConfig, folders: Iterable[str | Path], key: str = "data") -> DictConfig:
    """A mixture whose parts have all keys of their kinds. Other data is returned as it is.

    Args:
        folders: folders with kinds of data, `data/<kind>.yaml`; the last one with a kind counts.

    Raises ValueError, in one sentence that names the key.
    """
    if not isinstance(data.get("parts"), DictConfig):
        return data
    kinds = {
        file.stem: file for folder in folders for file in sorted(Path(folder).glob("data/*.yaml"))
    }
    parts = {
        str(name): _with_kind(f"{key}.parts.{name}", data.parts[name], kinds) for name in data.parts
    }
    return OmegaConf.merge(data, {"parts": None}, {"parts": parts})  # type: ignore[return-value]


def _with_kind(key: str, part: Any, kinds: Mapping[str, Path]) -> DictConfig:
    if not isinstance(part, DictConfig):
        raise ValueError(f"{key}={part}: want a kind of data and its keys, such as {EXAMPLE}")
    shared = [name for name in SHARED if name in part]
    if "_target_" in part and "data" not in part:  # composed by Hydra, or converted before
        own = {name: part._get_node(name) for name in part if name not in SHARED}
        return OmegaConf.create(own)
    if shared:
        raise ValueError(f"{key}.{shared[0]}: all parts share it; want data.{shared[0]} instead")
    kind = part.get("data")
    if kind not in kinds:
        raise ValueError(f"{key}.data={kind}: want one of {', '.join(sorted(kinds))}")
    keys = {name: value for name, value in _load(kinds[kind], kinds).items() if name not in SHARED}
    given = {name: part._get_node(name) for name in part if name != "data"}
    unknown = [str(name) for name in given if name not in keys or str(name).startswith("_")]
    if unknown:
        known = ", ".join(str(name) for name in keys if not str(name).startswith("_"))
        raise ValueError(
            f"{key}.{unknown[0]}: data={kind} has no such key for a part; it has {known}"
        )
    merged = OmegaConf.create(keys | given)
    return with_kinds(merged, [path.parents[1] for path in kinds.values()], key)


def _load(file: Path, kinds: Mapping[str, Path]) -> dict[Any, Any]:
    """The keys of a yaml and of the yamls in its defaults."""
    keys = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(keys, dict)
    defaults: dict[Any, Any] = {}
    for name in keys.pop("defaults", []):
        if name in kinds and name != file.stem:
            defaults |= _load(kinds[name], kinds)
    return defaults | keys
