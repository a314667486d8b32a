"""Fingerprints of a text's tokens, and of which of them are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from dictlearn.types import TextWindows

LARGEST = 1 << 26  # tokens that are hashed; a longer text is sampled in evenly spaced windows
AT_ONCE = 1024  # windows per read


def of_text(windows: TextWindows) -> str:
    """The fingerprint of the tokens."""
    hashed = _hashed(windows, lambda indices: windows.window_batch(indices).int())
    return f"{len(windows) * windows.context:,} tokens, sha256 {hashed}"


def of_rows(windows: TextWindows) -> str:
    """The fingerprint of the tokens and of which of them a dictionary reads."""
    return f"{of_text(windows)}, kept {_hashed(windows, windows.kept)[:8]}"


def _hashed(windows: TextWindows, read: Callable[[Tensor], Tensor]) -> str:
    digest = hashlib.sha256()
    n, step = len(windows), max(1, len(windows) * windows.context // LARGEST)
    for first in range(0, n, AT_ONCE * step):
        indices = torch.arange(first, min(first + AT_ONCE * step, n), step)
        digest.update(read(indices).contiguous().numpy().data)
    return digest.hexdigest()[:16]
