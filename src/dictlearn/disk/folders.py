"""A folder made for what is about to be written: it goes again where nothing was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes `folder` and those above it; of these new ones, those still empty at the end are removed.

    So a full disk, a refusal or Ctrl-C leaves no folder that another verb would take for somebody's.

    Raises:
        OSError: it can't be made.
    """
    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the first that holds something keeps all above it
            for path in new:
                path.rmdir()
