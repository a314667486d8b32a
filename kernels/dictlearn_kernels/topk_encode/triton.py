"""A matmul whose epilogue keeps the largest few upper bounds of every group of columns."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels import bounds
from dictlearn_kernels.shipped import Variant
from dictlearn_kernels.topk_encode.groups import LAYOUTS, layout

NONE = tl.constexpr(-(2**31))  # less than the key of any number
SWIZZLE = 8  # tiles of columns that share their rows of x in the cache
OPERANDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@triton.jit
def tile_of(pid, R, C, BM: tl.constexpr, BN: tl.constexpr, SWIZZLE: tl.constexpr):
    """(row tile, column tile). Programs that run together share their columns first."""
    n_rows = tl.cdiv(R, BM)
    n_columns = tl.cdiv(C, BN)
    first = pid // (SWIZZLE * n_rows) * SWIZZLE
    width = tl.minimum(n_columns - first, SWIZZLE)
    return pid % (SWIZZLE * n_rows) // width, first + pid % (SWIZZLE * n_rows) % width


@triton.jit
def upper_tile(
    x_ptr, w_ptr, over_ptr, reach_ptr, norm_ptr, error_ptr, bias_ptr,
    rm, rn, R, C, D_16,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Upper bounds of x W^T + b at rows rm and columns rn, float32 [BM, BN]; inf where one is NaN.

    D_16 is the width in units of 16 numbers, so that the compiler knows that rows are aligned: 16-bit
    tiles would not fit in registers if they were loaded number by number.
    """
    D = D_16 * 16
    row = rm < R
    column = rn < C
    rk = tl.arange(0, BK)
    x_rows = x_ptr + rm.to(tl.int64)[:, None] * D
    w_rows = w_ptr + rn.to(tl.int64)[:, None] * D
    upper = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        inside = (k + rk < D)[None, :]
        x = tl.load(x_rows + (k + rk)[None, :], mask=row[:, None] & inside, other=0.0)
        w = tl.load(w_rows + (k + rk)[None, :], mask=column[:, None] & inside, other=0.0)
        upper = tl.dot(x, w.T, upper, input_precision="ieee")
    over = tl.load(over_ptr + rm, mask=row, other=0.0)
    reach = tl.load(reach_ptr + rm, mask=row, other=0.0)
    norm = tl.load(norm_ptr + rn, mask=column, other=0.0)
    error = tl.load(error_ptr + rn, mask=column, other=0.0)
    upper += over[:, None] * norm[None, :] + reach[:, None] * error[None, :]
    upper += tl.load(bias_ptr + rn, mask=column, other=0.0)[None, :]
    return tl.where(upper == upper, upper, float("inf"))


