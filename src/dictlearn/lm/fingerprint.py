"""What a model's folder held: short texts that differ where the files do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from dictlearn.lm.hub import locate
from dictlearn.lm.weights import weight_files

WHOLE = 64 << 20  # bytes of weights that are hashed whole; of more a sample is
BLOCK, BLOCKS = 4096, 8192  # the sample: so many blocks, evenly spaced, and the header
TOKENIZER = ("*.model", "*.txt", "*token*.json", "vocab*.json", "merges*")


def fingerprint(path: str, revision: str | None = None) -> dict[str, str]:
    """{"weights", "config", "tokenizer"} of the model that `load_model` reads from there.

    Weights of up to 64 MB are hashed whole; of larger files the size, the header and every so many
    bytes are: a tensor of more than a few thousandths of the file is always in it.
    Raises ValueError as `load_model` does.
    """
    folder, _ = locate(path, revision, weights=True)
    weights = weight_files(path, folder)
    tokenizer = sorted({file for pattern in TOKENIZER for file in folder.glob(pattern)})
    found = {
        "weights": _text(weights, _sample),
        "config": _text([folder / "config.json"], Path.read_bytes),
    }
    if tokenizer:
        found["tokenizer"] = _text(tokenizer, Path.read_bytes)
    return found


def _text(files: list[Path], read: Callable[[Path], bytes]) -> str:
    """Such as `17,641,000 bytes, sha256 0123456789abcdef`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        digest.update(read(file))
    size = sum(file.stat().st_size for file in files)
    return f"{size:,} bytes, sha256 {digest.hexdigest()[:16]}"


def _sample(file: Path) -> bytes:
    size = file.stat().st_size
    if size <= WHOLE:
        return file.read_bytes()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        header = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        parts = [os.pread(descriptor, min(header, WHOLE), 8)]
        parts += [os.pread(descriptor, BLOCK, size * i // BLOCKS) for i in range(BLOCKS)]
    finally:
        os.close(descriptor)
    return b"".join(parts)
