"""The optimiser's passes over float32 rows on a CPU. A row stays in the cache meanwhile.

Moments in low precision are read, and rounded again, in the same pass. A feature of several parts gets
its norm back once all of its rows have moved, a few features at a time, whose rows are still in the
cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import compiled
from dictlearn_kernels.compiled import array, fused, loop, sums
from dictlearn_kernels.fused_adam.moments import BFloat16, EightBit, Full, Moments
from dictlearn_kernels.fused_adam.types import (
    CONCAT,
    FREE,
    SUM,
    FeatureRows,
    Step,
    projected,
    round_shadow,
    rows_of,
)
from dictlearn_kernels.threads import over
from dictlearn_kernels.weight_grad import RowGradient

CACHED = 2**20  # weights that are still in the cache when their norms are restored


def serves(rows: FeatureRows) -> bool:
    """Whether the loops take these weights. They take moments in every form."""
    return compiled.serves(*(rows_of(p) for p, _ in rows.parts))


def measure(
    rows: FeatureRows, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    _check(rows, gradients)
    first = rows.parts[0][0]
    squares_N = torch.zeros(rows.n, dtype=torch.float64)
    along_N = first.new_zeros(0 if rows.norm == FREE else rows.n)
    out = array(squares_N), array(along_N)
    parts = [
        (array(rows_of(p)), start, _arrays(p, gradient))
        for (p, start), gradient in zip(rows.parts, gradients, strict=True)
        if gradient is not None
    ]

    def part(low: int, high: int) -> None:
        for w, start, gradient in parts:
            _measure(low, high, start, w, gradient, rows.norm == SUM, *out)

    over(rows.n, part, _size(rows))
    if rows.norm == CONCAT:
        along_N /= rows.length
    return projected(rows, squares_N.sum(), along_N)


def update(
    rows: FeatureRows,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float,
) -> None:
    _check(rows, gradients)
    if along_N is not None:
        _fit("along_N", along_N, (rows.n,))
    fixed, is_sum = rows.norm != FREE, rows.norm == SUM
    first = rows.parts[0][0]
    # Each feature's sum of squares, or of norms, which its norm is computed from.
    sizes_N = first.new_zeros(rows.n if fixed else 0)
    sizes = array(sizes_N)
    along = array(first.new_zeros(0) if along_N is None else along_N)
    change = along, np.float32(1 / rows.length), np.float32(scale), is_sum
    weights, moving = [], []
    for (p, start), gradient, stored, step in zip(
        rows.parts, gradients, moments, steps, strict=True
    ):
        w = array(rows_of(p))
        weights.append((w, start))
        if gradient is None or stored is None or step is None:
            moving.append(None)
            continue
        move, *state = _stored(stored, step, w.shape)
        moving.append((move, *state, _arrays(p, gradient), _coefficients(step)))
    n_cached = max(1, CACHED // (len(weights) * first.shape[-1]))

    def part(low: int, high: int) -> None:
        for begin in range(low, high, n_cached):
            end = min(begin + n_cached, high)
            for (w, start), moves in zip(weights, moving, strict=True):
                if moves is not None:
                    move, *arguments = moves
                    move(begin, end, start, w, *arguments, change, sizes)
                elif fixed:
                    _measure_weights(begin, end, start, w, is_sum, sizes)
            if fixed:
                for w, start in weights:
                    _restore(begin, end, start, w, is_sum, np.float32(rows.length), sizes)

    over(rows.n, part, _size(rows))
    round_shadow(rows)


def _check(rows: FeatureRows, gradients: Sequence[RowGradient | None]) -> None:
    """Raises ValueError unless every part and its gradient have these rows."""
    if len(gradients) != len(rows.parts):
        raise ValueError(f"{len(gradients)} gradients: want one for each of {len(rows.parts)}")
    for (p, start), gradient in zip(rows.parts, gradients, strict=True):
        if p.ndim < 2 or p.shape[-1] != rows.parts[0][0].shape[-1] or not serves(rows):
            raise ValueError(f"weights of {list(p.shape)}: want float32 rows of one width")
        n_rows, width = rows_of(p).shape
        if not 0 <= start <= n_rows - rows.n:
            raise ValueError(f"weights of {list(p.shape)} lack {rows.n} rows from {start} on")
        if gradient is None:
            continue
        if gradient.dense_RD is not None:
            _fit("a gradient", gradient.dense_RD, (n_rows, width))
        for product in gradient.products:
            _fit("a gradient's table", product.g_RD, (product.pattern.n_rows, width))
            _fit("a gradient's values", product.values, (len(product.pattern.columns),))
            if not 0 <= product.first_row <= n_rows - product.pattern.n_columns:
                raise ValueError(f"a gradient has more rows than its weights, {n_rows}")


def _fit(what: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> None:
    if tensor.shape != shape or (dtype and (tensor.dtype != dtype or not tensor.is_contiguous())):
        actual = f"{list(tensor.shape)} in {tensor.dtype}"
        raise ValueError(f"{what} is {actual}: want {list(shape)}{f' in {dtype}' if dtype else ''}")


def _size(rows: FeatureRows) -> int:
    """The number of weights."""
    return rows.n * sum(p.shape[-1] for p, _ in rows.parts)


def _arrays(parameter: Tensor, gradient: RowGradient) -> tuple[Any, ...]:
    """(rows of the table, values, starts, the table, the dense part) of a gradient, by parameter row."""
    if gradient.prepared is None:
        width = parameter.shape[-1]
        n_rows = parameter.numel() // width
        dense = gradient.dense_RD
        if gradient.products:
            whole = gradient.whole(n_rows)
            (rows, values, starts), table = whole.by_column, whole.g_RD
        else:
            rows = starts = torch.zeros(n_rows + 1, dtype=torch.int64)
            values, table = parameter.new_zeros(0), parameter.new_zeros(0, width)
        factors = rows, values.float(), starts, table.float().contiguous()
        dense = parameter.new_zeros(0, width) if dense is None else dense.float().contiguous()
        gradient.prepared = tuple(array(t) for t in (*factors, dense))
    return gradient.prepared


def _stored(moments: Moments, step: Step, shape: tuple[int, int]) -> tuple[Any, ...]:
    """The loop for moments in this form, with the arrays and numbers that it takes."""

    def checked(first: torch.dtype, second: torch.dtype) -> tuple[Tensor, Tensor]:
        _fit("a first moment", moments.first, shape, first)
        _fit("a second moment", moments.second, shape, second)
        return moments.first, moments.second

    if isinstance(moments, Full):
        return _update, *map(array, checked(torch.float32, torch.float32))
    seed = np.uint64(step.seed)
    if isinstance(moments, BFloat16):
        # numpy has no bfloat16, whose bits are the upper halves of float32's.
        kept = checked(torch.bfloat16, torch.bfloat16)
        return _update_bfloat16, *(array(t.view(torch.int16)) for t in kept), seed
    assert isinstance(moments, EightBit)
    codes = map(array, checked(torch.int8, torch.uint8))
    scales = moments.first_scale, moments.second_scale
    for scale in scales:
        _fit("a moment's scale", scale, (shape[0], 1), torch.float32)
    return _update_8bit, *codes, *(array(scale.view(-1)) for scale in scales), seed


def _coefficients(step: Step) -> tuple[Any, ...]:
    """The coefficients of torch's fused Adam, rounded to float32 where torch rounds them."""
    rate = step.lr / (1 - step.beta1**step.number)
    root = (1 - step.beta2**step.number) ** 0.5
    numbers = 1 - step.beta1, step.beta2, 1 - step.beta2, root, step.eps, -rate
    return tuple(np.float32(x) for x in numbers)


