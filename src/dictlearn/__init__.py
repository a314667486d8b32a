"""Sparse dictionaries over the activations of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dictlearn.dicts.dictionary import Dictionary

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path, revision: str | None = None) -> Dictionary:
    """The dictionary that a run saved, in inference form: raw activations in, raw activations out.

    `path` is a run's folder, its `dictionary/`, or a hub id (owner/name, or
    owner/name/folder) with, if you like, a `revision`.
    Raises ValueError where it is none of these, or is damaged.
    """
    from dictlearn.ckpt.dictionary import load_dictionary  # late: importing dictlearn stays instant

    return load_dictionary(path, revision)
