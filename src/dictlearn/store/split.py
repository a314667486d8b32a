"""Splits documents into those that explainers see and those that score descriptions."""

from __future__ import annotations

import hashlib
from typing import Literal


def split_of(document: int) -> Literal["explain", "score"]:
    """The document's half, by a hash of its number: the same in every process and version."""
    digest = hashlib.sha256(f"document {document}".encode()).digest()
    return "explain" if digest[0] % 2 == 0 else "score"
