"""The parts of a mixture of texts, as a configuration names them.

`data.parts={code: {data: text, paths: [...]}, chats: {data: chat, path: ...}}` gives each part a kind of
data and that kind's own keys. Here each becomes what `data=<kind>` would be alone, before its keys are
checked. What all parts share is said once, for the mixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

SHARED = (
    "context",
    "held_out",
)  # windows have one length, and a document is on one side in all parts
EXAMPLE = "{data: text, paths: [notes.txt]}"


def texts_in(data: Mapping[Any, Any], key: str = "data") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The texts of a configuration's `data` with their keys: itself, or the parts of a mixture."""
    parts = data.get("parts")
    if not isinstance(parts, Mapping):
        yield key, data
        return
    for name, part in parts.items():
        if isinstance(part, Mapping):
            yield from texts_in(part, f"{key}.parts.{name}")


@contextmanager
def naming_part(key: str) -> Iterator[None]:
    """Lets a part's mistakes name its keys as the mixture has them: data.parts.code.paths."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        if key == "data" or said.startswith(tuple(f"data.{name}=" for name in SHARED)):
            raise
        own = said.startswith("data.")
        said = f"{key}.{said.removeprefix('data.')}" if own else f"{key}: {said}"
        raise ValueError(said) from error


def with_kinds(data: DictConfig, folders: Iterable[str | Path], key: str = "data") -> DictConfig:
    """A mixture whose parts have all the keys of their kinds. Other data is returned as it is.

    Args:
        folders: where kinds of data are looked for, as `data/<kind>.yaml`; the last one found counts.

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
    if "_target_" in part and "data" not in part:  # composed by Hydra, or named here before
        own = {name: part._get_node(name) for name in part if name not in SHARED}
        return OmegaConf.create(own)
    if shared:
        raise ValueError(f"{key}.{shared[0]}: all parts share it; want data.{shared[0]} instead")
    kind = part.get("data")
    if kind not in kinds:
        raise ValueError(f"{key}.data={kind}: want one of {', '.join(sorted(kinds))}")
    keys = {
        name: value for name, value in _loaded(kinds[kind], kinds).items() if name not in SHARED
    }
    given = {name: part._get_node(name) for name in part if name != "data"}
    unknown = [str(name) for name in given if name not in keys or str(name).startswith("_")]
    if unknown:
        there = ", ".join(str(name) for name in keys if not str(name).startswith("_"))
        raise ValueError(
            f"{key}.{unknown[0]}: data={kind} has no such key for a part; it has {there}"
        )
    merged = OmegaConf.create(keys | given)
    return with_kinds(merged, [path.parents[1] for path in kinds.values()], key)


def _loaded(file: Path, kinds: Mapping[str, Path]) -> dict[Any, Any]:
    """The keys of a yaml, and of those that it builds on."""
    found = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(found, dict)
    below: dict[Any, Any] = {}
    for name in found.pop("defaults", []):
        if name in kinds and name != file.stem:
            below |= _loaded(kinds[name], kinds)
    return below | found
