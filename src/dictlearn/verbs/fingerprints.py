"""Fingerprints of a run's inputs: the model, its tokenizer, a teacher and the text.

A configuration holds only paths, whose content may change. So checkpoints hold fingerprints too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from omegaconf import DictConfig

from dictlearn.lm.fingerprint import fingerprint
from dictlearn.sources.fingerprint import of_text

__all__ = ["of_files", "of_model", "of_teacher", "of_text"]


def of_files(cfg: DictConfig) -> dict[str, str]:
    """The fingerprints of all folders that the configuration names."""
    return of_model(cfg) | of_teacher(cfg)


def of_model(cfg: DictConfig) -> dict[str, str]:
    """The fingerprints of the folders of model and tokenizer, before anything is loaded."""
    fingerprints = _folder("model", "model.path", cfg.model.path, cfg.model.revision)
    fingerprints["tokenizer"] = fingerprints.pop("model.tokenizer", "none")
    if cfg.model.other is not None:
        fingerprints |= _folder("model.other", "model.other", cfg.model.other)
    return fingerprints


def of_teacher(cfg: DictConfig) -> dict[str, str]:
    """The same of the folder that the teacher is in, if it has one."""
    fingerprints: dict[str, str] = {}
    teacher = cfg.get("teacher") or {}
    if teacher.get("path") is not None:
        fingerprints |= _folder("teacher", "teacher.path", teacher["path"], teacher.get("revision"))
    if teacher.get("folder") is not None:
        about = (
            Path(teacher["folder"]).expanduser() / "targets.json"
        )  # it holds the hashes of the other files
        if about.is_file():
            fingerprints["teacher.targets"] = _sha256(about.read_bytes())
    return fingerprints


def _folder(what: str, key: str, path: str, revision: str | None = None) -> dict[str, str]:
    try:
        texts = fingerprint(path, revision)
    except ValueError as error:  # its sentence names model.path for every key
        raise ValueError(str(error).replace("model.path=", f"{key}=")) from error
    return {f"{what}.{name}": text for name, text in texts.items()}


def _sha256(data: bytes) -> str:
    return f"sha256 {hashlib.sha256(data).hexdigest()[:16]}"
