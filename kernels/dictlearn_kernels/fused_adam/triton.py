"""The optimiser on a GPU: one program for every feature sums its rows' gradients and never writes them.

A program goes through all parts of its feature, so the number of launches does not depend on theirs. It
brings the feature back to its norm when the last part has moved, and reads the rows that it has just
written from the cache: 12 parts of width 768 take 36 KB.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A launch takes numbers where the kernel says constexpr, and options of its own.
from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.fused_adam.factors import (
    CHUNK,
    FIRST,
    FIRST_ROW,
    FIRST_SCALE,
    SECOND,
    SECOND_SCALE,
    SEED,
    SLOTS,
    STARTS,
    WEIGHTS,
    WIDEST,
    address,
    chunk_sums_kernel,
    factors,
    on_device,
    pointer,
    row_gradient,
    size_for,
    warps,
)
from dictlearn_kernels.fused_adam.moments import FORMS, BFloat16, EightBit, Full, Moments
from dictlearn_kernels.fused_adam.rounding import to_bfloat16, to_codes
from dictlearn_kernels.fused_adam.types import (
    CONCAT,
    FREE,
    SUM,
    FeatureRows,
    Step,
    projected,
    rows_of,
)
from dictlearn_kernels.rounded import SLACK
from dictlearn_kernels.shipped import Variant
from dictlearn_kernels.weight_grad import RowGradient

REGISTERS = 128  # of a thread, where ptxas would spill to have more programs at once
HALF = WIDEST // 2  # numbers of a row at once, by as many threads, where a step is computed twice

# The slots of a part's numbers. LR and ROOT include the corrections of the moments' bias.
LR, BETA1, BETA2, EPS, ROOT = map(tl.constexpr, range(5))
NUMBERS = tl.constexpr(5)
SLACK_OF_NORMS = tl.constexpr(SLACK)


@triton.jit
def _square(w_ptr, row, D, SIZE: tl.constexpr):
    """A row's sum of squares."""
    square = 0.0
    for start in range(0, D, SIZE):
        d = start + tl.arange(0, SIZE)
        w = tl.load(w_ptr + row * D + d, mask=d < D, other=0.0)
        square += tl.sum(w * w)
    return square


@triton.jit
def _unit(w_ptr, row, D, length, NORM: tl.constexpr, SIZE: tl.constexpr):
    """The number that divides a row to give the gradient of its feature's norm."""
    unit = length
    if NORM == "sum":
        unit = tl.maximum(tl.sqrt(_square(w_ptr, row, D, SIZE)), 1e-12)
    return unit


