"""Folders that are whole or absent: how every checkpoint and dictionary reaches the disk.

    write into name.tmp-<pid>  ->  fsync each file  ->  manifest.json last: sizes and SHA-256
      ->  fsync  ->  rename to name  ->  fsync the parent  ->  move LATEST

A process may die between any two of these and leave either the old state or the new one. Readers
trust a folder only when its manifest verifies: a bit that flips later is found too, which
safetensors alone would load without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

MANIFEST = "manifest.json"
LATEST = "LATEST"
PINNED = "PINNED"
SCHEMA = 1
MANIFEST_BYTES = 16 << 20  # nothing we write comes near; a reader need not trust what it finds

_STEP = re.compile(r"step-(\d+)")
_LEFTOVER = re.compile(r"(?P<name>.+)\.(?P<state>tmp|old)-(?P<pid>\d+)")

_log = logging.getLogger(__name__)


class SaveError(OSError):
    """A save that did not happen; what was on the disk before is still there."""

    def __init__(self, folder: Path, cause: OSError):
        reason = cause.strerror or str(cause)
        where = str(cause.filename or "")
        if where and not where.startswith(str(folder)):  # such as a file where a folder should be
            reason = f"{reason} ({where})"
        super().__init__(cause.errno, reason, str(folder))

    def __str__(self) -> str:
        return f"cannot save {self.filename}: {self.strerror}; what was saved before is untouched"


def commit(
    folder: Path,
    write: Callable[[Path], None],
    latest: bool = False,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Makes `folder` hold exactly what `write` puts into the empty folder it is given.

    An existing `folder` is replaced, also when `write` reads from it. `details` (JSON) goes into
    the manifest. On any failure the temporary folder is removed and the old state stays.

    Raises:
        SaveError: the disk is full, broken or read-only.
        ValueError: a name that could leave the folder.
    """
    if not _is_plain_name(folder.name) or _LEFTOVER.fullmatch(folder.name):
        raise ValueError(f"cannot save {folder}: {folder.name!r} is not a usable folder name")
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write(temporary)
        _seal(temporary, _next_sequence(folder.parent), details or {})
        _publish(temporary, folder)
        if latest:
            set_latest(folder)
    except OSError as error:
        raise SaveError(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path) -> dict[str, Any]:
    """Checks every file of `folder` against its manifest, which it returns.

    Raises:
        ValueError: one sentence naming the file and what is wrong with it.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ValueError(
                f"{path} is missing: the manifest lists it with {entry['bytes']} bytes"
            )
        size = path.stat().st_size
        if size != entry["bytes"]:
            what = "truncated" if size < entry["bytes"] else "damaged"
            raise ValueError(
                f"{path} has {size} bytes where its manifest says {entry['bytes']}: "
                f"the file is {what}"
            )
        try:
            intact = _sha256(path) == entry["sha256"]
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        if not intact:
            raise ValueError(
                f"{path} does not match its manifest (sha256 differs): the file is damaged"
            )
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a committed folder, its form checked, its hashes not.

    Raises:
        ValueError: no folder, no manifest, or one we could not have written.
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
        if not _stays_inside(name):
            raise ValueError(f"{path} lists {name!r}: file names must stay inside the folder")
    return manifest


class Found(NamedTuple):
    """The newest intact checkpoint, and one sentence for each damaged one that came before it."""

    newest: Path | None
    damaged: tuple[str, ...]


def find_intact(checkpoints: Path) -> Found:
    """Looks through `checkpoints` from the last committed step folder to the first.

    Last committed, not highest step: a run may have gone back to an earlier one.
    """
    damaged = []
    for folder in _step_folders(checkpoints):
        try:
            verify(folder)
        except ValueError as error:
            damaged.append(str(error))
        else:
            return Found(folder, tuple(damaged))
    return Found(None, tuple(damaged))


def newest_intact(checkpoints: Path) -> Path | None:
    """The last committed step folder whose every file matches its manifest."""
    return find_intact(checkpoints).newest


def set_latest(folder: Path) -> None:
    """Points LATEST, beside `folder`, at it: a one-line file, replaced atomically."""
    pointer = folder.parent / LATEST
    temporary = folder.parent / f"{LATEST}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(f"{folder.name}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, pointer)
        _fsync(folder.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_latest(checkpoints: Path) -> Path | None:
    """What LATEST points at, None when it is absent or points nowhere."""
    try:
        name = (checkpoints / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return checkpoints / name if _STEP.fullmatch(name) and (checkpoints / name).is_dir() else None


def pin(folder: Path) -> None:
    """Keeps `folder` from `prune` for good. Anybody may do so: `touch step-4000/PINNED`."""
    (folder / PINNED).touch()


def prune(checkpoints: Path, keep: int) -> list[Path]:
    """Deletes all step folders but the `keep` last committed ones, LATEST's and the pinned.

    A folder is renamed before it is emptied, so that none is ever half there. One that cannot be
    deleted stays, with a warning; one whose manifest cannot be read is left for a person to see.
    """
    assert keep >= 1
    intact = [folder for folder in _step_folders(checkpoints) if _sequence(folder) is not None]
    spared = {*intact[:keep], read_latest(checkpoints)}
    deleted = []
    for folder in intact:
        if folder in spared or (folder / PINNED).exists():
            continue
        try:
            delete(folder)
        except OSError as error:
            _log.warning("could not delete the old checkpoint %s: %s", folder, error)
        else:
            deleted.append(folder)
    return deleted


def delete(folder: Path) -> None:
    """Deletes a committed folder in such an order that no reader sees half of it."""
    doomed = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    os.rename(folder, doomed)
    _fsync(folder.parent)
    shutil.rmtree(doomed)


def collect_garbage(parent: Path) -> list[Path]:
    """Removes from `parent` what dead processes left half-written; returns the names removed.

    A folder that was being replaced when its process died is put back.
    """
    removed = []
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or _lives_elsewhere(int(match["pid"])):
            continue
        original = parent / match["name"]
        if match["state"] == "old" and not original.exists():
            os.rename(path, original)
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def _seal(folder: Path, sequence: int, details: Mapping[str, Any]) -> None:
    """Forces every file to the disk, then writes the manifest that makes the folder valid."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        assert not path.is_symlink() and _stays_inside(name), f"refusing to commit {path}"
        if path.is_file():
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        _fsync(path)
    manifest = {**details, "schema": SCHEMA, "sequence": sequence, "files": files}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _fsync(folder)


