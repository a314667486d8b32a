"""Large memory that is kept from call to call."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

# glibc gives freed memory of this size or more back to the system. Every page of such a tensor is new
# each time, and the faults cost about a seventh of a selection (2048 rows, 8192 columns of width 512).
GIVEN_BACK = 2**25  # bytes


class _Kept(threading.local):
    def __init__(self) -> None:
        self.pieces: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def kept(numbers: int, dtype: torch.dtype) -> Tensor:
    """So many numbers on a CPU; what is large is overwritten by this thread's next call with `dtype`."""
    if numbers * dtype.itemsize < GIVEN_BACK:
        return torch.empty(numbers, dtype=dtype)
    piece = _kept.pieces.get(dtype)
    if piece is None or len(piece) < numbers:
        _kept.pieces.pop(dtype, None)  # the old piece goes before the new one comes
        piece = _kept.pieces[dtype] = torch.empty(numbers, dtype=dtype)
    return piece[:numbers]
