"""Read state dicts that torch.save wrote, without running code from the file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from dictlearn.disk.errors import error_text

UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, MemoryError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError),
)  # torch.load raises many types for damaged files


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, by name.

    A small file can describe large tensors, as views of few numbers or in a zip archive that unpacks
    to much more. Both are refused.

    Raises:
        ValueError: one sentence that names the file.
    """
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if sum(part.file_size for part in parts.infolist()) > size:
                    raise ValueError("it unpacks to more than its size")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = error_text(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: is not a readable file of tensors: {reason}") from None
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{path}: want a state dict of names and tensors only")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > size:
            raise ValueError(f"{path}: {ascii(name)} is larger than the file")
    return state
