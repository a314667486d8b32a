"""How kernels of Triton sum a row's gradient where they use it, and the table of addresses they read.

A feature's rows lie in several parameters, and one program goes through all of them. A kernel has a fixed
number of arguments, so it gets a table that has a line of addresses for every part.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A launch takes numbers where the kernel says constexpr, and options of its own.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.fused_adam.types import rows_of
from dictlearn_kernels.weight_grad import RowGradient

CHUNK = 64  # entries that one program sums, in a column with many: a feature that always fires
WIDEST = 1024  # numbers of a row at once: 4 of each tensor in a thread

# The slots of a part's line: addresses, 0 where there is nothing, and two integers. STARTS is 0 for a
# part without a gradient.
(
    WEIGHTS, STARTS, ROWS, VALUES, TABLE, PARTIAL, DENSE, FIRST, SECOND, FIRST_SCALE, SECOND_SCALE,
    FIRST_ROW, SEED,
) = map(tl.constexpr, range(13))  # fmt: skip
SLOTS = tl.constexpr(13)


def warps(size: int) -> int:
    return max(1, size // 128)


@triton.jit
def pointer(line_ptr, slot: tl.constexpr, dtype: tl.constexpr):
    """The pointer in a slot of a part's line. All are multiples of 16 bytes (`address`)."""
    return tl.multiple_of(tl.load(line_ptr + slot).to(tl.pointer_type(dtype)), 16)


@triton.jit
def _sum_entries(total, table_ptr, rows_ptr, values_ptr, low, high, D, d, inside):
    for entry in range(low, high):
        row = tl.load(rows_ptr + entry)
        value = tl.load(values_ptr + entry)
        total += value * tl.load(table_ptr + row * D + d, mask=inside, other=0.0)
    return total


@triton.jit
def row_gradient(line_ptr, row, D, d, CHUNK: tl.constexpr, SIZE: tl.constexpr):
    """A part's gradient in one row at d: the dense part, then the row's entries in order.

    Whole chunks of entries come as sums, and the entries before and after them one by one.
    """
    inside = d < D
    starts_ptr = pointer(line_ptr, STARTS, tl.int64)
    low, high = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    rows_ptr, values_ptr = pointer(line_ptr, ROWS, tl.int64), pointer(line_ptr, VALUES, tl.float32)
    table_ptr = pointer(line_ptr, TABLE, tl.float32)
    partial_ptr = pointer(line_ptr, PARTIAL, tl.float32)
    total = tl.zeros((SIZE,), tl.float32)
    if tl.load(line_ptr + DENSE) != 0:
        dense_ptr = pointer(line_ptr, DENSE, tl.float32)
        total += tl.load(dense_ptr + row * D + d, mask=inside, other=0.0)
    first, last = (low + CHUNK - 1) // CHUNK, high // CHUNK
    head = tl.minimum(high, first * CHUNK)
    total = _sum_entries(total, table_ptr, rows_ptr, values_ptr, low, head, D, d, inside)
    for chunk in range(first, last):
        total += tl.load(partial_ptr + chunk * D + d, mask=inside, other=0.0)
    tail = tl.maximum(head, last * CHUNK)
    return _sum_entries(total, table_ptr, rows_ptr, values_ptr, tail, high, D, d, inside)


@triton.jit
def chunk_sums_kernel(
    table_ptr, rows_ptr, values_ptr, columns_ptr, partial_ptr, D,
    CHUNK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Sums of chunks that lie in one column. Other sums are never read, nor written."""
    chunk = tl.program_id(0)
    low = chunk * CHUNK
    if tl.load(columns_ptr + low) == tl.load(columns_ptr + low + CHUNK - 1):
        d = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
        inside = d < D
        total = tl.zeros((SIZE,), tl.float32)
        total = _sum_entries(
            total, table_ptr, rows_ptr, values_ptr, low, low + CHUNK, D, d, inside
        )  # fmt: skip
        tl.store(partial_ptr + chunk.to(tl.int64) * D + d, total, mask=inside)


class Factors:
    """A row gradient as kernels take it: one product over all rows, and the sums of its chunks."""

    def __init__(self, gradient: RowGradient, n_rows: int):
        product = gradient.whole(n_rows)
        rows, values, columns, starts = product.sorted()
        self.table_RD = _plain(product.g_RD, torch.float32)
        self.rows, self.starts = _plain(rows, torch.int64), _plain(starts, torch.int64)
        self.values = _plain(values, torch.float32)
        dense = gradient.dense_RD
        self.dense_RD = None if dense is None else _plain(dense, torch.float32)
        width, n_chunks = gradient.width, len(values) // CHUNK
        self.partial = self.table_RD.new_empty(max(1, n_chunks), width)
        if n_chunks:
            size = size_for(width)
            chunk_sums_kernel[(n_chunks, triton.cdiv(width, size))](
                self.table_RD, self.rows, self.values, columns, self.partial, width,
                CHUNK=CHUNK, SIZE=size, num_warps=warps(size),
            )  # fmt: skip

    def addresses(self) -> list[int]:
        """The slots STARTS to DENSE."""
        tensors = (self.starts, self.rows, self.values, self.table_RD, self.partial, self.dense_RD)
        return [address(t) for t in tensors]


def size_for(width: int) -> int:
    """The numbers of a row at once: a power of two."""
    return min(WIDEST, 1 << (width - 1).bit_length())


def factors(parameter: Tensor, gradient: RowGradient | None) -> Factors | None:
    """The factors of a parameter's gradient, made once for all of its features."""
    if gradient is None:
        return None
    if gradient.prepared is None:
        gradient.prepared = Factors(gradient, len(rows_of(parameter)))
    return gradient.prepared


def address(tensor: Tensor | None) -> int:
    """A tensor's address, 0 for None. Whoever puts it in a table keeps the tensor until the launch."""
    if tensor is None:
        return 0
    assert tensor.data_ptr() % 16 == 0 and tensor.is_contiguous()
    return tensor.data_ptr()


def on_device(
    lines: list[list[int]] | list[list[float]], dtype: torch.dtype, like: Tensor
) -> Tensor:
    """A table for a kernel. It is copied from pinned memory, which does not synchronise."""
    table = torch.tensor(lines, dtype=dtype)
    return table.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else table


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.to(dtype).contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