@sums
def _gradient(g, r, gradient):
    """Writes row r of the gradient into g."""
    rows, values, starts, table, dense = gradient
    D = len(g)
    if len(dense) > 0:
        for d in range(D):
            g[d] = dense[r, d]
    else:
        for d in range(D):
            g[d] = 0
    i, stop = starts[r], starts[r + 1]
    while i + 4 <= stop:
        x0, x1 = table[rows[i]], table[rows[i + 1]]
        x2, x3 = table[rows[i + 2]], table[rows[i + 3]]
        a0, a1, a2, a3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        for d in range(D):
            g[d] += a0 * x0[d] + a1 * x1[d] + a2 * x2[d] + a3 * x3[d]
        i += 4
    while i < stop:
        x, a = table[rows[i]], values[i]
        for d in range(D):
            g[d] += a * x[d]
        i += 1


@sums
def _norm(w):
    square = np.float32(0)
    for d in range(len(w)):
        square += w[d] * w[d]
    return np.sqrt(square)


@sums
def _measure(low, high, start, w, gradient, is_sum, squares, along):
    """Adds to each feature's squared gradient, and to its product with the gradient of the norm."""
    _, values, starts, _, dense = gradient
    D = w.shape[1]
    g = np.empty(D, np.float32)
    for n in range(low, high):
        r = start + n
        if starts[r] == starts[r + 1] and len(dense) == 0:
            continue
        if len(values) == 0:
            g_r = dense[r]
        else:
            _gradient(g, r, gradient)
            g_r = g
        square = dot = np.float32(0)
        for d in range(D):
            square += g_r[d] * g_r[d]
        squares[n] += square
        if len(along) == 0:
            continue
        w_r = w[r]
        for d in range(D):
            dot += g_r[d] * w_r[d]
        along[n] += dot / max(_norm(w_r), np.float32(1e-12)) if is_sum else dot


