"""manifest.json lists the files of a committed folder with their sizes and SHA-256.

Readers accept a folder only if its manifest verifies. This also detects bits that flipped later,
which safetensors alone does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
SCHEMA = 1
MANIFEST_BYTES = 16 << 20  # the largest manifest that is read; ours are far smaller


def verify(folder: Path) -> dict[str, Any]:
    """Checks every file of `folder` against its manifest, and returns the manifest.

    Raises:
        ValueError: one sentence naming the file and what is wrong with it.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        check_size(folder / name, entry)
        check_content(folder / name, entry)
    return manifest


def check_sizes(folder: Path) -> None:
    """Like `verify`, but reads no file: only that each is there, in the size of the manifest."""
    for name, entry in read_manifest(folder)["files"].items():
        check_size(folder / name, entry)


def check_size(path: Path, entry: Mapping[str, Any]) -> None:
    """Raises ValueError unless `path` is a file of the size in its manifest entry."""
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is missing: the manifest lists it with {entry['bytes']} bytes")
    size = path.stat().st_size
    if size != entry["bytes"]:
        state = "truncated" if size < entry["bytes"] else "damaged"
        raise ValueError(
            f"{path} has {size} bytes where its manifest says {entry['bytes']}: the file is {state}"
        )


def check_content(path: Path, entry: Mapping[str, Any]) -> None:
    """Raises ValueError unless a file has the SHA-256 in its manifest entry."""
    try:
        intact = sha256(path) == entry["sha256"]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not intact:
        raise ValueError(
            f"{path} does not match its manifest (sha256 differs): the file is damaged"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a committed folder. Its form is checked, the files are not.

    Raises:
        ValueError: there is no folder or no valid manifest.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if not path.is_file():
        raise ValueError(f"{path} is missing: nothing here was saved completely")
    try:
        if path.stat().st_size > MANIFEST_BYTES:
            raise ValueError("too large")
        manifest = json.loads(path.read_bytes())
        well_formed = (
            isinstance(manifest, dict)
            and type(manifest["sequence"]) is int
            and all(
                type(entry["bytes"]) is int and type(entry["sha256"]) is str
                for entry in manifest["files"].values()
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        well_formed = False
    if not well_formed:
        raise ValueError(f"{path} cannot be read as a manifest: the file is damaged")
    if manifest.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {manifest.get('schema')!r}: this version reads schema {SCHEMA}"
        )
    for name in manifest["files"]:
        if not stays_inside(name):
            raise ValueError(f"{path} lists {name!r}: file names must stay inside the folder")
    return manifest


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_plain_name(name: str) -> bool:
    """Whether `name` is a single path component of reasonable length."""
    plain = name not in ("", ".", "..") and not set(name) & set("/\\\0")
    return plain and len(name.encode(errors="replace")) <= 200


def stays_inside(name: str) -> bool:
    """Whether a relative path with / between its parts stays inside its folder."""
    return name == str(PurePosixPath(name)) and all(map(is_plain_name, name.split("/")))
