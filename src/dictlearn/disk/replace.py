"""Allow to replace dictlearn's own earlier output, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dictlearn.disk import leftovers
from dictlearn.disk.manifest import MANIFEST, check_content, check_size, read_manifest
from dictlearn.disk.whole import SaveError

PINNED = "PINNED"  # the one file that a user may add to our folders; it keeps a checkpoint


def check_replaceable(
    folder: Path, sort: str, overwrite: bool | None = None, edits: bool = False
) -> None:
    """Refuses to replace a folder unless it is an earlier output of this `sort`.

    The manifest of an earlier output names this sort and lists every file in the folder. With
    `edits`, a file that was changed since then is a reason to refuse. `overwrite` is the value of
    the key of that name, or None if the caller has no such key; true accepts any folder but a run.

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
    in_use = _in_use(folder)
    if empty or overwrite:
        reason = in_use or (None if empty else _run_in(folder))
    else:
        reason = _not_ours(folder, sort, edits)
    if reason is None:
        return
    never = in_use or _run_in(folder)
    hint = "choose another folder" if in_use else "move it away or choose another folder"
    if overwrite and not in_use:
        hint += "; overwrite=true deletes no run"
    if overwrite is False and not never:
        hint += ", or pass overwrite=true, which deletes what is in it"
    raise _refusal(folder, f"{never or reason}, and is not replaced; {hint}")


def check_file_replaceable(
    path: Path, ours: Callable[[bytes], bool], overwrite: bool | None
) -> None:
    """Refuses to replace a file unless `ours(content)` is true; `ours` may raise ValueError for no.

    Raises:
        SaveError: as above.
    """
    if not path.is_file():
        return
    inside = _run_or_dictionary(path.parent.resolve())
    if overwrite and inside is None:
        return
    try:
        known = ours(path.read_bytes())
    except (ValueError, RecursionError):
        known = False
    if not known and inside:
        raise _refusal(
            path, f"{inside} has this file, and it is not replaced; choose another place"
        )
    if not known:
        hint = "choose another place" if overwrite is None else "choose another, or overwrite=true"
        raise _refusal(path, f"it was not written by dictlearn, and is not replaced; {hint}")


def run_of(path: Path) -> Path:
    """The folder of the run that a path names, or whose dictionary it names; absolute."""
    resolved = path.resolve()
    return resolved.parent if resolved.name == "dictionary" else resolved


def refuse_other_run(folder: Path, dictionary: str | Path) -> None:
    """Refuses to write into a folder that is a run or a saved dictionary, or a run's features.

    The run or the dictionary that `dictionary` names is no other.

    Raises:
        SaveError: as above.
    """
    resolved = folder.resolve()
    named = run_of(Path(dictionary))
    for place in (resolved, *([resolved.parent] if resolved.name == "features" else [])):
        sort = _run_or_dictionary(place)
        if sort is not None and run_of(place) != named:
            what = f"it is {sort}" if place == resolved else f"it is part of {sort}"
            raise _refusal(folder, f"{what}, and is not replaced; choose another folder")


def check_addable(folder: Path, ours: Callable[[Path], bool], overwrite: bool) -> None:
    """Refuses to put files into a folder that holds anything for which `ours(path)` is false.

    What a killed process left half written is passed over. `overwrite` accepts all but a run, a
    saved dictionary and a folder that holds a run.

    Raises:
        SaveError: as above.
    """
    if not folder.is_dir():
        return
    hint = "choose another folder"
    sort = _run_or_dictionary(folder.resolve())
    if reason := f"it is {sort}" if sort else _run_in(folder):
        raise _refusal(folder, f"{reason}, and is not replaced; {hint}")
    for path in sorted(folder.iterdir()):
        if not (overwrite or leftovers.is_leftover(path) or ours(path)):
            hint += ", or pass overwrite=true, which replaces files of the same names"
            reason = f"it holds {path.name}, which was not written here by this command"
            raise _refusal(folder, f"{reason}, and is not replaced; {hint}")


def _run_or_dictionary(folder: Path) -> str | None:
    """What a folder is, if it is a run or a saved dictionary; else None."""
    if is_run(folder):
        return "a run"
    return "a saved dictionary" if (folder / "dictionary.json").is_file() else None


def _not_ours(folder: Path, sort: str, edits: bool) -> str | None:
    """The reason why a folder is not our own earlier output, or None if it is."""
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        if (folder / MANIFEST).is_file():
            return f"it can't be told whether all in it is ours ({error})"
        return f"it holds {sorted(os.listdir(folder))[0]}, which was not written here by dictlearn"
    actual = manifest.get("sort", sort)
    if actual != sort:
        return f"it is {actual}, not {sort}"
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
        if path.stat().st_mtime_ns > manifest.stat().st_mtime_ns:  # else it was not written since
            check_content(path, entry)
    except ValueError:
        return True
    return False


def _in_use(folder: Path) -> str | None:
    """The reason if it is the home folder, the current folder or a parent of it; else None."""
    resolved = folder.resolve()
    if resolved == Path.home():
        return "it is your home folder"
    if resolved == Path.cwd():
        return "it is the folder you are in"
    return "it holds the folder you are in" if resolved in Path.cwd().parents else None


def _run_in(folder: Path) -> str | None:
    """The reason if it is or contains a run, which overwrite=true doesn't delete; else None."""
    resolved = folder.resolve()
    if "checkpoints" in (resolved.name, resolved.parent.name):
        return "it is part of a run"
    for inside in (resolved, *resolved.rglob("*")):
        if inside.is_dir() and is_run(inside):
            return "it is a run" if inside == resolved else f"it holds the run {inside.name}"
    return None


def is_run(folder: Path) -> bool:
    """Whether a folder has files that only the folder of a run has."""
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        return True
    if (folder / "dictionary" / "dictionary.json").is_file():  # a copy may have nothing else
        return True
    config = folder / "config.yaml"
    if not config.is_file():
        return False
    with config.open(encoding="utf-8", errors="replace") as file:
        return any(line.startswith("run_dir:") for line in file)


def _refusal(folder: Path, reason: str) -> SaveError:
    return SaveError(folder, FileExistsError(errno.EEXIST, reason))
