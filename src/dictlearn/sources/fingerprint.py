"""What a text held: short texts that differ where the tokens, or those that are kept, do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from dictlearn.types import TextWindows

MOST = 1 << 26  # tokens that are hashed; of a longer text, in evenly spaced windows
AT_ONCE = 1024  # windows per read


def of_text(windows: TextWindows) -> str:
    """The fingerprint of the tokens that the run trains on."""
    hashed = _hashed(windows, lambda indices: windows.window_batch(indices).int())
    return f"{len(windows) * windows.context:,} tokens, sha256 {hashed}"


def of_rows(windows: TextWindows) -> str:
    """The same, and of which of the tokens a dictionary sees."""
    return f"{of_text(windows)}, kept {_hashed(windows, windows.kept)[:8]}"


def _hashed(windows: TextWindows, read: Callable[[Tensor], Tensor]) -> str:
    digest = hashlib.sha256()
    n, step = len(windows), max(1, len(windows) * windows.context // MOST)
    for first in range(0, n, AT_ONCE * step):
        indices = torch.arange(first, min(first + AT_ONCE * step, n), step)
        digest.update(read(indices).contiguous().numpy().data)
    return digest.hexdigest()[:16]
