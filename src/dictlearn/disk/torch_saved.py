"""Read files of torch.save, without running code from them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dictlearn.disk.errors import error_text

UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, MemoryError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError),
)  # torch.load raises many types for damaged files


def loaded(path: Path, name: str | None = None, mapped: bool = False) -> object:
    """What a file holds, if it is tensors in dicts and lists with strings and numbers.

    A small file can describe large tensors, as views of few numbers or in a zip archive that unpacks
    to much more. Both are refused.

    Args:
        name: what errors call the file; None for its path.
        mapped: whether tensors are mapped from the file, which may then be unlinked.

    Raises:
        ValueError: one sentence that names the file.
    """
    name = name or str(path)
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if sum(part.file_size for part in parts.infolist()) > size:
                    raise ValueError("it unpacks to more than its size")
        elif mapped:
            raise ValueError("it is no zip archive, as torch.save writes")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        for key, tensor in _tensors(content, ""):
            if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > size:
                raise ValueError(f"{ascii(key)} is larger than the file")
        return content
    except UNREADABLE as error:
        reason = error_text(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or a pickle of more than tensors, which could run code"
        raise ValueError(f"{name}: is not a readable file of tensors: {reason}") from None


def _tensors(content: object, key: str) -> Iterator[tuple[str, Tensor]]:
    match content:
        case Tensor():
            yield key, content
        case dict():
            for inner, value in content.items():
                yield from _tensors(value, f"{key}.{inner}" if key else str(inner))
        case list() | tuple():
            for number, value in enumerate(content):
                yield from _tensors(value, f"{key}[{number}]")