@sums
def _changed_gradient(g, n, r, w_r, gradient, change):
    """Writes row r of the gradient into g, scaled, without its part along the norm of feature n."""
    along, unit, scale, is_sum = change
    _gradient(g, r, gradient)
    if len(along) > 0:
        factor = along[n] / max(_norm(w_r), np.float32(1e-12)) if is_sum else along[n] * unit
        for d in range(len(g)):
            g[d] -= factor * w_r[d]
    if scale != 1:
        for d in range(len(g)):
            g[d] *= scale


@sums
def _add_size(n, w_r, change, sizes):
    if len(sizes) > 0:
        size = _norm(w_r)
        sizes[n] += size if change[3] else size * size


@loop
def _update(low, high, start, w, m, v, gradient, coefficients, change, sizes):
    g = np.empty(w.shape[1], np.float32)
    for n in range(low, high):
        r = start + n
        _changed_gradient(g, n, r, w[r], gradient, change)
        _adam(w[r], g, m[r], v[r], coefficients)
        _add_size(n, w[r], change, sizes)


@loop
def _update_bfloat16(low, high, start, w, m, v, seed, gradient, coefficients, change, sizes):
    D = w.shape[1]
    g, first, second = np.empty(D, np.float32), np.empty(D, np.float32), np.empty(D, np.float32)
    noise = np.empty(D, np.uint32)
    for n in range(low, high):
        r = start + n
        _changed_gradient(g, n, r, w[r], gradient, change)
        _from_bfloat16(m[r], first)
        _from_bfloat16(v[r], second)
        _adam(w[r], g, first, second, coefficients)
        _draw(noise, seed, r * D)
        _to_bfloat16(first, noise, 0, m[r])
        _to_bfloat16(second, noise, 16, v[r])
        _add_size(n, w[r], change, sizes)


@loop
def _update_8bit(
    low, high, start, w, m, v, m_scale, v_scale, seed, gradient, coefficients, change, sizes
):
    D = w.shape[1]
    g, first, second = np.empty(D, np.float32), np.empty(D, np.float32), np.empty(D, np.float32)
    noise = np.empty(D, np.uint32)
    m_scale_bits, v_scale_bits = m_scale.view(np.int32), v_scale.view(np.int32)
    for n in range(low, high):
        r = start + n
        _changed_gradient(g, n, r, w[r], gradient, change)
        _from_codes(m[r], v[r], m_scale[r], v_scale[r], first, second)
        _adam(w[r], g, first, second, coefficients)
        _draw(noise, seed, r * D)
        m_scale_bits[r], v_scale_bits[r] = _largest(first), _largest(second)
        _to_codes(first, second, m_scale[r], v_scale[r], noise, m[r], v[r])
        _add_size(n, w[r], change, sizes)