@triton.jit(do_not_specialize=["n_parts"])
def measure_kernel(
    parts_ptr, square_ptr, along_ptr, n_parts, D, length,
    NORM: tl.constexpr, CHUNK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Writes a feature's squared gradient, and the gradient's part along the feature's norm."""
    feature = tl.program_id(0).to(tl.int64)
    square, along = 0.0, 0.0
    for part in range(n_parts):
        line_ptr = parts_ptr + part * SLOTS
        if tl.load(line_ptr + STARTS) != 0:
            row = tl.load(line_ptr + FIRST_ROW) + feature
            w_ptr = pointer(line_ptr, WEIGHTS, tl.float32)
            part_square, dot = 0.0, 0.0
            for start in range(0, D, SIZE):
                d = start + tl.arange(0, SIZE)
                g = row_gradient(line_ptr, row, D, d, CHUNK, SIZE)
                part_square += tl.sum(g * g)
                if NORM != "free":
                    w = tl.load(w_ptr + row * D + d, mask=d < D, other=0.0)
                    dot += tl.sum(g * w)
            square += part_square
            if NORM != "free":
                along += dot / _unit(w_ptr, row, D, length, NORM, SIZE)
    tl.store(square_ptr + feature, square)
    if NORM != "free":
        tl.store(along_ptr + feature, along)


@triton.jit
def _moved(
    line_ptr, numbers_ptr, row, D, d, along, first_scale, second_scale, scale,
    PROJECT: tl.constexpr, FORM: tl.constexpr, CHUNK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """(weights before the step, first moment after it, second moment after it) at d."""
    inside = d < D
    at = row * D + d
    g = row_gradient(line_ptr, row, D, d, CHUNK, SIZE)
    w = tl.load(pointer(line_ptr, WEIGHTS, tl.float32) + at, mask=inside, other=0.0)
    if PROJECT:
        g -= along * w
    g *= scale
    first_ptr, second_ptr = _moments(line_ptr, FORM)
    first = tl.load(first_ptr + at, mask=inside, other=0).to(tl.float32)
    second = tl.load(second_ptr + at, mask=inside, other=0).to(tl.float32)
    if FORM == "8bit":
        first = first * tl.abs(first) * (first_scale / 127 / 127)
        second = second * second
        second = second * second * (second_scale / 255 / 255 / 255 / 255)
    beta1, beta2 = tl.load(numbers_ptr + BETA1), tl.load(numbers_ptr + BETA2)
    first += (1 - beta1) * (g - first)
    second = beta2 * second + (1 - beta2) * g * g
    return w, first, second


@triton.jit
def _moments(line_ptr, FORM: tl.constexpr):
    if FORM == "8bit":
        first_ptr = pointer(line_ptr, FIRST, tl.int8)
        second_ptr = pointer(line_ptr, SECOND, tl.uint8)
    elif FORM == "bfloat16":
        first_ptr = pointer(line_ptr, FIRST, tl.bfloat16)
        second_ptr = pointer(line_ptr, SECOND, tl.bfloat16)
    else:
        first_ptr = pointer(line_ptr, FIRST, tl.float32)
        second_ptr = pointer(line_ptr, SECOND, tl.float32)
    return first_ptr, second_ptr


@triton.jit
def _step(
    line_ptr, numbers_ptr, row, D, along, scale,
    PROJECT: tl.constexpr, FORM: tl.constexpr, WHOLE: tl.constexpr,
    CHUNK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One step of Adam on a row of one part; returns the row's sum of squares afterwards.

    FORM says how moments are stored. In 8 bits a row has one scale, which must be known before its first
    code is written. So the step is computed twice, unless SIZE holds the WHOLE row.
    """
    w_ptr = pointer(line_ptr, WEIGHTS, tl.float32)
    first_ptr, second_ptr = _moments(line_ptr, FORM)
    lr, eps = tl.load(numbers_ptr + LR), tl.load(numbers_ptr + EPS)
    root_correction = tl.load(numbers_ptr + ROOT)
    first_scale, second_scale, largest, largest_square = 0.0, 0.0, 0.0, 0.0
    if FORM == "8bit":
        first_scale = tl.load(pointer(line_ptr, FIRST_SCALE, tl.float32) + row)
        second_scale = tl.load(pointer(line_ptr, SECOND_SCALE, tl.float32) + row)
        if not WHOLE:
            for start in range(0, D, SIZE):
                d = start + tl.arange(0, SIZE)
                _, first, second = _moved(
                    line_ptr, numbers_ptr, row, D, d, along, first_scale, second_scale, scale,
                    PROJECT, FORM, CHUNK, SIZE,
                )  # fmt: skip
                largest = tl.maximum(largest, tl.max(tl.abs(first)))
                largest_square = tl.maximum(largest_square, tl.max(second))
    after = 0.0
    for start in range(0, D, SIZE):
        d = start + tl.arange(0, SIZE)
        inside = d < D
        w, first, second = _moved(
            line_ptr, numbers_ptr, row, D, d, along, first_scale, second_scale, scale,
            PROJECT, FORM, CHUNK, SIZE,
        )  # fmt: skip
        at = row * D + d
        w -= lr * first / (tl.sqrt(second) * root_correction + eps)
        if FORM != "float32":
            noise = tl.randint(tl.load(line_ptr + SEED).to(tl.int32), at.to(tl.int32))
            if FORM == "bfloat16":
                first = to_bfloat16(first, noise)
                second = to_bfloat16(second, noise >> 16)
            else:
                if WHOLE:
                    largest, largest_square = tl.max(tl.abs(first)), tl.max(second)
                first, second = to_codes(first, second, largest, largest_square, noise)
        tl.store(first_ptr + at, first.to(first_ptr.dtype.element_ty), mask=inside)
        tl.store(second_ptr + at, second.to(second_ptr.dtype.element_ty), mask=inside)
        tl.store(w_ptr + at, w, mask=inside)
        after += tl.sum(tl.where(inside, w * w, 0.0))
    if FORM == "8bit":
        tl.store(pointer(line_ptr, FIRST_SCALE, tl.float32) + row, largest)
        tl.store(pointer(line_ptr, SECOND_SCALE, tl.float32) + row, largest_square)
    return after


@triton.jit(do_not_specialize=["n_parts"])
def update_kernel(
    parts_ptr, numbers_ptr, along_ptr, low_ptr, norm_ptr, error_ptr, n_parts, D, length, scale,
    NORM: tl.constexpr, PROJECT: tl.constexpr, FORM: tl.constexpr, WHOLE: tl.constexpr,
    HAS_SHADOW: tl.constexpr, CHUNK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One step on all parts of a feature, then its norm, then its copy in low precision (`rounded`)."""
    feature = tl.program_id(0).to(tl.int64)
    size = 0.0  # the sum of squares, or of norms, that the feature's norm is computed from
    for part in range(n_parts):
        line_ptr = parts_ptr + part * SLOTS
        row = tl.load(line_ptr + FIRST_ROW) + feature
        w_ptr = pointer(line_ptr, WEIGHTS, tl.float32)
        if tl.load(line_ptr + STARTS) != 0:
            along = 0.0
            if PROJECT:
                along = tl.load(along_ptr + feature) / _unit(w_ptr, row, D, length, NORM, SIZE)
            after = _step(
                line_ptr, numbers_ptr + part * NUMBERS, row, D, along, scale,
                PROJECT, FORM, WHOLE, CHUNK, SIZE,
            )  # fmt: skip
        else:
            after = _square(w_ptr, row, D, SIZE)
        if NORM == "sum":
            after = tl.sqrt(after)
        size += after
    if NORM == "concat":
        size = tl.sqrt(size)
    norm = tl.maximum(size / length, 1e-12)
    if NORM != "free" or HAS_SHADOW:
        tl.debug_barrier()  # another thread may read what this one wrote
        square, error_square = 0.0, 0.0
        for part in range(n_parts):
            line_ptr = parts_ptr + part * SLOTS
            row = tl.load(line_ptr + FIRST_ROW) + feature
            w_ptr = pointer(line_ptr, WEIGHTS, tl.float32)
            for start in range(0, D, SIZE):
                d = start + tl.arange(0, SIZE)
                w = tl.load(w_ptr + row * D + d, mask=d < D, other=0.0)
                if NORM != "free":
                    w = w / norm
                    tl.store(w_ptr + row * D + d, w, mask=d < D)
                if HAS_SHADOW:
                    low = w.to(low_ptr.dtype.element_ty)
                    tl.store(low_ptr + feature * D + d, low, mask=d < D)
                    error = w - low.to(tl.float32)
                    square += tl.sum(w * w)
                    error_square += tl.sum(error * error)
        if HAS_SHADOW:
            tl.store(norm_ptr + feature, tl.sqrt_rn(square) * SLACK_OF_NORMS)
            tl.store(error_ptr + feature, tl.sqrt_rn(error_square) * SLACK_OF_NORMS)


def measure(
    rows: FeatureRows, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    first = rows.parts[0][0]
    square_N = first.new_zeros(rows.n, dtype=torch.float32)
    along_N = torch.zeros_like(square_N)
    if rows.n > 0 and any(gradients):
        lines = [
            _line(p, first_row, gradient, None, None)
            for (p, first_row), gradient in zip(rows.parts, gradients, strict=True)
        ]
        measure_kernel[(rows.n,)](
            on_device(lines, torch.int64, first),
            square_N,
            along_N,
            **_launch(rows),
        )
    return projected(rows, square_N.double().sum(), along_N)


def update(
    rows: FeatureRows,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float,
) -> None:
    first = rows.parts[0][0]
    forms = {type(stored) for stored in moments if stored is not None}
    if rows.n == 0 or not forms:
        return
    (form,) = forms
    launch = _launch(rows)
    whole = form is not EightBit or first.shape[-1] <= launch["SIZE"]
    lines = [
        _line(p, first_row, None if stored is None else gradient, stored, step)
        for (p, first_row), gradient, stored, step in zip(
            rows.parts, gradients, moments, steps, strict=True
        )
    ]
    update_kernel[(rows.n,)](
        on_device(lines, torch.int64, first),
        on_device([_numbers(step) for step in steps], torch.float32, first),
        along_N,
        *(rows.shadow or (None, None, None)),
        scale=scale,
        PROJECT=along_N is not None,
        FORM=form.form,
        WHOLE=whole,
        HAS_SHADOW=rows.shadow is not None,
        **launch | ({} if whole else {"SIZE": HALF}),
        **_registers(rows.norm, form.form),
    )


def _launch(rows: FeatureRows) -> dict[str, Any]:
    """The arguments and options of both launches."""
    width = rows.parts[0][0].shape[-1]
    size = size_for(width)
    return {
        "n_parts": len(rows.parts),
        "D": width,
        "length": rows.length,
        "NORM": rows.norm,
        "CHUNK": CHUNK,
        "SIZE": size,
        "num_warps": warps(size),
    }


def _registers(norm: str, form: str) -> dict[str, int]:
    """The limit on registers of the update. ptxas does well by itself for the simplest forms."""
    return {} if form == "float32" and norm != SUM else {"maxnreg": REGISTERS}


def _line(
    parameter: Tensor,
    first_row: int,
    gradient: RowGradient | None,
    stored: Moments | None,
    step: Step | None,
) -> list[int]:
    """A part's line of the table, slot by slot; without a gradient it has only weights."""
    sums = factors(parameter, gradient)
    summed = [0] * 6 if sums is None else sums.addresses()
    assert stored is None or isinstance(stored, Full | BFloat16 | EightBit)
    kept = [0] * 4
    if stored is not None:
        kept[:2] = address(stored.first), address(stored.second)
    if isinstance(stored, EightBit):
        kept[2:] = address(stored.first_scale), address(stored.second_scale)
    seed = 0 if step is None else step.seed
    return [address(rows_of(parameter)), *summed, *kept, first_row, seed]


def _numbers(step: Step | None) -> list[float]:
    if step is None:
        return [0.0] * NUMBERS.value
    lr = step.lr / (1 - step.beta1**step.number)
    root_correction = (1 - step.beta2**step.number) ** -0.5
    return [lr, step.beta1, step.beta2, step.eps, root_correction]


def shipped() -> list[Variant]:
    """Every kernel at a wide row with each option that occurs, and at a narrow one with the most."""
    entries = {"table_ptr": "*fp32", "rows_ptr": "*i64", "values_ptr": "*fp32"}
    chunks = {**entries, "columns_ptr": "*i64", "partial_ptr": "*fp32", "D": "i32"}
    shared = {"parts_ptr": "*i64", "n_parts": "i32", "D": "i32", "length": "fp32"}
    measured = {**shared, "square_ptr": "*fp32", "along_ptr": "*fp32"}
    updated = {**shared, "numbers_ptr": "*fp32", "scale": "fp32"}
    variants = []
    for size, norms in ((WIDEST, (FREE, CONCAT, SUM)), (64, (SUM,))):
        fixed = {"CHUNK": CHUNK, "SIZE": size}
        variants.append(Variant(chunk_sums_kernel, chunks, fixed, warps(size)))
        for norm in norms:
            constants = {**fixed, "NORM": norm}
            variants.append(Variant(measure_kernel, measured, constants, warps(size)))
            for form in FORMS:
                options = {**constants, "FORM": form, "PROJECT": norm != FREE}
                lows = ("", "*fp16", "*bf16") if norm == FREE else ("",)
                wholes = (True, False) if form == "8bit" and size == WIDEST else (True,)
                for low, whole in product(lows, wholes):
                    chosen = {**options, "WHOLE": whole, "HAS_SHADOW": low != ""}
                    chosen |= {} if whole else {"SIZE": HALF}
                    optional = {"along_ptr": "*fp32" if chosen["PROJECT"] else "", "low_ptr": low}
                    optional |= dict.fromkeys(("norm_ptr", "error_ptr"), "*fp32" if low else "")
                    signature = updated | {name: kind for name, kind in optional.items() if kind}
                    chosen |= {name: None for name, kind in optional.items() if not kind}
                    launch = {"num_warps": warps(size), **_registers(norm, form)}
                    variants.append(Variant(update_kernel, signature, chosen, **launch))
    return variants
