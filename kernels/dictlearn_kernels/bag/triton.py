"""Bags on a GPU: one program for every bag and slice of the width, and several for a long bag.

Entries are divided into blocks of CHUNK. A bag of more entries is summed in pieces, which end where a
block ends. The bag's program sums the first piece, and each later block's program sums the piece in its
block (a block begins inside at most one bag). A second kernel adds a bag's pieces in their order. So a
sum has at most CHUNK terms, nothing depends on the order in which programs run, and the host need not
know how long bags are.
"""

# pyright: reportArgumentType=false
# A launch passes numbers where the kernel says constexpr.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.shipped import Variant

# This is twice the most features that a token has in a dictionary of all layers. 8,192 tokens of 64
# features make 1,024 blocks, whose pieces take 1/64 of the memory of the weights' gradient.
CHUNK = 512
WIDTHS = (1, 32, 128, 512)
# The types of values, tables and indices that are compiled and tested. Outputs have the values' type.
TYPES = [
    ("fp32", "fp32", "i32"),
    ("fp32", "fp32", "i64"),
    ("fp32", "bf16", "i64"),
    ("bf16", "bf16", "i64"),
    ("fp32", "fp16", "i64"),
    ("fp16", "fp16", "i64"),
]


@triton.jit
def _bag_at(starts, n_bags, position):
    """The bag that the entry at `position` belongs to."""
    low = tl.zeros((), tl.int64)
    high = n_bags.to(tl.int64)
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(starts + middle).to(tl.int64) <= position
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit(do_not_specialize=["n_bags", "n_later"])
def _bag_kernel(
    out,  # [n_bags, D]
    pieces,  # fp32 [2, n_blocks, D]: of the bag that begins in a block, of the one that continues
    indices,
    starts,
    weights,
    table,
    n_bags,
    n_later,  # blocks after the first
    D,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    later = program < n_later  # programs of blocks come first, as they take longest
    block_start = (program + 1) * CHUNK
    bag = program - n_later
    if later:
        bag = _bag_at(starts, n_bags, block_start)
    low = tl.load(starts + bag).to(tl.int64)
    high = tl.load(starts + bag + 1).to(tl.int64)
    long = high - low > CHUNK
    if later:
        begin = block_start
        end = tl.where(long & (low < begin), tl.minimum(high, begin + CHUNK), begin)
    else:
        begin = low
        end = tl.where(long, (begin // CHUNK + 1) * CHUNK, high)
    acc = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(begin, end, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        index = tl.load(indices + i, mask=i < end, other=0).to(tl.int64)
        weight = tl.load(weights + i, mask=i < end, other=0.0).to(tl.float32)
        rows = tl.load(
            table + index[:, None] * D + d[None, :],
            mask=(i < end)[:, None] & (d < D)[None, :],
            other=0.0,
        ).to(tl.float32)
        acc += weight[:, None] * rows
    total = tl.sum(acc, 0)
    in_width = d < D
    tl.store(
        out + bag * D + d, total.to(out.dtype.element_ty), mask=in_width & ((later | long) == 0)
    )
    tl.store(pieces + (begin // CHUNK) * D + d, total, mask=in_width & long & (later == 0))
    own = (n_later + 1 + program + 1) * D
    tl.store(pieces + own + d, total, mask=in_width & later & (end > begin))


@triton.jit(do_not_specialize=["n_bags", "n_later"])
def _add_pieces_kernel(
    out, pieces, starts, n_bags, n_later, D, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr
):
    block = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    bag = _bag_at(starts, n_bags, (block + 1) * CHUNK)
    low = tl.load(starts + bag).to(tl.int64)
    high = tl.load(starts + bag + 1).to(tl.int64)
    if (high - low > CHUNK) & (low // CHUNK == block):
        total = tl.load(pieces + block * D + d, mask=d < D, other=0.0)
        for later in range(block + 1, (high - 1) // CHUNK + 1):
            total += tl.load(pieces + (n_later + 1 + later) * D + d, mask=d < D, other=0.0)
        tl.store(out + bag * D + d, total.to(out.dtype.element_ty), mask=d < D)


def config(D: int) -> dict[str, int]:
    """Slices of up to 512 of the width, and 8 entries at once, so that short bags have loads in flight.

    A thread has 16 numbers: with 32, unaligned addresses spill registers. Slices have few different
    widths, as a masked lane costs less than one more kernel to compile. A table of one column (sums of
    weights) takes many entries instead.
    """
    block_d = next(size for size in WIDTHS if size >= min(D, WIDTHS[-1]))
    block_k = 8 if block_d > 1 else 64
    return {
        "BLOCK_K": block_k,
        "BLOCK_D": block_d,
        "num_warps": max(1, block_k * block_d // 512),
    }


def bag(
    indices: Tensor,
    starts: Tensor,
    weights: Tensor,
    table_CD: Tensor,
    dtype: torch.dtype,
    chunk: int = CHUNK,
) -> Tensor:
    n_bags, D = len(starts) - 1, table_CD.shape[1]
    out_BD = table_CD.new_empty(n_bags, D, dtype=dtype)
    n_later = (len(indices) - 1) // chunk
    pieces = table_CD.new_empty(2, n_later + 1, D, dtype=torch.float32)
    starts, table_CD = starts.contiguous(), table_CD.contiguous()
    sizes = config(D)
    slices = triton.cdiv(D, sizes["BLOCK_D"])
    _bag_kernel[(n_later + n_bags, slices)](
        out_BD,
        pieces,
        indices.contiguous(),
        starts,
        weights.contiguous(),
        table_CD,
        n_bags,
        n_later,
        D,
        CHUNK=chunk,
        **sizes,
    )
    if n_later:
        _add_pieces_kernel[(n_later, slices)](
            out_BD, pieces, starts, n_bags, n_later, D, CHUNK=chunk, BLOCK_D=sizes["BLOCK_D"]
        )
    return out_BD


def shipped() -> list[Variant]:
    variants = []
    for D in WIDTHS:
        sizes = config(D)
        warps = sizes.pop("num_warps")
        for weight, table, index in TYPES:
            signature = {
                "out": f"*{weight}",  # the wider of the two
                "pieces": "*fp32",
                "indices": f"*{index}",
                "starts": f"*{index}",
                "weights": f"*{weight}",
                "table": f"*{table}",
                "n_bags": "i32",
                "n_later": "i32",
                "D": "i32",
            }
            constants = {"CHUNK": CHUNK, **sizes}
            variants.append(Variant(_bag_kernel, signature, constants, num_warps=warps))
            if weight == table:
                rest = {
                    k: v for k, v in signature.items() if k not in ("indices", "weights", "table")
                }
                constants = {"CHUNK": CHUNK, "BLOCK_D": sizes["BLOCK_D"]}
                variants.append(Variant(_add_pieces_kernel, rest, constants))
    return variants
