"""Which documents explainers see, and which are kept to score what they say."""

from __future__ import annotations

import hashlib
from typing import Literal


def split_of(document: int) -> Literal["explain", "score"]:
    """Half and half, by a hash of the document's number: the same in every process and version."""
    digest = hashlib.sha256(f"document {document}".encode()).digest()
    return "explain" if digest[0] % 2 == 0 else "score"
