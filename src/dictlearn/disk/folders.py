"""Make a folder for a file that is about to be written, and remove it if nothing was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def ensure_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` and its parents; at the end, removes the new ones that are still empty.

    So a full disk, a refusal or Ctrl-C leaves no empty folder behind.

    Raises:
        OSError: the folder can't be made.
    """
    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # a folder that isn't empty keeps its parents
            for path in new:
                path.rmdir()
