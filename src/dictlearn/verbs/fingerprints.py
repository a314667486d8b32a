"""What a run reads by path: the model, its tokenizer, a teacher and the text, each as a short text.

A configuration holds paths, and another model may lie there by tomorrow. So checkpoints hold these too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from omegaconf import DictConfig

from dictlearn.lm.fingerprint import fingerprint
from dictlearn.types import TextWindows

MOST = 1 << 26  # tokens that are hashed, of more evenly spaced windows
AT_ONCE = 1024  # windows


def of_files(cfg: DictConfig) -> dict[str, str]:
    """Of the folders that the configuration names, before anything is loaded from them."""
    found = _of("model", "model.path", cfg.model.path, cfg.model.revision)
    found["tokenizer"] = found.pop("model.tokenizer", "none")
    if cfg.model.other is not None:
        found |= _of("model.other", "model.other", cfg.model.other)
    teacher = cfg.get("teacher") or {}
    if teacher.get("path") is not None:
        found |= _of("teacher", "teacher.path", teacher["path"], teacher.get("revision"))
    if teacher.get("folder") is not None:
        about = Path(teacher["folder"]).expanduser() / "targets.json"  # with the hashes of the rest
        if about.is_file():
            found["teacher.targets"] = _sha256(about.read_bytes())
    return found


def of_text(windows: TextWindows) -> str:
    """Of the tokens that the run trains on."""
    digest = hashlib.sha256()
    n, step = len(windows), max(1, len(windows) * windows.context // MOST)
    for first in range(0, n, AT_ONCE * step):
        indices = torch.arange(first, min(first + AT_ONCE * step, n), step)
        digest.update(windows.window_batch(indices).int().contiguous().numpy().data)
    return f"{n * windows.context:,} tokens, sha256 {digest.hexdigest()[:16]}"


def _of(what: str, key: str, path: str, revision: str | None = None) -> dict[str, str]:
    try:
        found = fingerprint(path, revision)
    except ValueError as error:  # speaks of model.path, whichever key it was
        raise ValueError(str(error).replace("model.path=", f"{key}=")) from error
    return {f"{what}.{name}": text for name, text in found.items()}


def _sha256(data: bytes) -> str:
    return f"sha256 {hashlib.sha256(data).hexdigest()[:16]}"
