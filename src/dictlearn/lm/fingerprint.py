"""Hashes of the files in a model's folder and of its tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dictlearn.lm.hub import locate
from dictlearn.lm.weights import weight_files

HASHED_IN_FULL = 64 << 20  # bytes; larger files are hashed from a sample
BLOCK, BLOCKS = 4096, 8192  # bytes per block, and blocks per sample, evenly spaced
TOKENIZER = ("*.model", "*.txt", "*token*.json", "vocab*.json", "merges*")


def fingerprint(path: str, revision: str | None = None) -> dict[str, str]:
    """Sizes and hashes of the model's "weights", "config" and "tokenizer" (if it has one).

    Files of weights up to 64 MB are hashed in full. For a larger file the hash covers its size, its
    header and 8,192 evenly spaced blocks; a tensor that takes more than a few thousandths of the file
    always contains one. Raises ValueError as `load_model` does.
    """
    folder, _ = locate(path, revision, "weights")
    weights = weight_files(path, folder)
    tokenizer = sorted({file for pattern in TOKENIZER for file in folder.glob(pattern)})
    hashes = {
        "weights": _text(weights, _sample),
        "config": _text([folder / "config.json"], Path.read_bytes),
    }
    if tokenizer:
        hashes["tokenizer"] = _text(tokenizer, Path.read_bytes)
    return hashes


def _text(files: list[Path], read: Callable[[Path], bytes]) -> str:
    """Total size and hash, such as `17,641,000 bytes, sha256 0123456789abcdef`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        digest.update(read(file))
    size = sum(file.stat().st_size for file in files)
    return f"{size:,} bytes, sha256 {digest.hexdigest()[:16]}"


def _sample(file: Path) -> bytes:
    size = file.stat().st_size
    if size <= HASHED_IN_FULL:
        return file.read_bytes()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        header = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        parts = [os.pread(descriptor, min(header, HASHED_IN_FULL), 8)]
        parts += [os.pread(descriptor, BLOCK, size * i // BLOCKS) for i in range(BLOCKS)]
    finally:
        os.close(descriptor)
    return b"".join(parts)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that token ids depend on, added tokens included."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return _sha256(tokenizer.backend_tokenizer.to_str())
    return _sha256(_listed(tokenizer))


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """16 hex digits of the hash of vocabulary and merge rules, without added tokens."""
    if tokenizer is None:
        written = "none"
    elif isinstance(tokenizer, PreTrainedTokenizerFast):
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        written = json.dumps([parts.get(key) for key in ("normalizer", "pre_tokenizer", "model")])
    else:
        written = _listed(tokenizer)
    return _sha256(written)[:16]


def _listed(tokenizer: PreTrainedTokenizerBase) -> str:
    return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
