"""One program for every row: its gradient is summed, used and never written."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# A launch takes numbers where the kernel says constexpr, and options of its own.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictlearn_kernels.fused_adam.moments import BFloat16, EightBit, Full, Moments
from dictlearn_kernels.fused_adam.rounding import to_bfloat16, to_codes
from dictlearn_kernels.fused_adam.types import FREE, SUM, Features, Step, projected, rows_of
from dictlearn_kernels.shipped import Variant
from dictlearn_kernels.weight_grad import RowGradient

CHUNK = 64  # entries that one program sums where a column has many: a feature that always fires
STORED = {"float32": ("*fp32", "*fp32"), "bfloat16": ("*bf16", "*bf16"), "8bit": ("*i8", "*u8")}
WIDEST = 1024  # numbers of a row at once: 4 of each tensor for a thread
ROOMY = 128  # registers, where ptxas would rather spill than have fewer programs at once


def warps(size: int) -> int:
    return max(1, size // 128)


@triton.jit
def _sum_entries(total, g_ptr, rows_ptr, values_ptr, low, high, D, d, inside):
    for entry in range(low, high):
        row = tl.load(rows_ptr + entry).to(tl.int64)
        value = tl.load(values_ptr + entry).to(tl.float32)
        g = tl.load(g_ptr + row * D + d, mask=inside, other=0.0).to(tl.float32)
        total += value * g
    return total


@triton.jit
def _row_gradient(
    g_ptr,
    rows_ptr,
    values_ptr,
    partial_ptr,
    dense_ptr,
    low,
    high,
    row,
    D,
    d,
    inside,
    HAS_DENSE: tl.constexpr,
    CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Entries low to high - 1: those outside whole chunks one by one, the chunks' sums in order."""
    total = tl.zeros((SIZE,), tl.float32)
    if HAS_DENSE:
        total += tl.load(dense_ptr + row * D + d, mask=inside, other=0.0).to(tl.float32)
    first, last = (low + CHUNK - 1) // CHUNK, high // CHUNK
    head = tl.minimum(high, first * CHUNK)
    total = _sum_entries(total, g_ptr, rows_ptr, values_ptr, low, head, D, d, inside)
    for chunk in range(first, last):
        total += tl.load(partial_ptr + chunk * D + d, mask=inside, other=0.0)
    tail = tl.maximum(head, last * CHUNK)
    return _sum_entries(total, g_ptr, rows_ptr, values_ptr, tail, high, D, d, inside)


