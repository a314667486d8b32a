"""A state dict that torch.save wrote, read as data: names and tensors, and nothing else is run."""

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
)  # torch.load lets through whatever a damaged file makes it stumble over


def read_state(path: Path) -> dict[str, Tensor]:
    """A plain state dict: of a pickle, what torch reads without running any of it.

    A tensor may be a view of few numbers that says it is large, and a zip may unpack to more than it
    is: neither is taken for more than the file holds.

    Raises:
        ValueError: one sentence that names the file.
    """
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if sum(part.file_size for part in parts.infolist()) > size:
                    raise ValueError("it unpacks to more than it is")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = error_text(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: is not a readable file of tensors: {reason}") from None
    named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    if not named or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{path}: want a state dict, names and tensors alone")
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > size:
            raise ValueError(f"{path}: {ascii(name)} says that it is more than the file holds")
    return found
