"""What may be replaced: our own earlier output, and nothing else that lies in the same place."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dictlearn.disk.manifest import MANIFEST, check_content, check_size, read_manifest
from dictlearn.disk.whole import SaveError

PINNED = "PINNED"  # the one file that a person may put into a folder of ours: a checkpoint to keep


def check_replaceable(
    folder: Path, sort: str, overwrite: bool | None = None, edits: bool = False
) -> None:
    """Refuses to replace a folder that is no earlier output of this `sort`.

    An earlier output has a manifest that names this sort and lists every file in the folder; with
    `edits`, files that were changed since then count as somebody else's. `overwrite` is the key of
    that name, None for a caller that has none: true takes anything but a run.

    Raises:
        SaveError: one sentence that names what would be lost.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise _refusal(folder, "something that is not a folder has this name")
    empty = next(folder.iterdir(), None) is None
    if empty and overwrite is None:
        return
    standing = _standing(folder)
    if empty or overwrite:
        why = standing or (None if empty else _dear(folder))
    else:
        why = _not_ours(folder, sort, edits)
    if why is None:
        return
    dear = standing or _dear(folder)
    hint = "choose another folder" if standing else "move it away or choose another folder"
    if overwrite and not standing:
        hint += "; overwrite=true deletes no run"
    if overwrite is False and not dear:
        hint += ", or pass overwrite=true, which deletes what is in it"
    raise _refusal(folder, f"{dear or why}, and is not replaced; {hint}")


def check_file_replaceable(
    path: Path, ours: Callable[[bytes], bool], overwrite: bool | None
) -> None:
    """Refuses to replace a file that `ours`, shown its content, does not take for our own.

    Raises:
        SaveError: as above; `ours` may raise ValueError for no.
    """
    if overwrite or not path.is_file():
        return
    try:
        known = ours(path.read_bytes())
    except (ValueError, RecursionError):
        known = False
    if not known:
        hint = "choose another place" if overwrite is None else "choose another, or overwrite=true"
        raise _refusal(path, f"it was not written by dictlearn, and is not replaced; {hint}")


def _not_ours(folder: Path, sort: str, edits: bool) -> str | None:
    """Why a folder can't be taken for our own earlier output; None where it can."""
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        if (folder / MANIFEST).is_file():
            return f"it can't be told whether all in it is ours ({error})"
        return f"it holds {sorted(os.listdir(folder))[0]}, which was not written here by dictlearn"
    found = manifest.get("sort", sort)
    if found != sort:
        return f"it is {found}, not {sort}"
    listed: dict[str, Any] = manifest["files"]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_dir() and name not in {*listed, MANIFEST, PINNED}):
            return f"it holds {name}, which was not written here by dictlearn"
        if edits and name in listed and _edited(path, listed[name], folder / MANIFEST):
            return f"its {name} was changed since dictlearn wrote it"
    return None


def _edited(path: Path, entry: dict[str, Any], manifest: Path) -> bool:
    try:
        check_size(path, entry)
        if path.stat().st_mtime_ns > manifest.stat().st_mtime_ns:  # else untouched since
            check_content(path, entry)
    except ValueError:
        return True
    return False


def _standing(folder: Path) -> str | None:
    """Why a folder can't go, whatever it holds: the user is in it, or lives there; None for others."""
    resolved = folder.resolve()
    if resolved == Path.home():
        return "it is your home folder"
    if resolved == Path.cwd():
        return "it is the folder you are in"
    return "it holds the folder you are in" if resolved in Path.cwd().parents else None


def _dear(folder: Path) -> str | None:
    """Why not even overwrite=true may delete a folder; None where it may."""
    resolved = folder.resolve()
    if "checkpoints" in (resolved.name, resolved.parent.name):
        return "it is part of a run"
    for inside in (resolved, *resolved.rglob("*")):
        if inside.is_dir() and is_run(inside):
            return "it is a run" if inside == resolved else f"it holds the run {inside.name}"
    return None


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, by what only runs have."""
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        return True
    config = folder / "config.yaml"
    if not config.is_file():
        return False
    with config.open(encoding="utf-8", errors="replace") as file:
        return any(line.startswith("run_dir:") for line in file)


def _refusal(folder: Path, why: str) -> SaveError:
    return SaveError(folder, FileExistsError(errno.EEXIST, why))
