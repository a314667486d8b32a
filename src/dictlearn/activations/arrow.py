"""Lists of numbers in Arrow files, as tensors that are mapped from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor


@final
class ArrowStream:
    """The record batches of a file in Arrow's stream format, mapped into memory.

    Raises ValueError, OSError or NotImplementedError if the file is empty, truncated or damaged.
    """

    def __init__(self, path: Path):
        # Copy on write: torch wants memory that could be written to, which nobody does.
        self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        with pa.ipc.open_stream(pa.py_buffer(self._bytes)) as reader:
            self.batches: list[pa.RecordBatch] = list(reader)

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def tensors(self, column: str, dtype: torch.dtype, shape: tuple[int, ...]) -> list[Tensor]:
        """A column of nested lists as a tensor [rows, *shape] for each batch.

        Raises ValueError if an entry has another dtype or shape, or is null.
        """
        return [self._tensor(batch.column(column), dtype, shape) for batch in self.batches]

    def _tensor(self, array: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        rows = len(array)
        array.validate(full=True)
        for size in shape:
            if isinstance(array, pa.ExtensionArray):  # that of `datasets`, if it is imported
                array = array.storage
            if not isinstance(array, pa.ListArray | pa.FixedSizeListArray) or array.null_count:
                raise ValueError(f"it has {array.type} where lists are wanted, or nulls")
            if isinstance(array, pa.FixedSizeListArray):
                lengths = np.array([array.type.list_size])
            else:
                lengths = np.diff(array.offsets.to_numpy())
            if (lengths != size).any():
                raise ValueError(f"its lists are not of shape {list(shape)}")
            array = array.flatten()
        kind = np.dtype(str(dtype).removeprefix("torch."))
        if not pa.types.is_primitive(array.type) or array.type.to_pandas_dtype() != kind.type:
            raise ValueError(f"its numbers are {array.type}, not {kind}")
        if array.null_count:
            raise ValueError("it has nulls")
        return torch.from_numpy(self._numbers(array, kind)).view(rows, *shape)

    def _numbers(self, array: Any, kind: np.dtype) -> np.ndarray:
        """The numbers of a flat array: of the file's own memory, or a copy if it is compressed."""
        size = len(array) * kind.itemsize
        if not size:
            return np.empty(0, dtype=kind)
        start = array.buffers()[1].address + array.offset * kind.itemsize - self._bytes.ctypes.data
        if 0 <= start <= len(self._bytes) - size:
            return self._bytes[start : start + size].view(kind)
        return np.array(array.to_numpy(zero_copy_only=True))
