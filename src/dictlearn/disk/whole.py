"""Write a file whole or not at all.

    write name.tmp-... beside it  ->  fsync  ->  rename over it  ->  fsync the folder

If the disk fills up or the process dies, the earlier file stays. Readers get either the earlier file
or the new one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dictlearn.disk import leftovers
from dictlearn.disk.folders import ensure_folder


class SaveError(OSError):
    """A file or folder was not saved; its earlier version is still on the disk."""

    def __init__(self, path: Path, cause: OSError):
        reason = cause.strerror or str(cause)
        where = str(cause.filename or "")
        if where and not where.startswith(str(path)):  # such as a parent that is a file
            reason = f"{reason} ({where})"
        super().__init__(cause.errno, reason, str(path))

    def __str__(self) -> str:
        return f"cannot save {self.filename}: {self.strerror}; what was saved before is untouched"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, which is renamed to `path` if the block ends without an error.

    The folder is made, and removed if nothing is written. A path that is no file, such as /dev/stdout
    or a pipe, is yielded as it is.

    Raises:
        SaveError: the disk is full, broken or read-only; the message names `path`.
    """
    path = Path(path)
    if _is_stream(path):
        yield path
        return
    final = path.resolve() if path.is_symlink() else path
    if not final.name:
        raise SaveError(path, IsADirectoryError(errno.EISDIR, "this is a folder"))
    temporary = leftovers.temporary(final)
    try:
        with ensure_folder(final.parent):
            try:
                leftovers.collect(final.parent, final.name)
                yield temporary
                fsync(temporary)
                os.replace(temporary, final)
                fsync(final.parent)
            finally:
                with suppress(OSError):
                    temporary.unlink()
    except (OSError, SafetensorError) as error:
        raise SaveError(path, as_os_error(error)) from error


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` in UTF-8. Raises SaveError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data`. Raises SaveError."""
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(data)


def write_json(path: str | Path, value: Any, indent: int | None = 1, ascii: bool = True) -> None:
    """Writes strict JSON and a newline. Raises SaveError, and ValueError for NaN and Inf."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii, allow_nan=False)
    write_text(path, text + "\n")


def fsync(path: Path) -> None:
    """Returns when the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_os_error(error: OSError | SafetensorError) -> OSError:
    """The error as an OSError; safetensors' own error has the number of the system's in its text."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(None, str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])))


def _is_stream(path: Path) -> bool:
    if path.is_absolute() and path.parts[1:2] == ("dev",) and path.parts[2:3] != ("shm",):
        return True  # also if the shell redirects it to a file; /dev/shm is a disk in memory
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
