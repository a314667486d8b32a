"""Tokens on disk, so that a second start reads no text: one safetensors file per text."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dictlearn.disk.whole import replacing

log = logging.getLogger(__name__)

VERSION = "4"  # of how text becomes tokens; another number makes all files anew


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/dictlearn/tokens`; safe to delete at any time."""
    root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(root) / "dictlearn" / "tokens"


def cached(key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` returned when it was last called for this key.

    `key` says all that the tokens depend on. A file that is damaged is made anew; where nothing can
    be written (a full disk, a read-only home), the tokens are made every time.
    """
    path = cache_folder() / f"{_sha256(f'{VERSION} {key}'.encode())}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    tensors = make()
    try:
        with replacing(path) as place:
            save_file(tensors, place, metadata=_digests(tensors))
    except OSError as error:
        _say_once(str(path.parent), error.strerror or str(error))
    return tensors


@cache
def _say_once(folder: str, reason: str) -> None:
    """One run reads several texts, and what keeps one of them from being kept keeps all."""
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
