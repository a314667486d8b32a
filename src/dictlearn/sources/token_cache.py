"""A cache of tokens on disk, so that a second run reads no text: one safetensors file per text."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dictlearn.disk.folders import ensure_folder
from dictlearn.disk.whole import replacing

log = logging.getLogger(__name__)

VERSION = "4"  # of the way from text to tokens; a new number invalidates all files


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/dictlearn/tokens`; safe to delete at any time."""
    root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(root) / "dictlearn" / "tokens"


def cached(key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` returns, from the disk if it was called for this key before.

    `key` must contain everything that the tokens depend on. A damaged file is made again. If nothing
    can be written (a full disk, a read-only home), `make` is called every time.
    """
    path = cache_folder() / f"{_sha256(f'{VERSION} {key}'.encode())}.safetensors"
    made = _made(path)
    stored = _read(path)
    if stored is not None:
        return stored
    with _one_at_a_time(path):
        if _made(path) != made and (stored := _read(path)) is not None:
            return stored  # another process of the run has made it meanwhile
        tensors = make()
        try:
            with replacing(path) as partial:
                save_file(tensors, partial, metadata=_digests(tensors))
        except OSError as error:
            _say_once(str(path.parent), error.strerror or str(error))
    return tensors


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Waits while another process makes the file. The kernel frees the lock of one that dies."""
    with ExitStack() as stack:
        with suppress(OSError):  # without a lock each makes its own
            stack.enter_context(ensure_folder(path.parent))
            lock = path.with_suffix(".lock")
            file = stack.enter_context(lock.open("w"))
            fcntl.lockf(file, fcntl.LOCK_EX)
            stack.callback(lock.unlink, missing_ok=True)
        yield


def _made(path: Path) -> int | None:
    """When the file was written, None if there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


@cache
def _say_once(folder: str, reason: str) -> None:
    """Warns once per reason: it is the same for all texts of a run."""
    log.warning("data: the tokens are not kept for the next start: %s: %s", folder, reason)


def _read(path: Path) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:  # mapped into memory, not read
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            intact = file.metadata() == _digests(tensors)
    except (OSError, SafetensorError):
        intact, tensors = False, {}
    if not intact:
        log.warning("data: %s is damaged; its tokens are made anew", path)
        return None
    return tensors


def _digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: _sha256(tensor.numpy().data) for name, tensor in tensors.items()}


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
