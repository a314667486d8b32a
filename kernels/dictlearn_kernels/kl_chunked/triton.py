"""The KL on a GPU, a block of the vocabulary at a time. Logits stay in registers.

`statistics` goes over the vocabulary once, with both models' logits of a tile side by side. It keeps for
every row the largest logit, the sum of exponentials and the teacher's mean of (teacher - patched), and
rescales them when the largest changes. A few segments of the vocabulary run at the same time, to fill the
GPU, and are combined in their order. The KL is

    KL = E_teacher[teacher - patched] - lse(teacher) + lse(patched)

so that equal models cancel to exactly zero. The gradient (softmax(patched) - softmax(teacher)) W takes a
second pass: `gap` computes the difference for one block of the vocabulary, in float32 before it is
rounded, and `accumulate` adds its product with W. That makes five products of N x V x D where whole
logits take three, but no tensor [N, V].
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# A launch takes numbers where the kernel says constexpr, and options of its own.
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.shipped import Variant

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
GAP_BYTES = 64 * 2**20  # the size of a block of differences
PROGRAMS = 512  # the fewest programs, also for few rows: some for each multiprocessor


def config(dtype: torch.dtype, even: bool, tf32: bool) -> dict[str, Any]:
    """The constants of a launch. None depends on N or on the vocabulary.

    Two tiles of logits, BM x BV each, are in registers at once. They are as large as these allow, so
    that states and W are read fewer times. `even` says that 16 divides both widths, so that whole
    vectors are loaded; numbers loaded one by one need more registers, as products in float32 do.
    """
    small = dtype is torch.float32 or not even
    return {
        "EVEN": even,
        "BM": 32 if small else 128,
        "BV": 32 if small else 64,
        "BK": 32 if small else 64,
        "PRECISION": "tf32" if dtype is torch.float32 and tf32 else "ieee",
    }


def pipeline(constants: dict[str, Any]) -> dict[str, int]:
    """The launch's warps, one for every 16 rows of a tile and at least four, and its stages.

    Blocks that are loaded ahead take registers where numbers are loaded one by one: there is one stage.
    """
    stages = 1 if not constants["EVEN"] else 2 if constants["BM"] == 32 else 3
    return {"num_warps": max(4, constants["BM"] // 16), "num_stages": stages}


def kl_of_states(
    states_ND: Tensor,
    W_VD: Tensor,
    teacher_states_NE: Tensor,
    teacher_W_VE: Tensor,
    temperature: float,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """(KL [N] in float32, its gradient in the states [N, D] or an empty tensor)."""
    states = states_ND.contiguous(), W_VD.contiguous()
    teacher = teacher_states_NE.contiguous(), teacher_W_VE.contiguous()
    (N, D), V, E = states_ND.shape, len(W_VD), teacher_W_VE.shape[1]
    if N == 0:
        return states_ND.new_zeros(0, dtype=torch.float32), torch.zeros_like(states_ND)
    even = D % 16 == 0 and E % 16 == 0
    tf32 = torch.backends.cuda.matmul.allow_tf32
    constants = config(states_ND.dtype, even, tf32)
    ahead = pipeline(constants)
    rows, columns = triton.cdiv(N, constants["BM"]), triton.cdiv(V, constants["BV"])
    n_segments = max(1, min(columns, triton.cdiv(PROGRAMS, rows)))
    length = triton.cdiv(columns, n_segments) * constants["BV"]
    n_segments = triton.cdiv(V, length)
    parts = [states_ND.new_empty(n_segments, N, dtype=torch.float32) for _ in range(5)]
    scale = 1 / temperature
    statistics[rows, n_segments](*parts, *states, *teacher, N, V, D, E, length, scale, **constants)
    m_s, l_s, m_t, l_t, mean = (part.double() for part in parts)
    lse_s, lse_t = (m_s + l_s.log()).logsumexp(0), (m_t + l_t.log()).logsumexp(0)
    weight = (m_t + l_t.log() - lse_t).exp()
    kl_N = ((weight * mean / l_t).sum(0) - lse_t + lse_s).float()
    if not wants_gradient:
        return kl_N, states_ND.new_empty(0)
    gradient = torch.zeros(N, D, dtype=torch.float32, device=states_ND.device)
    largest = GAP_BYTES // (N * states_ND.element_size()) // constants["BV"]
    block = min(max(1, largest), columns) * constants["BV"]
    gap_NB = states_ND.new_empty(N, block)
    lse = lse_s.float(), lse_t.float()
    product = {**constants, "BD": 2 * constants["BV"]}
    del product["BV"]
    for first in range(0, V, block):
        grid = rows, triton.cdiv(min(block, V - first), constants["BV"])
        sizes = N, V, D, E, first, block
        gap[grid](gap_NB, *lse, *states, *teacher, *sizes, scale, **constants, **ahead)
        grid = rows, triton.cdiv(D, product["BD"])
        sizes = N, V, D, first, block
        accumulate[grid](gradient, gap_NB, states[1], *sizes, **product, **ahead)
    return kl_N, (gradient * scale).to(states_ND.dtype)


@triton.jit
def _logits(
    states_ptr, W_ptr, n, v, N, V, D,
    BM: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """states W^T for rows n and ids v: [BM, BV]."""
    acc = tl.zeros((BM, BV), tl.float32)
    for first in range(0, D, BK):
        d = first + tl.arange(0, BK)
        s_mask = (n < N)[:, None] & (d < D)[None, :]
        s = tl.load(states_ptr + n[:, None] * D + d[None, :], mask=s_mask, other=0.0)
        W_mask = (v < V)[:, None] & (d < D)[None, :]
        W = tl.load(W_ptr + v[:, None] * D + d[None, :], mask=W_mask, other=0.0)
        acc = tl.dot(s, tl.trans(W), acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["N", "V", "D", "E", "length"])
def statistics(
    m_s_ptr, l_s_ptr, m_t_ptr, l_t_ptr, mean_ptr, states_ptr, W_ptr, teacher_states_ptr,
    teacher_W_ptr, N, V, D, E, length, scale,
    EVEN: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the statistics of BM rows over one segment of the vocabulary, `length` ids long."""
    if EVEN:  # unchanged, but now the compiler knows that 16 divides them
        D = D // 16 * 16
        E = E // 16 * 16
    n = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    first = tl.program_id(1).to(tl.int64) * length
    m_s = tl.full((BM,), float("-inf"), tl.float32)
    m_t = tl.full((BM,), float("-inf"), tl.float32)
    l_s = tl.zeros((BM,), tl.float32)
    l_t = tl.zeros((BM,), tl.float32)
    mean = tl.zeros((BM,), tl.float32)
    for start in range(0, length, BV):
        v = first + start + tl.arange(0, BV)
        has_v = (v < V)[None, :]
        s = scale * _logits(states_ptr, W_ptr, n, v, N, V, D, BM, BV, BK, PRECISION)
        t = scale * _logits(teacher_states_ptr, teacher_W_ptr, n, v, N, V, E, BM, BV, BK, PRECISION)
        gap = t - s
        s = tl.where(has_v, s, float("-inf"))
        t = tl.where(has_v, t, float("-inf"))
        # A segment's first block has at least one id, so the largest is finite from there on.
        new = tl.maximum(m_s, tl.max(s, 1))
        l_s = l_s * tl.exp(m_s - new) + tl.sum(tl.exp(s - new[:, None]), 1)
        m_s = new
        new = tl.maximum(m_t, tl.max(t, 1))
        p = tl.exp(t - new[:, None])
        kept = tl.exp(m_t - new)
        l_t = l_t * kept + tl.sum(p, 1)
        mean = mean * kept + tl.sum(p * gap, 1)
        m_t = new
    position = tl.program_id(1).to(tl.int64) * N + n
    tl.store(m_s_ptr + position, m_s, mask=n < N)
    tl.store(l_s_ptr + position, l_s, mask=n < N)
    tl.store(m_t_ptr + position, m_t, mask=n < N)
    tl.store(l_t_ptr + position, l_t, mask=n < N)
    tl.store(mean_ptr + position, mean, mask=n < N)