@triton.jit(do_not_specialize=["R", "C", "D_16", "n_groups"])
def top_of_groups_kernel(
    x_ptr, w_ptr, over_ptr, reach_ptr, norm_ptr, error_ptr, bias_ptr, key_ptr,
    R, C, D_16, n_groups,
    GROUP: tl.constexpr, KEPT: tl.constexpr, SWIZZLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes keys [R, n_groups, KEPT], the largest first: an upper bound and its column in its group.

    A key is the bound's float32 as an integer in the same order. Its low bits hold the column, counted
    from the group's end, so that among equal bounds the lowest column has the largest key.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), R, C, BM, BN, SWIZZLE)  # pyright: ignore
    rm = tile_m * BM + tl.arange(0, BM)
    rn = tile_n * BN + tl.arange(0, BN)
    upper = upper_tile(
        x_ptr, w_ptr, over_ptr, reach_ptr, norm_ptr, error_ptr, bias_ptr, rm, rn, R, C, D_16, BM, BN, BK
    )  # fmt: skip
    bits = upper.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = (bits & (-GROUP)) | (GROUP - 1 - (rn & (GROUP - 1)))[None, :]
    key = tl.where((rn < C)[None, :], key, NONE)
    key = tl.reshape(key, (BM, BN // GROUP, GROUP))
    group = tile_n * (BN // GROUP) + tl.arange(0, BN // GROUP)
    position = (rm.to(tl.int64)[:, None] * n_groups + group[None, :]) * KEPT
    mask = (rm < R)[:, None] & (group < n_groups)[None, :]
    for t in tl.static_range(KEPT):
        best = tl.max(key, 2)
        tl.store(key_ptr + position + t, best, mask=mask)
        key = tl.where(key == best[:, :, None], NONE, key)


def candidates(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, m: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(columns [R, m] of likely winners, -1 for none; left_out [R], a bound of all other entries)."""
    R, C = len(x_RD), len(W_CD)
    groups = layout(m, C)
    assert groups is not None
    n_groups = -(-C // groups.group)
    keys = torch.empty(R, n_groups, groups.kept, dtype=torch.int32, device=x_RD.device)
    blocks, launch = config(dtype)
    terms = aligned(bounds.terms(x_RD, W_CD, b_C, dtype))
    grid = (triton.cdiv(R, blocks["BM"]) * triton.cdiv(C, blocks["BN"]),)
    top_of_groups_kernel[grid](
        *terms, keys, R, C, width_16(terms), n_groups,
        GROUP=groups.group, KEPT=groups.kept, SWIZZLE=SWIZZLE, **blocks, **launch,  # pyright: ignore
    )  # fmt: skip
    return _best(keys, m, groups.group)


def aligned(terms: bounds.Terms) -> bounds.Terms:
    """The terms with zeros at the end of rows, up to a multiple of 16."""
    pad = (0, -terms.x_RD.shape[1] % 16)
    if pad == (0, 0):
        return terms
    x_RD, W_CD = (torch.nn.functional.pad(t, pad) for t in (terms.x_RD, terms.W_CD))
    return terms._replace(x_RD=x_RD, W_CD=W_CD)


def width_16(terms: bounds.Terms) -> int:
    return terms.x_RD.shape[1] // 16


def _best(keys_RGT: Tensor, m: int, group: int) -> tuple[Tensor, Tensor]:
    """The columns of the m largest keys, and a bound of all entries that are not among them."""
    R, _, kept = keys_RGT.shape
    keys = keys_RGT.flatten(1)
    best, positions = keys.topk(min(m + 1, keys.shape[1]), dim=1)
    columns = positions[:, :m] // kept * group + (group - 1 - (best[:, :m] & (group - 1)))
    columns = columns.masked_fill(best[:, :m] == NONE.value, -1)
    # An entry that a group did not keep is no larger than the last one that it kept.
    hidden = keys_RGT[:, :, -1].amax(1) if kept < group else best.new_full((R,), NONE.value)
    if best.shape[1] > m:
        hidden = torch.maximum(hidden, best[:, m])
    bits = hidden | (group - 1)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    left_out = bits.view(torch.float32).masked_fill(hidden == NONE.value, -torch.inf)
    return columns, left_out


def config(dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """(blocks, launch): tiles as large as registers hold.

    Tensor cores multiply 16-bit operands: the epilogue of 128 x 128 stays in registers (that of 128 x
    256 does not), and two programs share a multiprocessor, one of which multiplies while the other
    selects. Ordinary units multiply float32, and need registers for the operands too.
    """
    if dtype == torch.float32:
        return {"BM": 64, "BN": 128, "BK": 32}, {"num_warps": 8, "num_stages": 2}
    return {"BM": 128, "BN": 128, "BK": 64}, {"num_warps": 8, "num_stages": 3}


def operands(dtype: torch.dtype) -> dict[str, str]:
    """The signature of the arguments that selection kernels begin with."""
    low = f"*{OPERANDS[dtype]}"
    rest = ("over_ptr", "reach_ptr", "norm_ptr", "error_ptr", "bias_ptr")
    return {"x_ptr": low, "w_ptr": low, **dict.fromkeys(rest, "*fp32")}


def shipped() -> list[Variant]:
    variants = []
    sizes = dict.fromkeys(("R", "C", "D_16", "n_groups"), "i32")
    for dtype in OPERANDS:
        blocks, launch = config(dtype)
        signature = {**operands(dtype), "key_ptr": "*i32", **sizes}
        for group, kept in LAYOUTS:
            fixed: dict[str, Any] = {"GROUP": group, "KEPT": kept, "SWIZZLE": SWIZZLE, **blocks}
            variants.append(Variant(top_of_groups_kernel, signature, fixed, **launch))
    return variants
