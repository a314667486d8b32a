"""A matmul whose epilogue writes one bit an entry: whether its upper bound exceeds a threshold."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels import bounds
from dictlearn_kernels.shipped import Variant
from dictlearn_kernels.topk_encode.triton import (
    OPERANDS,
    SWIZZLE,
    aligned,
    config,
    operands,
    tile_of,
    upper_tile,
    width_16,
)


@triton.jit(do_not_specialize=["R", "C", "D_16", "n_words"])
def above_kernel(
    x_ptr, w_ptr, over_ptr, reach_ptr, norm_ptr, error_ptr, bias_ptr, threshold_ptr, word_ptr,
    R, C, D_16, n_words,
    SWIZZLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes words [R, n_words], where bit j of word w stands for column 32 w + j."""
    tile_m, tile_n = tile_of(tl.program_id(0), R, C, BM, BN, SWIZZLE)  # pyright: ignore
    rm = tile_m * BM + tl.arange(0, BM)
    rn = tile_n * BN + tl.arange(0, BN)
    upper = upper_tile(
        x_ptr, w_ptr, over_ptr, reach_ptr, norm_ptr, error_ptr, bias_ptr, rm, rn, R, C, D_16, BM, BN, BK
    )  # fmt: skip
    threshold = tl.load(threshold_ptr + rn, mask=rn < C, other=float("inf"))
    above = (upper > threshold[None, :]) & (rn < C)[None, :]
    bits = above.to(tl.int32) << (rn & 31)[None, :]
    words = tl.sum(tl.reshape(bits, (BM, BN // 32, 32)), 2)
    word = tile_n * (BN // 32) + tl.arange(0, BN // 32)
    position = rm.to(tl.int64)[:, None] * n_words + word[None, :]
    tl.store(word_ptr + position, words, mask=(rm < R)[:, None] & (word < n_words)[None, :])


def contenders(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, threshold_C: Tensor, dtype: torch.dtype
) -> Tensor:
    """Which entries could be above their threshold, 32 columns a word: int32 [R, C / 32]."""
    R, C = len(x_RD), len(W_CD)
    n_words = -(-C // 32)
    words = torch.empty(R, n_words, dtype=torch.int32, device=x_RD.device)
    blocks, launch = config(dtype)
    terms = aligned(bounds.terms(x_RD, W_CD, b_C, dtype))
    grid = (triton.cdiv(R, blocks["BM"]) * triton.cdiv(C, blocks["BN"]),)
    above_kernel[grid](
        *terms, threshold_C, words, R, C, width_16(terms), n_words,
        SWIZZLE=SWIZZLE, **blocks, **launch,  # pyright: ignore
    )  # fmt: skip
    return words


def shipped() -> list[Variant]:
    variants = []
    sizes = dict.fromkeys(("R", "C", "D_16", "n_words"), "i32")
    for dtype in OPERANDS:
        blocks, launch = config(dtype)
        signature = {**operands(dtype), "threshold_ptr": "*fp32", "word_ptr": "*i32", **sizes}
        variants.append(Variant(above_kernel, signature, {"SWIZZLE": SWIZZLE, **blocks}, **launch))
    return variants
