"""Save folders, such as checkpoints and dictionaries, whole or not at all.

    write into name.tmp-<pid>  ->  fsync each file  ->  manifest.json last: sizes and SHA-256
      ->  fsync  ->  rename to name  ->  fsync the parent  ->  move LATEST

If the process dies between any two of these steps, the old or the new state remains. Readers accept
a folder only if its manifest verifies.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from dictlearn.disk import leftovers
from dictlearn.disk.folders import ensure_folder
from dictlearn.disk.leftovers import LEFTOVER
from dictlearn.disk.leftovers import collect as collect_garbage
from dictlearn.disk.manifest import (
    MANIFEST,
    SCHEMA,
    check_sizes,
    is_plain_name,
    read_manifest,
    sha256,
    stays_inside,
    verify,
)
from dictlearn.disk.replace import PINNED, check_replaceable
from dictlearn.disk.whole import SaveError, as_os_error, fsync, write_text

__all__ = [
    "MANIFEST",
    "PINNED",
    "SaveError",
    "check_sizes",
    "collect_garbage",
    "read_manifest",
    "verify",
]

LATEST = "LATEST"

_STEP = re.compile(r"step-(\d+)")

_log = logging.getLogger(__name__)


def commit(
    folder: Path,
    write: Callable[[Path], None],
    *,
    sort: str,
    latest: bool = False,
    details: Mapping[str, Any] | None = None,
    overwrite: bool | None = None,
) -> None:
    """Makes a folder with the files that `write` puts into the empty folder that is its argument.

    An earlier `folder` of the same sort is replaced, and `write` may read from it; any other is
    refused (see `check_replaceable`). `sort`, such as "a dictionary", and `details` (JSON) go into the
    manifest. On failure the temporary folder is removed and the old state stays. Leftovers of killed
    processes are removed.

    Raises:
        SaveError: the disk is full, broken or read-only, or `folder` holds files that we did not write.
        ValueError: the name is not a plain folder name.
    """
    if not is_plain_name(folder.name) or LEFTOVER.fullmatch(folder.name):
        raise ValueError(f"cannot save {folder}: {folder.name!r} is not a usable folder name")
    temporary = leftovers.temporary(folder)
    try:
        with ensure_folder(folder.parent):
            try:
                leftovers.collect(folder.parent, folder.name)
                check_replaceable(folder, sort, overwrite)
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                write(temporary)
                _seal(temporary, {**(details or {}), "sort": sort}, _next_sequence(folder.parent))
                check_replaceable(folder, sort, overwrite)  # writing may have taken hours
                _publish(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        if latest:
            set_latest(folder)
    except SaveError:
        raise
    except (OSError, SafetensorError) as error:
        raise SaveError(folder, as_os_error(error)) from error


class IntactSearch(NamedTuple):
    """The newest intact checkpoint, and one sentence for each newer one, which is damaged."""

    newest: Path | None
    damaged: tuple[str, ...]


def find_intact(checkpoints: Path, check: Callable[[Path], object] = verify) -> IntactSearch:
    """Checks step folders from the last committed to the first, until one is intact.

    The last committed one may not have the highest step, as a run may go back to an earlier one.
    """
    damaged = []
    for folder in _step_folders(checkpoints):
        try:
            check(folder)
        except ValueError as error:
            damaged.append(str(error))
        else:
            return IntactSearch(folder, tuple(damaged))
    return IntactSearch(None, tuple(damaged))


def set_latest(folder: Path) -> None:
    """Writes the name of `folder` into the file LATEST beside it, atomically."""
    write_text(folder.parent / LATEST, f"{folder.name}\n")


def read_latest(checkpoints: Path) -> Path | None:
    """The folder that LATEST names; None if the file or the folder is absent."""
    try:
        name = (checkpoints / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return checkpoints / name if _STEP.fullmatch(name) and (checkpoints / name).is_dir() else None


def pin(folder: Path) -> None:
    """Protects `folder` from `prune`. Users may do it themselves: `touch step-4000/PINNED`."""
    (folder / PINNED).touch()


def prune(checkpoints: Path, keep: int) -> list[Path]:
    """Deletes step folders, except the `keep` last committed ones, LATEST's and pinned ones.

    A folder that cannot be deleted stays, with a warning. A folder whose manifest cannot be read
    stays too, for a person to look at.
    """
    assert keep >= 1
    readable = [folder for folder in _step_folders(checkpoints) if _sequence(folder) is not None]
    kept = {*readable[:keep], read_latest(checkpoints)}
    deleted = []
    for folder in readable:
        if folder in kept or (folder / PINNED).exists():
            continue
        try:
            delete(folder)
        except OSError as error:
            _log.warning("could not delete the old checkpoint %s: %s", folder, error)
        else:
            deleted.append(folder)
    return deleted


def delete(folder: Path) -> None:
    """Deletes a committed folder; it is renamed first, so no reader sees half of it."""
    temporary = leftovers.temporary(folder)
    os.rename(folder, temporary)
    fsync(folder.parent)
    shutil.rmtree(temporary)


def _seal(folder: Path, details: Mapping[str, Any], sequence: int) -> None:
    """Syncs every file to the disk, then writes the manifest, which makes the folder valid."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        assert not path.is_symlink() and stays_inside(name), f"refusing to commit {path}"
        if path.is_file():
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        fsync(path)
    manifest = {**details, "schema": SCHEMA, "sequence": sequence, "files": files}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fsync(folder)


def _publish(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(temporary, folder)
        fsync(folder.parent)
        return
    # A folder cannot be renamed onto one that has files. If we die between these two renames, the
    # next reader or writer puts the old folder back (leftovers.recover, .collect).
    aside = leftovers.aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(aside, folder)
        raise
    fsync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _step_folders(checkpoints: Path) -> list[Path]:
    """Step folders, the last committed first, after those whose manifest cannot be read."""
    folders = []
    leftovers.recover_all(checkpoints)
    for path in checkpoints.iterdir() if checkpoints.is_dir() else []:
        match = _STEP.fullmatch(path.name)
        if match and path.is_dir():
            sequence = _sequence(path)
            folders.append((sequence is None, sequence or 0, int(match[1]), path))
    return [path for *_, path in sorted(folders, reverse=True)]


def _sequence(folder: Path) -> int | None:
    try:
        return read_manifest(folder)["sequence"]
    except (ValueError, OSError):
        return None


def _next_sequence(parent: Path) -> int:
    return 1 + max((_sequence(path) or 0 for path in parent.iterdir() if path.is_dir()), default=0)
