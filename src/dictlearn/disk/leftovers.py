"""Temporary names identify their process, so that leftovers of dead processes can be removed.

<name>.tmp-<pid>-<started>-<machine>    being written
<name>.old-<pid>-<started>-<machine>    moved aside while its replacement is renamed
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
A_DAY = 86_400  # seconds, after which a leftover of another machine may be removed
LONGEST_NAME = 200  # bytes, so that a suffix still fits


def temporary(path: Path) -> Path:
    """The name beside `path` under which it is written."""
    return path.with_name(f"{shortened(path.name)}.tmp-{_me()}")


def aside(path: Path) -> Path:
    """The name that `path` gets while it is replaced."""
    return path.with_name(f"{path.name}.old-{_me()}")


def collect(parent: Path, name: str | None = None, alone: bool = False) -> list[Path]:
    """Removes half-written leftovers of dead processes from `parent`; returns their paths.

    A file or folder that was being replaced when its process died is put back. `name` restricts
    this to leftovers of that file or folder. A leftover of another machine is removed a day after
    its last change. With `alone` the caller holds the lock for all writers, and every leftover goes.
    """
    removed = []
    for path, match in _leftovers(parent, name):
        if not alone and _may_be_alive(path, match):
            continue
        original = parent / match["name"]
        try:
            if match["state"] == "old" and not os.path.lexists(original):
                os.rename(path, original)
                continue
            remove(path)
        except FileNotFoundError:  # another process removed it
            continue
        removed.append(path)
    return removed


def recover(folder: Path) -> Path:
    """`folder`, for readers; if a process died while replacing it, the earlier one is put back.

    If the parent is read-only, the result is the path of the earlier one instead.
    """
    for seconds in (0.0, 0.05, 0.2, 1.0):  # a living process needs a moment between two renames
        time.sleep(seconds)
        if folder.exists() or not folder.parent.is_dir():
            return folder
        old = [(p, m) for p, m in _leftovers(folder.parent, folder.name) if m["state"] == "old"]
        if not old:
            return folder
        path, match = max(old, key=lambda leftover: leftover[0].stat().st_mtime)
        if not _may_be_alive(path, match):
            with contextlib.suppress(OSError):
                os.rename(path, folder)
            return folder if folder.exists() else path
    return path


def recover_all(parent: Path) -> None:
    """Calls `recover` for everything in `parent` that was being replaced."""
    for _, match in _leftovers(parent, None):
        if match["state"] == "old":
            recover(parent / match["name"])


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with its content, except what can't be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether it is half written, or a lock: of a process that writes, or was killed while it did."""
    return bool(LEFTOVER.fullmatch(path.name)) or bool(re.fullmatch(r"\..+\.lock", path.name))


def _leftovers(parent: Path, name: str | None) -> list[tuple[Path, re.Match[str]]]:
    if not parent.is_dir():
        return []
    names = None if name is None else {name, shortened(name)}
    return [
        (parent / entry, match)
        for entry in sorted(os.listdir(parent))
        if (match := LEFTOVER.fullmatch(entry)) and (names is None or match["name"] in names)
    ]


def _may_be_alive(path: Path, match: re.Match[str]) -> bool:
    """Whether the process that made this leftover may still be working on it."""
    pid = int(match["pid"])
    if match["machine"] is None:  # the older form of the name: only the pid is known
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
    """The start time of a process in clock ticks; with the pid it identifies the process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


@lru_cache(maxsize=1)
def _machine() -> str:
    """A hash of the host and its pid namespace, which differs between containers."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def shortened(name: str) -> str:
    """The first bytes of `name`, short enough that a suffix fits."""
    return os.fsdecode(os.fsencode(name)[:LONGEST_NAME])
