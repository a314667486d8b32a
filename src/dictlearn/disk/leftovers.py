"""Temporary names say who made them, so that what a dead process left can be told from work in progress.

<name>.tmp-<pid>-<started>-<machine>    being written
<name>.old-<pid>-<started>-<machine>    moved aside while another takes its place
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import time
from functools import lru_cache
from pathlib import Path

LEFTOVER = re.compile(
    r"(?P<name>.+)\.(?P<state>tmp|old)-(?P<pid>\d+)(?:-(?P<started>\d+)-(?P<machine>[0-9a-f]{8}))?"
)
A_DAY = 86_400  # seconds: what another machine has not touched for so long is nobody's
LONGEST_NAME = 200  # bytes of a name that can take such an ending


def temporary(path: Path) -> Path:
    """Where to write what shall become `path`: beside it."""
    return path.with_name(f"{shortened(path.name)}.tmp-{_me()}")


def aside(path: Path) -> Path:
    """Where `path` goes while another takes its place."""
    return path.with_name(f"{path.name}.old-{_me()}")


def collect(parent: Path, name: str | None = None, alone: bool = False) -> list[Path]:
    """Removes from `parent` what dead processes left half-written; returns the names removed.

    What was being replaced when its process died is put back. With `name` only leftovers of that
    file or folder are looked at. A leftover of another machine goes when nobody has touched it for
    a day; `alone` says that the caller holds the lock of all who write here: then every one goes.
    """
    removed = []
    for path, match in _found(parent, name):
        if not alone and _may_be_alive(path, match):
            continue
        original = parent / match["name"]
        try:
            if match["state"] == "old" and not os.path.lexists(original):
                os.rename(path, original)
                continue
            remove(path)
        except FileNotFoundError:  # another process collects here too
            continue
        removed.append(path)
    return removed


def present(folder: Path) -> Path:
    """`folder`, or what it was, if a process died while another was taking its place.

    For readers. The old one is put back where the place can be written; where it can't, it is read
    where it lies.
    """
    for patience in (0.0, 0.05, 0.2, 1.0):  # a living process needs a moment between two renames
        time.sleep(patience)
        if folder.exists() or not folder.parent.is_dir():
            return folder
        old = [(p, m) for p, m in _found(folder.parent, folder.name) if m["state"] == "old"]
        if not old:
            return folder
        path, match = max(old, key=lambda found: found[0].stat().st_mtime)
        if not _may_be_alive(path, match):
            with contextlib.suppress(OSError):
                os.rename(path, folder)
            return folder if folder.exists() else path
    return path


def put_back(parent: Path) -> None:
    """What was being replaced in `parent` when its process died, as `present` does it for one."""
    for _, match in _found(parent, None):
        if match["state"] == "old":
            present(parent / match["name"])


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it; what can't be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _found(parent: Path, name: str | None) -> list[tuple[Path, re.Match[str]]]:
    if not parent.is_dir():
        return []
    wanted = None if name is None else {name, shortened(name)}
    return [
        (parent / entry, match)
        for entry in sorted(os.listdir(parent))
        if (match := LEFTOVER.fullmatch(entry)) and (wanted is None or match["name"] in wanted)
    ]


def _may_be_alive(path: Path, match: re.Match[str]) -> bool:
    """Whether the process that made it may still be at work on it."""
    pid = int(match["pid"])
    if (
        match["machine"] is None
    ):  # a name without the rest: all we can ask for is the process's number
        return pid != os.getpid() and _runs(pid)
    if match["machine"] != _machine():
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime < A_DAY
        return False
    started = _started(pid)
    return _runs(pid) and (started is None or started == int(match["started"]))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _me() -> str:
    return f"{os.getpid()}-{_started(os.getpid()) or 0}-{_machine()}"


def _started(pid: int) -> int | None:
    """When the process began, in the kernel's ticks: numbers of processes are used again."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


@lru_cache(maxsize=1)
def _machine() -> str:
    """Names the host and its space of process numbers: a container has its own."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def shortened(name: str) -> str:
    """A name that can take an ending of a few dozen bytes."""
    return os.fsdecode(os.fsencode(name)[:LONGEST_NAME])
