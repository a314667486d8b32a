"""The one way to write a file: whole or not at all.

    write into name.tmp-... beside it  ->  fsync  ->  rename over it  ->  fsync the folder

A disk that fills up and a process that dies leave what was there before; whoever reads meanwhile has
the old file or the new one.
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
from dictlearn.disk.folders import made


class SaveError(OSError):
    """A save that did not happen; what was on the disk before is still there."""

    def __init__(self, path: Path, cause: OSError):
        reason = cause.strerror or str(cause)
        where = str(cause.filename or "")
        if where and not where.startswith(str(path)):  # such as a file where a folder should be
            reason = f"{reason} ({where})"
        super().__init__(cause.errno, reason, str(path))

    def __str__(self) -> str:
        return f"cannot save {self.filename}: {self.strerror}; what was saved before is untouched"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The place to write: `path` becomes what was written there when the block ends without an error.

    Makes the folder, which goes again where nothing is written. What is no file, such as /dev/stdout
    or a pipe, is written as it is.

    Raises:
        SaveError: the disk is full, broken or read-only; it names `path`.
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
        with made(final.parent):
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
    """UTF-8. Raises SaveError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Raises SaveError."""
    with replacing(path) as place, open(place, "wb") as file:
        file.write(data)


def write_json(path: str | Path, value: Any, indent: int | None = 1, ascii: bool = True) -> None:
    """Strict JSON and a line end. Raises SaveError, and ValueError for a number that JSON lacks."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii, allow_nan=False)
    write_text(path, text + "\n")


def fsync(path: Path) -> None:
    """Returns when the disk has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_os_error(error: OSError | SafetensorError) -> OSError:
    """safetensors has an error of its own for a full disk, with the number in its text."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(None, str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])))


def _is_stream(path: Path) -> bool:
    if path.is_absolute() and path.parts[1:2] == ("dev",) and path.parts[2:3] != ("shm",):
        return True  # also where the shell sent it to a file; /dev/shm is a disk in memory
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
