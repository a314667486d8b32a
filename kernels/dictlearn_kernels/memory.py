"""Large CPU buffers that are reused from call to call."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

# glibc returns freed memory of this size or more to the system, so each page of such a tensor is new.
# Page faults then take about a seventh of a selection's time (2,048 rows, 8,192 columns, width 512).
RETURNED = 2**25  # bytes


Pieces = dict[torch.dtype, Tensor]


class _Kept(threading.local):
    def __init__(self) -> None:
        self.pieces: Pieces = {}


_kept = _Kept()


def kept(numbers: int, dtype: torch.dtype) -> Tensor:
    """A CPU buffer of `numbers` elements, uninitialised.

    Large buffers are reused: this thread's next call with the same `dtype` overwrites them.
    """
    if numbers * dtype.itemsize < RETURNED:
        return torch.empty(numbers, dtype=dtype)
    piece = _kept.pieces.get(dtype)
    if piece is None or len(piece) < numbers:
        _kept.pieces.pop(dtype, None)  # freed before the new one is allocated
        piece = _kept.pieces[dtype] = torch.empty(numbers, dtype=dtype)
    return piece[:numbers]


def share(pieces: Pieces) -> None:
    """Makes this thread's buffers those of other threads, of which no two may run at a time."""
    _kept.pieces = pieces
