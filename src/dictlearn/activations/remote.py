"""A store's files on another machine: s3://, gs://, hf:// and all others that fsspec supports."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, final

import fsspec

from dictlearn.disk.manifest import is_plain_name

Result = TypeVar("Result")

TRIES = 5  # requests before giving up
PATIENCE = 0.5  # seconds before the second request; doubled for each later one
FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@final
class RemotePlace:
    """A folder that fsspec accesses. Its libraries read their own settings, such as AWS_ENDPOINT_URL.

    A file is written by one request, and so atomically. A fetched file is in a temporary folder (TMPDIR)
    until it is open. A request that fails is repeated a few times.
    """

    lasting = False

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        try:
            self._fs, root = fsspec.core.url_to_fs(address)
        except ImportError as error:  # its text says what to install
            raise ValueError(f"{address}: {error}") from error
        except Exception as error:  # libraries raise many types
            raise ValueError(f"{address}: is not an address of a store: {_line(error)}") from error
        self._root = str(root).rstrip("/")
        self._folder: str | None = None
        self._lock = threading.Lock()

    def listed(self, folder: str = "") -> dict[str, int]:
        return {
            str(entry["name"]).rpartition("/")[2]: int(entry["size"] or 0)
            for entry in self._entries(folder)
            if entry["type"] == "file"
        }

    def folders(self) -> list[str]:
        entries = [entry for entry in self._entries("") if entry["type"] == "directory"]
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries]
        return sorted(filter(is_plain_name, names))

    def _entries(self, folder: str) -> list[dict]:
        path = f"{self._root}/{folder}".rstrip("/")

        def listing() -> list[dict]:
            self._fs.invalidate_cache()  # others write here too
            return self._fs.ls(path, detail=True)

        try:
            return self._retry(folder or path, listing)
        except FileNotFoundError:
            return []

    def read(self, name: str, limit: int) -> bytes:
        path = self._path(name)

        def reading() -> bytes | None:
            self._fs.invalidate_cache()
            return self._fs.cat_file(path) if self._fs.info(path)["size"] <= limit else None

        try:
            data = self._retry(name, reading)
        except FileNotFoundError:
            raise ValueError(f"{self.address}/{name} is missing") from None
        if data is None:
            raise ValueError(f"{self.address}/{name} has more than {limit:,} bytes")
        return data

    def part(self, name: str, start: int, stop: int) -> bytes:
        path = self._path(name)
        try:
            return self._retry(name, lambda: self._fs.cat_file(path, start=start, end=stop))
        except FileNotFoundError:
            raise ValueError(f"{self.address}/{name} is missing") from None

    def fetched(self, name: str) -> Path:
        local = self._temporary()
        try:
            self._retry(name, lambda: self._fs.get_file(self._path(name), str(local)))
        except FileNotFoundError:
            local.unlink(missing_ok=True)
            raise ValueError(f"{self.address}/{name} is missing") from None
        except BaseException:
            local.unlink(missing_ok=True)
            raise
        return local

    def done(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        local = self._temporary()
        try:
            write(local)
            self._retry(name, lambda: self._fs.put_file(str(local), self._path(name)))
        finally:
            local.unlink(missing_ok=True)

    def clear(self) -> None:
        if "/" not in self._root.strip("/"):
            raise ValueError(
                f"{self.address}: is a whole bucket, which is not emptied; want a folder in it"
            )
        self._retry("", lambda: self._fs.rm(self._root, recursive=True))
        self._fs.invalidate_cache()

    def _path(self, name: str) -> str:
        assert all(map(is_plain_name, name.split("/")))
        return f"{self._root}/{name}"

    def _temporary(self) -> Path:
        """A new file in a folder that is removed with this object or at the end of the process."""
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix="dictlearn-")
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        descriptor, path = tempfile.mkstemp(dir=self._folder)
        os.close(descriptor)
        return Path(path)

    def _retry(self, name: str, call: Callable[[], Result]) -> Result:
        """The result of a request. Raises OSError, which names the file, if all tries fail."""
        for number in range(TRIES):
            try:
                return call()
            except FINAL:
                raise
            except Exception as error:  # the libraries' exceptions have no common base
                if number == TRIES - 1:
                    raise OSError(
                        f"{self.address}/{name}: {TRIES} requests failed, the last with: {_line(error)}"
                    ) from error
                time.sleep(PATIENCE * 2**number)
        raise AssertionError


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
