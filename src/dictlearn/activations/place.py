"""The location of a store's files: a local folder, or an address that fsspec supports."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, final

from dictlearn.disk.manifest import is_plain_name
from dictlearn.disk.whole import replacing


class Place(Protocol):
    """A folder in which files are written atomically. Names have / between their parts."""

    @property
    def address(self) -> str:
        """The address, as the user wrote it."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether a file doesn't change, so that its hash need be compared only once."""
        ...

    def listed(self, folder: str = "") -> dict[str, int]:
        """The files in `folder`, without subfolders, with their sizes in bytes; may be empty."""
        ...

    def folders(self) -> list[str]:
        """The names of the folders in this one, sorted."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file. Raises ValueError if it is missing or has more than `limit` bytes."""
        ...

    def part(self, name: str, start: int, stop: int) -> bytes:
        """Bytes start to stop - 1 of a file, as many as there are. Raises ValueError if it is missing."""
        ...

    def fetched(self, name: str) -> Path:
        """A local file with the same content; the caller opens it and then calls `done`."""
        ...

    def done(self, path: Path) -> None:
        """Tells that a `fetched` file is open, so it can be unlinked."""
        ...

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Makes a file from what `write` writes to a path. Raises OSError."""
        ...

    def clear(self) -> None:
        """Deletes everything in this folder. Raises OSError, and ValueError for a place too wide."""
        ...


@final
class LocalPlace:
    """A local folder."""

    lasting = True

    def __init__(self, folder: str | Path):
        self.address, self._folder = str(folder), Path(folder)

    def listed(self, folder: str = "") -> dict[str, int]:
        try:
            with os.scandir(self._folder / folder) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def folders(self) -> list[str]:
        try:
            with os.scandir(self._folder) as entries:
                return sorted(e.name for e in entries if e.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, name: str, limit: int) -> bytes:
        path = self._path(name)
        try:
            if path.stat().st_size > limit:
                raise ValueError(f"{path} has {path.stat().st_size:,} bytes: more than {limit:,}")
            return path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None

    def part(self, name: str, start: int, stop: int) -> bytes:
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None

    def fetched(self, name: str) -> Path:
        return self._path(name)

    def done(self, path: Path) -> None:
        pass

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        with replacing(self._path(name)) as path:
            write(path)

    def clear(self) -> None:
        shutil.rmtree(self._folder)

    def _path(self, name: str) -> Path:
        assert all(map(is_plain_name, name.split("/")))
        return self._folder / name


def is_remote(address: str) -> bool:
    return "://" in address and not address.startswith("file://")


def opened(address: str) -> Place:
    """The place at an address. Raises ValueError if fsspec doesn't support it."""
    if not is_remote(address):
        return LocalPlace(Path(address.removeprefix("file://")).expanduser())
    from dictlearn.activations.remote import RemotePlace  # imports fsspec

    return RemotePlace(address)
