"""What is done to files to see how their readers take it: bits, lengths, types, names, depth.

`DAMAGES` are what the fuzzes of readers (tests/damaged.py) and of verbs
(tests/damaged_verbs.py) draw from.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dictlearn.ckpt.files import read_tensors, write_tensors
from dictlearn.store import hashes

MANIFEST = "manifest.json"
Damage = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])


def swap(path: Path, rng: random.Random) -> None:
    """Another file of the folder under this one's name."""
    others = [other for other in path.parent.iterdir() if other.is_file()]
    path.write_bytes(rng.choice(sorted(others)).read_bytes())


def scramble(path: Path, rng: random.Random) -> None:
    """A stretch of it becomes something else, of another length."""
    data, new = path.read_bytes(), rng.randbytes(rng.randrange(40))
    start = rng.randrange(len(data) + 1)
    path.write_bytes(data[:start] + new + data[start + rng.randrange(40) :])


def lose(path: Path, rng: random.Random) -> None:
    path.unlink()


ODD = (
    None,
    True,
    -1,
    0,
    10**9,
    10**400,
    1e308,
    0.5,
    "",
    "x",
    "\x1b[31m",
    "../x",
    [],
    {},
    [[1]],
    {"a": 1},
)


def retype(path: Path, rng: random.Random) -> None:
    """One value of a JSON or YAML file, or of a safetensors file's header, becomes another."""
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(_retyped(json.loads(data[8 : 8 + size]), rng)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    elif path.suffix == ".json":
        path.write_text(json.dumps(_retyped(json.loads(path.read_text()), rng)))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(_retyped(json.loads(lines[at]), rng))
        path.write_text("\n".join(lines))
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(_retyped(yaml.safe_load(path.read_text()), rng)))
    else:
        flip(path, rng)


def nest(path: Path, rng: random.Random) -> None:
    """Deeper than any parser likes."""
    path.write_bytes(b"[" * 100_000 if path.suffix in (".json", ".yaml") else path.read_bytes()[1:])


def _retyped(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _retyped(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], _retyped(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


DAMAGES: tuple[Damage, ...] = (flip, flip, cut, swap, scramble, lose, retype, retype, nest)


def make_fit(path: Path, root: Path) -> None:
    """Writes what `path` holds now into the hashes of it in the folders up to `root`, as whoever means
    harm would."""
    if _fit_record(path):
        return
    changed = [path]
    block = re.fullmatch(r"block-(\d+)-(\d+)\.safetensors", path.name)
    if block and (path.parent / hashes.FILE).is_file():
        changed += _fit_rows(path, int(block[1]), int(block[2]))
    for file in changed:
        for folder in file.parents[: len(file.parents) - len(root.parents)]:
            _fit_manifest(file, folder)


def _fit_record(path: Path) -> bool:
    """The record beside a shard of stored activations, if that is what `path` is."""
    shard = re.fullmatch(r"(\d{6})(\.statistics)?\.safetensors", path.name)
    record = path.with_name(f"{shard[1]}.json") if shard else path
    if not shard or not record.is_file():
        return False
    data, key = path.read_bytes(), "statistics_" if shard[2] else ""
    said = json.loads(record.read_text())
    said |= {f"{key}bytes": len(data), f"{key}sha256": hashlib.sha256(data).hexdigest()}
    record.write_text(json.dumps(said))
    return True


def _fit_rows(path: Path, source: int, number: int) -> list[Path]:
    """The hashes of a feature store's block; a list of the file that changed."""
    file = path.parent / hashes.FILE
    try:
        fitting = hashes.of_block(source, number, read_tensors(path))
    except (ValueError, KeyError, TypeError):
        return []  # it is so damaged that no hash is compared
    write_tensors(file, {**read_tensors(file), **fitting})
    return [file]


def _fit_manifest(path: Path, folder: Path) -> None:
    manifest = folder / MANIFEST
    name = path.relative_to(folder).as_posix()
    if not manifest.is_file() or path == manifest:
        return
    said, data = json.loads(manifest.read_text()), path.read_bytes()
    if name in said["files"]:
        said["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_text(json.dumps(said))
