"""The grouped route on a GPU: each transform's tokens together, tile by tile, without atomics.

Entries are in the order of `Pattern.by_column`, where those of a transform are neighbours, and a tile has
up to BM of them. V x lies in one flat buffer (`hidden`) with K_t numbers for an entry of a transform of
rank K_t. Five kernels make all outputs and gradients:

    project   hidden = a[row] W_t^T               V x, and U g in the backward pass
    expand    part[entry] = value * hidden W_t    a piece of the width at a time,
    add_rows  y[row] = sum of part                and each row's parts in their stored order
    outer     g_W_t = (value * hidden)^T a[row]   over a transform's entries in their order
    dots      g_value = <hidden, hidden'>

The parts of one piece take at most PART_BYTES and stay in the cache of a large GPU. So writing them and
reading them again costs less than atomics would, and the sum is repeatable.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# A launch takes numbers where the kernel says constexpr, and options of its own.
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.shipped import Variant

PART_BYTES = 32 * 2**20
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SUM_WIDTH = 256  # of add_rows


def forward(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(y [R, D], V x of every entry, flat)."""
    work = _Work(pattern, U, x_RD)
    hidden = work.project(x_RD.contiguous(), _flat(V))
    return work.expand(hidden, values, _flat(U)), hidden


def backward(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    hidden: Tensor | None,
    g_RD: Tensor,
    wants_x: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(g_values, g_x, g_U, g_V). The last two are [all ranks, D]."""
    work = _Work(pattern, U, x_RD)
    x_RD, g_RD, V_PD = x_RD.contiguous(), g_RD.contiguous(), _flat(V)
    if hidden is None:
        hidden = work.project(x_RD, V_PD)
    read = work.project(g_RD, _flat(U))
    g_x = work.expand(read, values, V_PD) if wants_x else None
    g_U, g_V = work.outer(hidden, values, g_RD), work.outer(read, values, x_RD)
    return work.dots(hidden, read), g_x, g_U, g_V


def _flat(maps: Sequence[Tensor]) -> Tensor:
    """The maps as [all ranks, D]. Only maps of several ranks are copied, which costs little."""
    rows = [map_CKD.contiguous().flatten(0, 1) for map_CKD in maps]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


# --- launches -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranks:
    """The ranks of the transforms and the tiles of the flat maps, on the device."""

    rank_C: Tensor  # int32
    start_C: Tensor  # int64: a transform's first row in the flat maps
    tile_transform: Tensor  # int32: each tile's transform
    tile_first: Tensor  # int32: each tile's first rank
    largest: int
    total: int


@functools.lru_cache(maxsize=16)
def _ranks(shapes: tuple[tuple[int, int], ...], block: int, device: torch.device) -> _Ranks:
    ranks = [rank for n, rank in shapes for _ in range(n)]
    tiles = [(t, first) for t, rank in enumerate(ranks) for first in range(0, rank, block)]
    rank_C = torch.tensor(ranks)
    return _Ranks(
        rank_C.to(device, torch.int32),
        (rank_C.cumsum(0) - rank_C).to(device),
        torch.tensor([t for t, _ in tiles], dtype=torch.int32, device=device),
        torch.tensor([first for _, first in tiles], dtype=torch.int32, device=device),
        max(ranks),
        sum(ranks),
    )


def config(dtype: torch.dtype, even: bool, tf32: bool) -> dict[str, Any]:
    """The constants of a launch. None depends on the size of a batch, so kernels compile once.

    BM is a block of entries: a transform is usually active on a few percent of a batch's tokens, some
    hundreds. BR is a block of ranks, which are multiples of 32 in published mixtures. BK numbers of a
    row, 128 bytes, are read at once. `even` says that 16 divides the width and all ranks, so that whole
    vectors are loaded; numbers loaded one by one need more registers, and so smaller blocks.
    """
    small = dtype is torch.float32 or not even
    return {
        "EVEN": even,
        "BM": 64,
        "BR": 32,
        "BK": 32 if small else 64,
        "BD": 64 if small else 128,
        "PRECISION": "tf32" if dtype is torch.float32 and tf32 else "ieee",
    }


class _Work:
    """One pattern's tiles, and the launches over them."""

    def __init__(self, pattern: Pattern, U: Sequence[Tensor], like: Tensor):
        device, self.width, self.dtype = like.device, like.shape[1], like.dtype
        shapes = tuple((U_g.shape[0], U_g.shape[1]) for U_g in U)
        even = all(rank % 16 == 0 for _, rank in shapes) and self.width % 16 == 0
        self.config = config(self.dtype, even, torch.backends.cuda.matmul.allow_tf32)
        self.ranks = _ranks(shapes, self.config["BR"], device)
        self.n_rows, self.n_entries = pattern.n_rows, len(pattern.columns)
        self.row_starts = pattern.row_starts.long()
        self.order, self.starts = (t.long() for t in pattern.by_column)
        self.rows = pattern.rows.long()[self.order]
        counts_C = self.starts.diff()
        hidden_C = counts_C * self.ranks.rank_C
        ends_C = hidden_C.cumsum(0)
        self.hidden_starts = ends_C - hidden_C
        # This is the only number that the host waits for: the size of `hidden` depends on the pattern.
        self.n_hidden = int(ends_C[-1])
        # Tiles are counted on the device, and the host knows a bound of their number.
        block = self.config["BM"]
        tiles_C = (counts_C + block - 1) // block
        tile_ends_C = tiles_C.cumsum(0)
        self.n_tiles = min(self.n_entries // block + len(counts_C), self.n_entries)
        tile = torch.arange(self.n_tiles, device=device)
        transform = torch.searchsorted(tile_ends_C, tile, right=True)
        used = transform < len(counts_C)
        transform = transform.clamp_max(len(counts_C) - 1)
        first = self.starts[transform] + (tile - (tile_ends_C - tiles_C)[transform]) * block
        self.tile_transform = torch.where(used, transform, -1).to(torch.int32)
        self.tile_first = first

    def _tiles(self) -> tuple[Tensor, ...]:
        ranks = self.ranks
        tiles = self.tile_transform, self.tile_first, self.starts, self.hidden_starts
        return *tiles, ranks.rank_C, ranks.start_C

    def _constants(self, *names: str) -> dict[str, Any]:
        return {name: self.config[name] for name in names}

    def project(self, a_RD: Tensor, W_PD: Tensor) -> Tensor:
        hidden = a_RD.new_empty(self.n_hidden)
        if self.n_entries:
            grid = self.n_tiles, triton.cdiv(self.ranks.largest, self.config["BR"])
            constants = self._constants("EVEN", "BM", "BR", "BK", "PRECISION")
            project[grid](hidden, a_RD, W_PD, self.rows, *self._tiles(), self.width, **constants)
        return hidden

    def expand(self, hidden: Tensor, values: Tensor, W_PD: Tensor) -> Tensor:
        y_RD = hidden.new_zeros(self.n_rows, self.width)
        if self.n_entries == 0:
            return y_RD
        block = self.config["BD"]
        piece = PART_BYTES // (self.n_entries * hidden.element_size()) // block * block
        piece = min(max(piece, block), triton.cdiv(self.width, block) * block)
        part = hidden.new_empty(self.n_entries, piece)
        constants = self._constants("EVEN", "BM", "BR", "BD", "PRECISION")
        for start in range(0, self.width, piece):
            width = min(piece, self.width - start)
            sizes = start, piece, self.width
            expand[self.n_tiles, triton.cdiv(width, block)](
                part, hidden, values, W_PD, self.order, *self._tiles(), *sizes, **constants
            )
            grid = self.n_rows, triton.cdiv(width, SUM_WIDTH)
            even = self.config["EVEN"]
            add_rows[grid](y_RD, part, self.row_starts, *sizes, EVEN=even, BD=SUM_WIDTH)
        return y_RD

    def outer(self, hidden: Tensor, values: Tensor, a_RD: Tensor) -> Tensor:
        W_PD = a_RD.new_empty(self.ranks.total, self.width)
        grid = len(self.ranks.tile_first), triton.cdiv(self.width, self.config["BD"])
        ranks = self.ranks
        tiles = ranks.tile_transform, ranks.tile_first, self.starts, self.hidden_starts
        tiles = *tiles, ranks.rank_C, ranks.start_C
        constants = self._constants("EVEN", "BM", "BR", "BD", "PRECISION")
        order = self.order, self.rows
        outer[grid](W_PD, hidden, values, a_RD, *order, *tiles, self.width, **constants)
        return W_PD

    def dots(self, hidden: Tensor, read: Tensor) -> Tensor:
        out = hidden.new_empty(self.n_entries)
        if self.n_entries:
            tiles = self._tiles()[:-1]
            constants = self._constants("EVEN", "BM", "BR")
            dots[(self.n_tiles,)](out, hidden, read, self.order, *tiles, **constants)
        return out


# --- kernels ------------------------------------------------------------------------------------


@triton.jit
def _rank(rank_ptr, transform, EVEN: tl.constexpr):
    rank = tl.load(rank_ptr + transform)
    if EVEN:
        rank = rank // 16 * 16  # unchanged, but now the compiler knows that 16 divides it
    return rank


@triton.jit(do_not_specialize=["D"])
def project(
    hidden_ptr, a_ptr, W_ptr, rows_ptr, tile_transform_ptr, tile_first_ptr, starts_ptr,
    hidden_starts_ptr, rank_ptr, rank_start_ptr, D,
    EVEN: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """hidden: one tile of entries times BR ranks of its transform."""
    transform = tl.load(tile_transform_ptr + tl.program_id(0))
    if transform < 0:
        return
    rank = _rank(rank_ptr, transform, EVEN)
    first_rank = tl.program_id(1) * BR
    if first_rank >= rank:
        return
    if EVEN:
        D = D // 16 * 16
    start = tl.load(starts_ptr + transform)
    entry = tl.load(tile_first_ptr + tl.program_id(0)) + tl.arange(0, BM)
    has_entry = entry < tl.load(starts_ptr + transform + 1)
    row = tl.load(rows_ptr + entry, mask=has_entry, other=0)
    r = first_rank + tl.arange(0, BR)
    has_r = r < rank
    W_row = tl.load(rank_start_ptr + transform) + r
    acc = tl.zeros((BM, BR), tl.float32)
    for first in range(0, D, BK):
        d = first + tl.arange(0, BK)
        has_d = d < D
        a_mask = has_entry[:, None] & has_d[None, :]
        a = tl.load(a_ptr + row[:, None] * D + d[None, :], mask=a_mask, other=0.0)
        W_mask = has_r[:, None] & has_d[None, :]
        W = tl.load(W_ptr + W_row[:, None] * D + d[None, :], mask=W_mask, other=0.0)
        acc = tl.dot(a, tl.trans(W), acc, input_precision=PRECISION)
    base = tl.load(hidden_starts_ptr + transform)
    if EVEN:
        base = base // 16 * 16
    position = base + (entry - start)[:, None] * rank + r[None, :]
    value = acc.to(hidden_ptr.dtype.element_ty)
    tl.store(hidden_ptr + position, value, mask=has_entry[:, None] & has_r[None, :])


@triton.jit(do_not_specialize=["first_d", "piece", "D"])
def expand(
    part_ptr, hidden_ptr, values_ptr, W_ptr, order_ptr, tile_transform_ptr, tile_first_ptr,
    starts_ptr, hidden_starts_ptr, rank_ptr, rank_start_ptr, first_d, piece, D,
    EVEN: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """part: one tile of entries, in BD columns of the piece that begins at first_d."""
    transform = tl.load(tile_transform_ptr + tl.program_id(0))
    if transform < 0:
        return
    rank = _rank(rank_ptr, transform, EVEN)
    piece = piece // 16 * 16  # a multiple of BD
    first_d = first_d // 16 * 16
    if EVEN:
        D = D // 16 * 16
    start = tl.load(starts_ptr + transform)
    entry = tl.load(tile_first_ptr + tl.program_id(0)) + tl.arange(0, BM)
    has_entry = entry < tl.load(starts_ptr + transform + 1)
    stored = tl.load(order_ptr + entry, mask=has_entry, other=0)
    gate = tl.load(values_ptr + stored, mask=has_entry, other=0.0).to(tl.float32)
    within = tl.program_id(1) * BD + tl.arange(0, BD)
    d = first_d + within
    has_d = (within < piece) & (d < D)
    base = tl.load(hidden_starts_ptr + transform)
    if EVEN:
        base = base // 16 * 16
    hidden_row = base + (entry - start) * rank
    W_first = tl.load(rank_start_ptr + transform)
    acc = tl.zeros((BM, BD), tl.float32)
    for first_rank in range(0, rank, BR):
        r = first_rank + tl.arange(0, BR)
        has_r = r < rank
        h_mask = has_entry[:, None] & has_r[None, :]
        h = tl.load(hidden_ptr + hidden_row[:, None] + r[None, :], mask=h_mask, other=0.0)
        W_mask = has_r[:, None] & has_d[None, :]
        W = tl.load(W_ptr + (W_first + r)[:, None] * D + d[None, :], mask=W_mask, other=0.0)
        acc = tl.dot(h, W, acc, input_precision=PRECISION)
    value = (gate[:, None] * acc).to(part_ptr.dtype.element_ty)
    position = stored[:, None] * piece + within[None, :]
    tl.store(part_ptr + position, value, mask=has_entry[:, None] & has_d[None, :])


@triton.jit(do_not_specialize=["first_d", "piece", "D"])
def add_rows(
    y_ptr, part_ptr, row_starts_ptr, first_d, piece, D,
    EVEN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y: the sum of one row's parts in their order, in BD columns of the piece from first_d on."""
    piece = piece // 16 * 16
    first_d = first_d // 16 * 16
    if EVEN:
        D = D // 16 * 16
    row = tl.program_id(0).to(tl.int64)
    within = tl.program_id(1) * BD + tl.arange(0, BD)
    d = first_d + within
    has_d = (within < piece) & (d < D)
    acc = tl.zeros((BD,), tl.float32)
    for entry in range(tl.load(row_starts_ptr + row), tl.load(row_starts_ptr + row + 1)):
        acc += tl.load(part_ptr + entry * piece + within, mask=has_d, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + d, acc.to(y_ptr.dtype.element_ty), mask=has_d)


@triton.jit(do_not_specialize=["D"])
def outer(
    g_W_ptr, hidden_ptr, values_ptr, a_ptr, order_ptr, rows_ptr, tile_transform_ptr,
    tile_first_ptr, starts_ptr, hidden_starts_ptr, rank_ptr, rank_start_ptr, D,
    EVEN: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """g_W: BR ranks of one transform and BD columns, summed over its entries, BM at a time."""
    transform = tl.load(tile_transform_ptr + tl.program_id(0))
    rank = _rank(rank_ptr, transform, EVEN)
    if EVEN:
        D = D // 16 * 16
    r = tl.load(tile_first_ptr + tl.program_id(0)) + tl.arange(0, BR)
    has_r = r < rank
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    has_d = d < D
    base = tl.load(hidden_starts_ptr + transform)
    if EVEN:
        base = base // 16 * 16
    start = tl.load(starts_ptr + transform)
    end = tl.load(starts_ptr + transform + 1)
    acc = tl.zeros((BR, BD), tl.float32)
    for first in range(start, end, BM):
        entry = first + tl.arange(0, BM)
        has_entry = entry < end
        stored = tl.load(order_ptr + entry, mask=has_entry, other=0)
        row = tl.load(rows_ptr + entry, mask=has_entry, other=0)
        gate = tl.load(values_ptr + stored, mask=has_entry, other=0.0).to(tl.float32)
        position = base + (entry - start)[:, None] * rank + r[None, :]
        h_mask = has_entry[:, None] & has_r[None, :]
        h = tl.load(hidden_ptr + position, mask=h_mask, other=0.0).to(tl.float32) * gate[:, None]
        a_mask = has_entry[:, None] & has_d[None, :]
        a = tl.load(a_ptr + row[:, None] * D + d[None, :], mask=a_mask, other=0.0)
        acc = tl.dot(tl.trans(h.to(a.dtype)), a, acc, input_precision=PRECISION)
    W_row = tl.load(rank_start_ptr + transform) + r
    value = acc.to(g_W_ptr.dtype.element_ty)
    tl.store(g_W_ptr + W_row[:, None] * D + d[None, :], value, mask=has_r[:, None] & has_d[None, :])


@triton.jit
def dots(
    out_ptr, hidden_ptr, read_ptr, order_ptr, tile_transform_ptr, tile_first_ptr, starts_ptr,
    hidden_starts_ptr, rank_ptr,
    EVEN: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """out: <hidden, read> of each entry in one tile."""
    transform = tl.load(tile_transform_ptr + tl.program_id(0))
    if transform < 0:
        return
    rank = _rank(rank_ptr, transform, EVEN)
    base = tl.load(hidden_starts_ptr + transform)
    if EVEN:
        base = base // 16 * 16
    start = tl.load(starts_ptr + transform)
    entry = tl.load(tile_first_ptr + tl.program_id(0)) + tl.arange(0, BM)
    has_entry = entry < tl.load(starts_ptr + transform + 1)
    position = base + (entry - start) * rank
    acc = tl.zeros((BM, BR), tl.float32)
    for first_rank in range(0, rank, BR):
        r = first_rank + tl.arange(0, BR)
        mask = has_entry[:, None] & (r < rank)[None, :]
        h = tl.load(hidden_ptr + position[:, None] + r[None, :], mask=mask, other=0.0)
        read = tl.load(read_ptr + position[:, None] + r[None, :], mask=mask, other=0.0)
        acc += h.to(tl.float32) * read.to(tl.float32)
    stored = tl.load(order_ptr + entry, mask=has_entry, other=0)
    tl.store(out_ptr + stored, tl.sum(acc, 1).to(out_ptr.dtype.element_ty), mask=has_entry)


# --- configurations -------------------------------------------------------------------------------

_INTEGERS = {"tile_first_ptr": "*i64", "tile_transform_ptr": "*i32", "rank_ptr": "*i32"}
_SIZES = "first_d", "piece", "D"


def shipped() -> list[Variant]:
    """Every kernel with every dtype. TF32 is chosen for speed, so only with whole vectors."""
    variants = []
    for dtype in TYPES:
        for even, tf32 in ((True, False), (False, False), (True, True)):
            if not tf32 or dtype is torch.float32:
                variants += _variants(dtype, even, tf32)
    return variants


def _variants(dtype: torch.dtype, even: bool, tf32: bool) -> list[Variant]:
    constants_of_all = config(dtype, even, tf32)
    kernels = [project, expand, outer] if tf32 else [project, expand, outer, dots, add_rows]
    variants = []
    for kernel in kernels:
        constants = {k: v for k, v in constants_of_all.items() if k in kernel.arg_names}
        if kernel is add_rows:
            constants["BD"] = SUM_WIDTH
        signature = {
            name: _kind(name, TYPES[dtype], kernel is outer)
            for name in kernel.arg_names
            if name not in constants
        }
        variants.append(Variant(kernel, signature, constants))
    return variants


def _kind(argument: str, dtype: str, of_ranks: bool) -> str:
    if argument in _SIZES:
        return "i32"
    if argument == "tile_first_ptr" and of_ranks:
        return "*i32"
    if argument in _INTEGERS:
        return _INTEGERS[argument]
    floats = "hidden_ptr", "a_ptr", "W_ptr", "g_W_ptr", "part_ptr", "y_ptr", "out_ptr", "read_ptr"
    return f"*{dtype}" if argument in (*floats, "values_ptr") else "*i64"