def _publish(temporary: Path, folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(17, "something that is not a folder has this name", str(folder))
    if not folder.exists():
        os.rename(temporary, folder)
        _fsync(folder.parent)
        return
    # A folder cannot be renamed onto a full one. If we die between these two renames,
    # collect_garbage finds the old folder alone and puts it back.
    aside = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    os.rename(folder, aside)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(aside, folder)
        raise
    _fsync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _step_folders(checkpoints: Path) -> list[Path]:
    """Step folders, last committed first; before them those whose manifest cannot be read."""
    found = []
    for path in checkpoints.iterdir() if checkpoints.is_dir() else []:
        match = _STEP.fullmatch(path.name)
        if match and path.is_dir():
            sequence = _sequence(path)
            found.append((sequence is None, sequence or 0, int(match[1]), path))
    return [path for *_, path in sorted(found, reverse=True)]


def _sequence(folder: Path) -> int | None:
    try:
        return read_manifest(folder)["sequence"]
    except (ValueError, OSError):
        return None


def _next_sequence(parent: Path) -> int:
    return 1 + max((_sequence(path) or 0 for path in parent.iterdir() if path.is_dir()), default=0)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_plain_name(name: str) -> bool:
    plain = name not in ("", ".", "..") and not set(name) & set("/\\\0")
    return plain and len(name.encode(errors="replace")) <= 200


def _stays_inside(name: str) -> bool:
    return name == str(PurePosixPath(name)) and all(map(_is_plain_name, name.split("/")))


def _lives_elsewhere(pid: int) -> bool:
    """Whether `pid` is a running process other than this one."""
    if pid == os.getpid():
        return False
    with contextlib.suppress(ProcessLookupError, OverflowError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        return True
    return False
