"""Data as scripts, which a page that a browser opened from a disk may run; it may read no files.

A data file is one call, `dictlearn.<name>(<JSON>, ...);`, of a function that the site defines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, final

PAGE = "index.html"
CHUNK_BYTES = 192 << 10  # a browser reads and parses it in a few milliseconds


def copy_site(package: str, folder: Path, site: str = "site") -> None:
    """Copies the files that all sites share, and those of a site of `package`, but its pages."""
    for source in (files("dictlearn.pages").joinpath("site"), files(package).joinpath(site)):
        for file in source.iterdir():
            if not file.name.endswith(".html"):
                (folder / file.name).write_bytes(file.read_bytes())


def page_in(package: str, site: str = "site") -> bytes:
    """The page of a site of `package`."""
    return files(package).joinpath(site, PAGE).read_bytes()


def script(path: Path, call: str, *arguments: object) -> None:
    """Writes a call of `dictlearn.<call>` with these arguments."""
    _save(path, f"dictlearn.{call}({','.join(map(_json, arguments))});\n")


def numbered(folder: Path, name: str, number: int) -> Path:
    """The path of a data file of several, as load.js names it."""
    return folder / f"{name}-{number:05}.js"


@final
class Chunks:
    """Writes features' records, up to `size` bytes per file unless one record is larger."""

    def __init__(self, folder: Path, size: int = CHUNK_BYTES):
        self.first_rows: list[int] = []  # of each file
        self._folder = folder
        self._size = size
        self._waiting: list[str] = []
        self._bytes = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes the next record; its `row` must be larger than the last one's."""
        text = _json(record)
        if self._waiting and self._bytes + len(text) > self._size:
            self.flush()
        if not self._waiting:
            self.first_rows.append(record["row"])
        self._waiting.append(text)
        self._bytes += len(text)

    def flush(self) -> None:
        """Writes what is waiting."""
        if not self._waiting:
            return
        number = len(self.first_rows) - 1
        lines = ",\n".join(self._waiting)
        path = numbered(self._folder, "features", number)
        _save(path, f"dictlearn.features({number},[\n{lines}\n]);\n")
        self._waiting, self._bytes = [], 0


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _save(path: Path, text: str) -> None:
    # Half a surrogate pair, which JSON can spell and a model may write, has no UTF-8.
    path.write_bytes(text.encode("utf-8", "replace"))