@loop
def _adam(w, g, m, v, coefficients):
    """One step, rounded where torch's own fused kernel rounds: tests compare the bits."""
    rise, keep_second, rise_second, root, eps, rate = coefficients
    for d in range(len(w)):
        m[d] = _fused(rise, g[d] - m[d], m[d])
        v[d] = _fused(rise_second * g[d], g[d], keep_second * v[d])
        w[d] += rate * m[d] / (np.sqrt(v[d]) / root + eps)


@fused
def _fused(a, b, c):
    return a * b + c


@loop
def _draw(noise, seed, first):
    """Random bits for the numbers from position `first` on, the same as triton.language.randint gives.

    They are the first word of Philox 4x32-10 (Salmon et al. 2011), whose 32-bit words are uint64 here.
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for d in range(len(noise)):
        c0, c1 = np.uint64(first + d) & low, np.uint64(0)
        c2, c3 = np.uint64(0), np.uint64(0)
        k0, k1 = seed & low, seed >> half
        for _ in range(10):
            a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
            c0, c1 = (b >> half) ^ c1 ^ k0, b & low
            c2, c3 = (a >> half) ^ c3 ^ k1, a & low
            k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
        noise[d] = c0


@loop
def _from_bfloat16(stored, x):
    bits = x.view(np.int32)
    for d in range(len(x)):
        bits[d] = np.int32(stored[d]) << 16


@loop
def _to_bfloat16(x, noise, shift, stored):
    """Rounds up or down by 16 bits of the noise, without bias."""
    bits = x.view(np.int32)
    for d in range(len(x)):
        stored[d] = np.int32(bits[d] + np.int32((noise[d] >> shift) & 0xFFFF)) >> 16


@loop
def _from_codes(first_codes, second_codes, first_scale, second_scale, first, second):
    """Decodes a row of both moments, as `EightBit.load` does."""
    for d in range(len(first)):
        x = np.float32(first_codes[d]) / np.float32(127)
        first[d] = x * abs(x) * first_scale
        x = np.float32(second_codes[d]) / np.float32(255)
        x *= x
        second[d] = x * x * second_scale


@loop
def _largest(x):
    """The bits of the largest magnitude: magnitudes are in the order of their bits."""
    bits = x.view(np.int32)
    largest = np.int32(0)
    for d in range(len(x)):
        largest = max(largest, np.int32(bits[d] & 0x7FFFFFFF))
    return largest


@loop
def _to_codes(first, second, first_scale, second_scale, noise, first_codes, second_codes):
    """Encodes a row of both moments as `EightBit.store` does, with 16 bits of noise for each."""
    tiny = np.float32(1.1754944e-38)
    first_scale, second_scale = max(first_scale, tiny), max(second_scale, tiny)
    for d in range(len(first)):
        x = np.sqrt(abs(first[d]) / first_scale) * np.float32(127)
        below = np.float32(np.int32(x))
        low, above = below * below, below + np.float32(1)
        chance = np.float32(np.int32(noise[d] & 0xFFFF)) * np.float32(2**-16)
        code = np.int32(below) + (x * x - low > chance * (above * above - low))
        first_codes[d] = -code if first[d] < 0 else code
    for d in range(len(second)):
        x = np.sqrt(np.sqrt(second[d] / second_scale)) * np.float32(255)
        below = np.float32(np.int32(x))
        low, above = below * below, below + np.float32(1)
        low, x, above = low * low, x * x, above * above
        chance = np.float32(np.int32(noise[d] >> 16)) * np.float32(2**-16)
        code = np.int32(below) + (x * x - low > chance * (above * above - low))
        second_codes[d] = max(code, 1) if second[d] > 0 else 0


@sums
def _measure_weights(low, high, start, w, is_sum, sizes):
    for n in range(low, high):
        size = _norm(w[start + n])
        sizes[n] += size if is_sum else size * size


@loop
def _restore(low, high, start, w, is_sum, length, sizes):
    D = w.shape[1]
    for n in range(low, high):
        size = sizes[n] if is_sum else np.sqrt(sizes[n])
        size = max(size / length, np.float32(1e-12))
        for d in range(D):
            w[start + n, d] /= size
