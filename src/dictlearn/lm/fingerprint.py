"""What a model's folder held: short texts that differ where the files do."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

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
    folder, _ = locate(path, revision, "weights")
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


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides a text's token ids, added tokens too."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return _sha256(tokenizer.backend_tokenizer.to_str())
    return _sha256(_listed(tokenizer))


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """16 digits for what an id means: vocabulary and rules, without tokens added to them."""
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
