"""The CPU's passes over float32 rows: each is summed, moved and brought to its norm in the cache.

A feature of several parts is brought to its norm once all of them have moved, a few features at a
time, which are then still near.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import compiled
from dictlearn_kernels.compiled import array, fused, loop, sums
from dictlearn_kernels.fused_adam.moments import Full, Moments
from dictlearn_kernels.fused_adam.types import CONCAT, FREE, SUM, Features, Step, projected, rows_of
from dictlearn_kernels.threads import over
from dictlearn_kernels.weight_grad import RowGradient

NEAR = 2**20  # numbers of weights that are still in the cache when their norms are restored


def serves(features: Features, moments: Sequence[Moments | None]) -> bool:
    stored = all(one is None or isinstance(one, Full) for one in moments)
    return stored and compiled.serves(*(rows_of(p) for p, _ in features.parts))


def measure(
    features: Features, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    first = features.parts[0][0]
    squares_N = torch.zeros(features.n, dtype=torch.float64)
    along_N = first.new_zeros(0 if features.norm == FREE else features.n)
    out = array(squares_N), array(along_N)
    parts = [
        (array(rows_of(p)), start, *_arrays(p, gradient))
        for (p, start), gradient in zip(features.parts, gradients, strict=True)
        if gradient is not None
    ]

    def rows(low: int, high: int) -> None:
        for w, start, *gradient in parts:
            _measure(low, high, start, w, *gradient, features.norm == SUM, *out)

    over(features.n, rows, _numbers(features))
    if features.norm == CONCAT:
        along_N /= features.length
    return projected(features, squares_N.sum(), along_N)


def update(
    features: Features,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float,
) -> None:
    fixed = features.norm != FREE
    first = features.parts[0][0]
    along = array(first.new_zeros(0) if along_N is None else along_N)
    # What a feature's norm will be made of: a sum of squares, or of norms.
    sizes_N = first.new_zeros(features.n if fixed else 0)
    sizes = array(sizes_N)
    weights, moving = [], []
    for (p, start), gradient, stored, step in zip(
        features.parts, gradients, moments, steps, strict=True
    ):
        w = array(rows_of(p))
        weights.append((w, start))
        if gradient is None or stored is None or step is None:
            moving.append(None)
            continue
        assert isinstance(stored, Full)
        m, v = array(stored.first), array(stored.second)
        moving.append((m, v, *_arrays(p, gradient), *_coefficients(step)))
    is_sum = features.norm == SUM
    unit = np.float32(1 / features.length)
    room = max(1, NEAR // (len(weights) * first.shape[-1]))

    def rows(low: int, high: int) -> None:
        for near in range(low, high, room):
            far = min(near + room, high)
            for (w, start), moves in zip(weights, moving, strict=True):
                if moves is not None:
                    _update(
                        near, far, start, w, *moves, along, unit, np.float32(scale), is_sum, sizes
                    )
                elif fixed:
                    _measure_weights(near, far, start, w, is_sum, sizes)
            if fixed:
                for w, start in weights:
                    _restore(near, far, start, w, is_sum, np.float32(features.length), sizes)

    over(features.n, rows, _numbers(features))
    if features.shadow is not None:
        p, start = features.parts[0]
        rows_of(features.shadow).copy_(rows_of(p)[start : start + features.n])


def _numbers(features: Features) -> int:
    return features.n * sum(p.shape[-1] for p, _ in features.parts)


def _arrays(parameter: Tensor, gradient: RowGradient) -> tuple[Any, ...]:
    """A gradient's entries by row of the parameter, the table they weigh, and what is dense."""
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


def _coefficients(step: Step) -> tuple[Any, ...]:
    """Of torch's fused Adam, rounded to float32 where it rounds them."""
    rate = step.lr / (1 - step.beta1**step.number)
    root = (1 - step.beta2**step.number) ** 0.5
    numbers = 1 - step.beta1, step.beta2, 1 - step.beta2, root, step.eps, -rate
    return tuple(np.float32(x) for x in numbers)


@sums
def _gradient(g, r, rows, values, starts, table, dense):
    """Sums row r of the gradient into g."""
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
def _measure(low, high, start, w, rows, values, starts, table, dense, is_sum, squares, along):
    """Adds to each feature's squared gradient and, times its norm, the gradient along it."""
    D = w.shape[1]
    g = np.empty(D, np.float32)
    for n in range(low, high):
        r = start + n
        if starts[r] == starts[r + 1] and len(dense) == 0:
            continue
        if len(values) == 0:
            g_r = dense[r]
        else:
            _gradient(g, r, rows, values, starts, table, dense)
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
def _update(
    low, high, start, w, m, v, rows, values, starts, table, dense,
    rise, keep_second, rise_second, root, eps, rate, along, unit, scale, is_sum, sizes,
):  # fmt: skip
    D = w.shape[1]
    g = np.empty(D, np.float32)
    for n in range(low, high):
        r = start + n
        w_r = w[r]
        _gradient(g, r, rows, values, starts, table, dense)
        if len(along) > 0:
            out = along[n] / max(_norm(w_r), np.float32(1e-12)) if is_sum else along[n] * unit
            for d in range(D):
                g[d] -= out * w_r[d]
        if scale != 1:
            for d in range(D):
                g[d] *= scale
        _adam(w_r, g, m[r], v[r], rise, keep_second, rise_second, root, eps, rate)
        if len(sizes) > 0:
            size = _norm(w_r)
            sizes[n] += size if is_sum else size * size


@loop
def _adam(w, g, m, v, rise, keep_second, rise_second, root, eps, rate):
    """Rounds where torch's own fused kernel does, which has been seen to give the same bits."""
    for d in range(len(w)):
        m[d] = _fused(rise, g[d] - m[d], m[d])
        v[d] = _fused(rise_second * g[d], g[d], keep_second * v[d])
        w[d] += rate * m[d] / (np.sqrt(v[d]) / root + eps)


@fused
def _fused(a, b, c):
    return a * b + c


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
