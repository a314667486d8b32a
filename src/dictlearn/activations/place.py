"""Where a store's files lie: a folder of this machine, or an address that fsspec knows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, final

from dictlearn.disk.manifest import is_plain_name
from dictlearn.disk.whole import replacing


class Place(Protocol):
    """A folder, of which a file is whole or absent. Names have / between their parts."""

    @property
    def address(self) -> str:
        """As the user wrote it."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether a file that is fetched again is the same file: its hash need not be compared again."""
        ...

    def listed(self, folder: str = "") -> dict[str, int]:
        """The files right in `folder`, with their sizes in bytes; nothing where there is none."""
        ...

    def read(self, name: str, most: int) -> bytes:
        """A file of at most `most` bytes. ValueError names it where it is missing or larger."""
        ...

    def fetched(self, name: str) -> Path:
        """A local file with the content of this one, which the caller opens and gives to `done`."""
        ...

    def done(self, path: Path) -> None:
        """Says that a `fetched` file is open: its name is needed no more."""
        ...

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Makes a file from what `write` puts at a path. OSError where that can't be done."""
        ...


@final
class LocalPlace:
    """A folder of this machine."""

    lasting = True

    def __init__(self, folder: str | Path):
        self.address, self._folder = str(folder), Path(folder)

    def listed(self, folder: str = "") -> dict[str, int]:
        try:
            with os.scandir(self._folder / folder) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def read(self, name: str, most: int) -> bytes:
        path = self._path(name)
        try:
            if path.stat().st_size > most:
                raise ValueError(f"{path} has {path.stat().st_size:,} bytes: more than {most:,}")
            return path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None

    def fetched(self, name: str) -> Path:
        return self._path(name)

    def done(self, path: Path) -> None:
        pass

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        with replacing(self._path(name)) as path:
            write(path)

    def _path(self, name: str) -> Path:
        assert all(map(is_plain_name, name.split("/")))
        return self._folder / name


def is_remote(address: str) -> bool:
    return "://" in address and not address.startswith("file://")


def opened(address: str) -> Place:
    """The place at an address: a folder, or what fsspec knows. ValueError where it knows none."""
    if not is_remote(address):
        return LocalPlace(Path(address.removeprefix("file://")).expanduser())
    from dictlearn.activations.remote import RemotePlace  # few runs need its libraries

    return RemotePlace(address)