@triton.jit
def chunk_sums_kernel(
    g_ptr,
    rows_ptr,
    values_ptr,
    columns_ptr,
    partial_ptr,
    D,
    CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Sums of whole chunks that lie in one column. The others are not read."""
    chunk = tl.program_id(0)
    low = chunk * CHUNK
    if tl.load(columns_ptr + low) == tl.load(columns_ptr + low + CHUNK - 1):
        d = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
        inside = d < D
        total = tl.zeros((SIZE,), tl.float32)
        total = _sum_entries(total, g_ptr, rows_ptr, values_ptr, low, low + CHUNK, D, d, inside)
        tl.store(partial_ptr + chunk.to(tl.int64) * D + d, total, mask=inside)


@triton.jit(do_not_specialize=["first_row"])
def measure_kernel(
    w_ptr,
    g_ptr,
    rows_ptr,
    values_ptr,
    starts_ptr,
    partial_ptr,
    dense_ptr,
    square_ptr,
    along_ptr,
    unit_ptr,
    first_row,
    D,
    HAS_DENSE: tl.constexpr,
    PROJECT: tl.constexpr,
    CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Adds a row's squared gradient, and its part along the feature's norm, to other parts' sums.

    w / unit is the gradient of the feature's norm in this row.
    """
    feature = tl.program_id(0).to(tl.int64)
    row = first_row + feature
    low, high = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    square, dot = 0.0, 0.0
    for start in range(0, D, SIZE):
        d = start + tl.arange(0, SIZE)
        inside = d < D
        g = _row_gradient(
            g_ptr, rows_ptr, values_ptr, partial_ptr, dense_ptr,
            low, high, row, D, d, inside, HAS_DENSE, CHUNK, SIZE,
        )  # fmt: skip
        square += tl.sum(g * g)
        if PROJECT:
            w = tl.load(w_ptr + row * D + d, mask=inside, other=0.0).to(tl.float32)
            dot += tl.sum(g * w)
    tl.store(square_ptr + feature, tl.load(square_ptr + feature) + square)
    if PROJECT:
        dot = dot / tl.load(unit_ptr + feature)
        tl.store(along_ptr + feature, tl.load(along_ptr + feature) + dot)


@triton.jit
def _moved(
    w_ptr, first_ptr, second_ptr, g_ptr, rows_ptr, values_ptr, partial_ptr, dense_ptr,
    low, high, row, D, d, inside, along, first_scale, second_scale, scale, beta1, beta2,
    HAS_DENSE: tl.constexpr, PROJECT: tl.constexpr, FORM: tl.constexpr,
    CHUNK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """(the weights before the step, both moments after it) at d."""
    g = _row_gradient(
        g_ptr, rows_ptr, values_ptr, partial_ptr, dense_ptr,
        low, high, row, D, d, inside, HAS_DENSE, CHUNK, SIZE,
    )  # fmt: skip
    at = row * D + d
    w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if PROJECT:
        g -= along * w
    g *= scale
    first = tl.load(first_ptr + at, mask=inside, other=0).to(tl.float32)
    second = tl.load(second_ptr + at, mask=inside, other=0).to(tl.float32)
    if FORM == "8bit":
        first = first * tl.abs(first) * (first_scale / 127 / 127)
        second = second * second
        second = second * second * (second_scale / 255 / 255 / 255 / 255)
    first += (1 - beta1) * (g - first)
    second = beta2 * second + (1 - beta2) * g * g
    return w, first, second


@triton.jit(do_not_specialize=["first_row"])
def largest_kernel(
    largest_ptr,
    largest_square_ptr,
    w_ptr,
    first_ptr,
    second_ptr,
    first_scale_ptr,
    second_scale_ptr,
    g_ptr,
    rows_ptr,
    values_ptr,
    starts_ptr,
    partial_ptr,
    dense_ptr,
    along_ptr,
    unit_ptr,
    first_row,
    D,
    scale,
    beta1,
    beta2,
    HAS_DENSE: tl.constexpr,
    PROJECT: tl.constexpr,
    CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The largest magnitudes that a row's moments will have after the step, in 8 bits their scales."""
    feature = tl.program_id(0).to(tl.int64)
    row = first_row + feature
    low, high = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    along = 0.0
    if PROJECT:
        along = tl.load(along_ptr + feature) / tl.load(unit_ptr + feature)
    first_scale, second_scale = tl.load(first_scale_ptr + row), tl.load(second_scale_ptr + row)
    largest, largest_square = 0.0, 0.0
    for start in range(0, D, SIZE):
        d = start + tl.arange(0, SIZE)
        _, first, second = _moved(
            w_ptr, first_ptr, second_ptr, g_ptr, rows_ptr, values_ptr, partial_ptr, dense_ptr,
            low, high, row, D, d, d < D, along, first_scale, second_scale, scale, beta1, beta2,
            HAS_DENSE, PROJECT, "8bit", CHUNK, SIZE,
        )  # fmt: skip
        largest = tl.maximum(largest, tl.max(tl.abs(first)))
        largest_square = tl.maximum(largest_square, tl.max(second))
    tl.store(largest_ptr + feature, largest)
    tl.store(largest_square_ptr + feature, largest_square)


@triton.jit(do_not_specialize=["first_row", "seed"])
def update_kernel(
    w_ptr,
    first_ptr,
    second_ptr,
    first_scale_ptr,
    second_scale_ptr,
    largest_ptr,
    largest_square_ptr,
    shadow_ptr,
    g_ptr,
    rows_ptr,
    values_ptr,
    starts_ptr,
    partial_ptr,
    dense_ptr,
    along_ptr,
    unit_ptr,
    norm_ptr,
    first_row,
    D,
    seed,
    length,
    scale,
    lr,
    beta1,
    beta2,
    eps,
    root_correction,
    HAS_DENSE: tl.constexpr,
    HAS_SHADOW: tl.constexpr,
    PROJECT: tl.constexpr,
    RESTORE: tl.constexpr,
    FORM: tl.constexpr,
    WHOLE: tl.constexpr,
    CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Adam on a row. `lr` and `root_correction` hold the corrections of the moments' bias.

    FORM says how moments are stored. In 8 bits a row has one scale: unless SIZE holds the WHOLE row,
    `largest_kernel` has found it.
    """
    feature = tl.program_id(0).to(tl.int64)
    row = first_row + feature
    low, high = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    along, first_scale, second_scale = 0.0, 0.0, 0.0
    if PROJECT:
        along = tl.load(along_ptr + feature) / tl.load(unit_ptr + feature)
    largest, largest_square = 0.0, 0.0
    if FORM == "8bit":
        first_scale, second_scale = tl.load(first_scale_ptr + row), tl.load(second_scale_ptr + row)
        if not WHOLE:
            largest = tl.load(largest_ptr + feature)
            largest_square = tl.load(largest_square_ptr + feature)
    after = 0.0
    for start in range(0, D, SIZE):
        d = start + tl.arange(0, SIZE)
        inside = d < D
        w, first, second = _moved(
            w_ptr, first_ptr, second_ptr, g_ptr, rows_ptr, values_ptr, partial_ptr,
            dense_ptr, low, high, row, D, d, inside, along, first_scale, second_scale,
            scale, beta1, beta2, HAS_DENSE, PROJECT, FORM, CHUNK, SIZE,
        )  # fmt: skip
        at = row * D + d
        w -= lr * first / (tl.sqrt(second) * root_correction + eps)
        if FORM != "float32":
            noise = tl.randint(seed, at.to(tl.int32))
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
        if HAS_SHADOW and not RESTORE:
            tl.store(shadow_ptr + at, w.to(shadow_ptr.dtype.element_ty), mask=inside)
        after += tl.sum(tl.where(inside, w * w, 0.0))
    if FORM == "8bit":
        tl.store(first_scale_ptr + row, largest)
        tl.store(second_scale_ptr + row, largest_square)
    tl.store(norm_ptr + feature, tl.sqrt(after))
    if RESTORE:
        tl.debug_barrier()  # what one thread wrote, another may read
        norm = tl.maximum(tl.sqrt(after) / length, 1e-12)
        for start in range(0, D, SIZE):
            at = start + tl.arange(0, SIZE)
            inside = at < D
            w = tl.load(w_ptr + row * D + at, mask=inside, other=0.0) / norm
            tl.store(w_ptr + row * D + at, w, mask=inside)
            if HAS_SHADOW:
                tl.store(shadow_ptr + row * D + at, w.to(shadow_ptr.dtype.element_ty), mask=inside)


class _Factors:
    """A row gradient as the kernels take it: one product over all rows, and chunk sums."""

    def __init__(self, gradient: RowGradient, n_rows: int):
        product = gradient.whole(n_rows)
        self.g_RD = product.g_RD.contiguous()
        self.rows, self.values, self.columns, self.starts = product.sorted()
        self.dense = gradient.dense_RD
        width = gradient.width
        self.size = min(WIDEST, triton.next_power_of_2(width))
        n_chunks = len(self.values) // CHUNK
        self.partial = self.g_RD.new_empty(max(1, n_chunks), width, dtype=torch.float32)
        if n_chunks:
            chunk_sums_kernel[(n_chunks, triton.cdiv(width, self.size))](
                self.g_RD,
                self.rows,
                self.values,
                self.columns,
                self.partial,
                width,
                CHUNK=CHUNK,  # type: ignore[arg-type]
                SIZE=self.size,
                num_warps=warps(self.size),  # type: ignore[call-arg]
            )

    def arguments(self, **options: bool) -> Any:
        return options | {
            "g_ptr": self.g_RD,
            "rows_ptr": self.rows,
            "values_ptr": self.values,
            "starts_ptr": self.starts,
            "partial_ptr": self.partial,
            "dense_ptr": self.dense,
            "HAS_DENSE": self.dense is not None,
            "CHUNK": CHUNK,
            "SIZE": self.size,
            "num_warps": warps(self.size),
        }


def _factors(parameter: Tensor, gradient: RowGradient | None) -> _Factors | None:
    """Made once for all parts that a parameter's rows are in."""
    if gradient is None:
        return None
    if gradient.prepared is None:
        gradient.prepared = _Factors(gradient, len(rows_of(parameter)))
    return gradient.prepared


def _unit(features: Features, w_ND: Tensor) -> Tensor | None:
    """What rows are divided by to give the gradient of the feature's norm: [n]."""
    if features.norm == FREE:
        return None
    if features.norm == SUM:
        return torch.linalg.vector_norm(w_ND, dim=-1).clamp_min_(1e-12)
    return w_ND.new_full((features.n,), features.length)


def measure(
    features: Features, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    parameter = features.parts[0][0]
    square_N = parameter.new_zeros(features.n, dtype=torch.float32)
    along_N = torch.zeros_like(square_N)
    for (p, first_row), gradient in zip(features.parts, gradients, strict=True):
        factors = _factors(p, gradient)
        if factors is None or features.n == 0:
            continue
        measure_kernel[(features.n,)](
            w_ptr=rows_of(p),
            square_ptr=square_N,
            along_ptr=along_N,
            unit_ptr=_unit(features, rows_of(p)[first_row : first_row + features.n]),
            first_row=first_row,
            D=p.shape[-1],
            **factors.arguments(PROJECT=features.norm != FREE),
        )
    return projected(features, square_N.double().sum(), along_N)


def update(
    features: Features,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float,
) -> None:
    restored_alone = features.norm != FREE and len(features.parts) == 1
    norms = []
    for (p, first_row), gradient, stored, step in zip(
        features.parts, gradients, moments, steps, strict=True
    ):
        w_RD, factors = rows_of(p), _factors(p, gradient)
        if factors is None or stored is None or step is None:
            norms.append(torch.linalg.vector_norm(w_RD[first_row : first_row + features.n], dim=-1))
            continue
        assert isinstance(stored, Full | BFloat16 | EightBit)
        whole = not isinstance(stored, EightBit) or p.shape[-1] <= factors.size
        scales = (stored.first_scale, stored.second_scale) if isinstance(stored, EightBit) else None
        norm_N = w_RD.new_empty(features.n, dtype=torch.float32)
        given = {
            "w_ptr": w_RD,
            "first_ptr": stored.first,
            "second_ptr": stored.second,
            "first_scale_ptr": scales and scales[0],
            "second_scale_ptr": scales and scales[1],
            "along_ptr": along_N,
            "unit_ptr": _unit(features, w_RD[first_row : first_row + features.n]),
            "first_row": first_row,
            "D": p.shape[-1],
            "scale": scale,
            "beta1": step.beta1,
            "beta2": step.beta2,
        }
        given |= factors.arguments(PROJECT=along_N is not None)
        largest = largest_square = None
        if not whole:
            largest, largest_square = torch.empty_like(norm_N), torch.empty_like(norm_N)
            largest_kernel[(features.n,)](largest, largest_square, **given)
        update_kernel[(features.n,)](
            **given,
            largest_ptr=largest,
            largest_square_ptr=largest_square,
            shadow_ptr=features.shadow,
            norm_ptr=norm_N,
            seed=step.seed,
            length=features.length,
            lr=step.lr / (1 - step.beta1**step.number),
            eps=step.eps,
            root_correction=(1 - step.beta2**step.number) ** -0.5,
            HAS_SHADOW=features.shadow is not None,
            RESTORE=restored_alone,
            FORM=stored.form,
            WHOLE=whole,
            **({} if whole else {"maxnreg": ROOMY}),
        )
        norms.append(norm_N)
    if features.norm == FREE or restored_alone:
        return
    norms_PN = torch.stack(norms)
    whole = norms_PN.sum(0) if features.norm == SUM else torch.linalg.vector_norm(norms_PN, dim=0)
    whole = (whole / features.length).clamp_min(1e-12)
    for p, first_row in features.parts:
        rows_of(p)[first_row : first_row + features.n].div_(whole[:, None])


def shipped() -> list[Variant]:
    """Every kernel at a wide row with each option that occurs, and at a narrow one with the most."""
    entries = {"g_ptr": "*fp32", "rows_ptr": "*i64", "values_ptr": "*fp32", "D": "i32"}
    chunks = {**entries, "columns_ptr": "*i64", "partial_ptr": "*fp32"}
    row = {**entries, "w_ptr": "*fp32", "starts_ptr": "*i64", "partial_ptr": "*fp32"}
    row |= {"along_ptr": "*fp32", "unit_ptr": "*fp32", "first_row": "i32"}
    measured = {**row, "square_ptr": "*fp32"}
    updated = {**row, "shadow_ptr": "*bf16", "norm_ptr": "*fp32", "seed": "i32"}
    numbers = ("length", "scale", "lr", "beta1", "beta2", "eps", "root_correction")
    updated |= dict.fromkeys(numbers, "fp32")
    variants = []
    # Of a dense gradient; of a norm that is kept.
    parts = [(False, False), (True, False), (True, True)]
    for size, dense, project in [*((WIDEST, *one) for one in parts), (64, True, True)]:
        fixed = {"CHUNK": CHUNK, "SIZE": size}
        variants.append(Variant(chunk_sums_kernel, chunks, fixed, warps(size)))
        fixed = {**fixed, "HAS_DENSE": dense, "PROJECT": project}
        beside: dict[str, str] = {"dense_ptr": "*fp32"} if dense else {}
        absent = {} if dense else {"dense_ptr": None}
        constants = {**fixed, **absent}
        variants.append(Variant(measure_kernel, {**measured, **beside}, constants, warps(size)))
        for form, (first, second) in STORED.items():
            stored = {**updated, **beside, "first_ptr": first, "second_ptr": second}
            scales = dict.fromkeys(("first_scale_ptr", "second_scale_ptr"), "*fp32")
            found = dict.fromkeys(("largest_ptr", "largest_square_ptr"), "*fp32")
            if form == "8bit":
                given = stored | scales | found
                names = largest_kernel.arg_names
                wanted = {name: given[name] for name in names if name in given}
                variants.append(Variant(largest_kernel, wanted, constants, warps(size)))
            for whole in (True, False) if form == "8bit" else (True,):
                signature, options = dict(stored), dict(constants)
                for pointers, there in ((scales, form == "8bit"), (found, not whole)):
                    if there:
                        signature |= pointers
                    else:
                        options |= dict.fromkeys(pointers)
                options |= {"RESTORE": project, "FORM": form, "WHOLE": whole, "HAS_SHADOW": True}
                room = None if whole else ROOMY
                variants.append(
                    Variant(update_kernel, signature, options, warps(size), maxnreg=room)
                )
    return variants