@triton.jit(do_not_specialize=["N", "V", "D", "E", "first", "block"])
def gap(
    gap_ptr, lse_s_ptr, lse_t_ptr, states_ptr, W_ptr, teacher_states_ptr, teacher_W_ptr, N, V, D,
    E, first, block, scale,
    EVEN: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """softmax(patched) - softmax(teacher) for BM rows and BV ids of the block that begins at `first`."""
    if EVEN:
        D = D // 16 * 16
        E = E // 16 * 16
    n = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    within = tl.program_id(1).to(tl.int64) * BV + tl.arange(0, BV)
    v = first + within
    lse_s = tl.load(lse_s_ptr + n, mask=n < N, other=0.0)
    lse_t = tl.load(lse_t_ptr + n, mask=n < N, other=0.0)
    s = scale * _logits(states_ptr, W_ptr, n, v, N, V, D, BM, BV, BK, PRECISION)
    t = scale * _logits(teacher_states_ptr, teacher_W_ptr, n, v, N, V, E, BM, BV, BK, PRECISION)
    out = tl.exp(s - lse_s[:, None]) - tl.exp(t - lse_t[:, None])
    mask = (n < N)[:, None] & (v < V)[None, :]
    position = n[:, None] * block + within[None, :]
    tl.store(gap_ptr + position, out.to(gap_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N", "V", "D", "first", "block"])
def accumulate(
    gradient_ptr, gap_ptr, W_ptr, N, V, D, first, block,
    EVEN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """gradient += gap W over the block that begins at `first`: each program adds to a tile of its own."""
    if EVEN:
        D = D // 16 * 16
    block = block // 16 * 16  # a multiple of BV
    n = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BM, BD), tl.float32)
    for start in range(0, tl.minimum(block, V - first), BK):
        within = start + tl.arange(0, BK)
        v = (first + within).to(tl.int64)
        g_mask = (n < N)[:, None] & (v < V)[None, :]
        g = tl.load(gap_ptr + n[:, None] * block + within[None, :], mask=g_mask, other=0.0)
        W_mask = (v < V)[:, None] & (d < D)[None, :]
        W = tl.load(W_ptr + v[:, None] * D + d[None, :], mask=W_mask, other=0.0)
        acc = tl.dot(g, W, acc, input_precision=PRECISION)
    mask = (n < N)[:, None] & (d < D)[None, :]
    position = gradient_ptr + n[:, None] * D + d[None, :]
    tl.store(position, tl.load(position, mask=mask, other=0.0) + acc, mask=mask)


def shipped() -> list[Variant]:
    """Every kernel with every dtype. TF32 is chosen for speed, so only with whole vectors."""
    variants = []
    for dtype, name in TYPES.items():
        for even, tf32 in ((True, False), (False, False), (True, True)):
            if tf32 and dtype is not torch.float32:
                continue
            for kernel in (statistics, gap, accumulate):
                launch = config(dtype, even, tf32)
                ahead = pipeline(launch)
                launch["BD"] = 2 * launch["BV"]
                constants = {k: v for k, v in launch.items() if k in kernel.arg_names}
                arguments = [k for k in kernel.arg_names if k not in constants]
                signature = {k: _kind(k, name) for k in arguments}
                variants.append(Variant(kernel, signature, constants, **ahead))
    return variants


def _kind(argument: str, dtype: str) -> str:
    if argument == "scale":
        return "fp32"
    if not argument.endswith("_ptr"):
        return "i32"
    low = "gap_ptr", "states_ptr", "W_ptr", "teacher_states_ptr", "teacher_W_ptr"
    return f"*{dtype}" if argument in low else "*fp32"
