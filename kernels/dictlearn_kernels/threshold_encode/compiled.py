"""Every entry of a matrix above its column's threshold, in two passes: one counts, the other writes.

In fixed point upper bounds say which entries could be above, and these are evaluated in float32. Where
they are so many that this would take longer than float32 throughout, nothing is returned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import fixed_point, selection, tiles
from dictlearn_kernels.compiled import array, loop, sizes
from dictlearn_kernels.linear import passing
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threads import over
from dictlearn_kernels.tiles import Strip, Tiled
from dictlearn_kernels.vector import COLUMNS

_Part = tuple[Any, Any, Any]  # the entries of a strip: counts by row, columns, values

CROWDED = 0.02  # of a strip's entries; evaluating more takes longer than float32 throughout
BLOCK = 16  # entries that are compared before the next branch: most blocks have none above


def above(pre_RC: Tensor, threshold_C: Tensor | float) -> Selection:
    """The entries of a contiguous float32 matrix above their column's threshold, as CSR."""
    shape = sizes(pre_RC=pre_RC, **_by_column(threshold_C))
    n_rows, n_columns = shape["R"], shape["C"]
    threshold_C = torch.as_tensor(threshold_C, dtype=pre_RC.dtype).expand(n_columns).contiguous()
    counts_R = torch.empty(n_rows, dtype=torch.int64)
    pre, threshold, counts = array(pre_RC), array(threshold_C), array(counts_R)
    over(n_rows, lambda low, high: _count(low, high, pre, threshold, counts))
    row_starts = selection.starts(counts_R)
    values = pre_RC.new_empty(int(row_starts[-1]))
    columns = torch.empty(len(values), dtype=torch.int64)
    out = array(row_starts), array(columns), array(values)
    over(n_rows, lambda low, high: _write(low, high, pre, threshold, *out))
    return row_starts, columns, values


def threshold_encode(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, threshold_C: Tensor | float
) -> Selection:
    """The entries of x W^T + b above their column's threshold, as CSR."""
    sizes(x_RD=x_RD, W_CD=W_CD, b_C=b_C, **_by_column(threshold_C))
    if not tiles.pays(len(x_RD), len(W_CD)):
        return above(passing(x_RD[:, None], W_CD[None], b_C[None]), threshold_C)
    tiled = tiles.exact(x_RD, W_CD, b_C)
    thresholds = _by_panel(tiled, threshold_C)

    def part(low: int, high: int) -> list[_Part]:
        parts = []
        for strip in tiles.strips(tiled, low, high):
            _search(strip, thresholds)
            strip.evaluate()
            parts.append(_copied(strip))
        return parts

    return _joined(over(tiled.n_tiles, part))


def above_fixed(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, threshold_C: Tensor | float
) -> Selection | None:
    """The same by bounds in fixed point; None where many entries could be above."""
    sizes(x_RD=x_RD, W_CD=W_CD, b_C=b_C, **_by_column(threshold_C))
    threshold_C = torch.as_tensor(threshold_C, dtype=x_RD.dtype).expand(len(W_CD)).contiguous()
    tiled = fixed_point.bounded(x_RD, W_CD, b_C, threshold_C)
    if tiled is None:
        return None
    zeros, threshold = _by_panel(tiled, 0.0), array(threshold_C)
    crowded = []

    def part(low: int, high: int) -> list[_Part]:
        parts = []
        for strip in tiles.strips(tiled, low, high):
            _search(strip, zeros)
            if strip.starts[-1] > CROWDED * strip.upper.size:
                crowded.append(strip.rows)
            if crowded:
                break
            strip.evaluate()
            _keep(threshold, strip.starts, strip.columns, strip.entries)
            parts.append(_copied(strip))
        return parts

    parts = over(tiled.n_tiles, part)
    return None if crowded else _joined(parts)


def _by_column(threshold_C: Tensor | float) -> dict[str, Tensor]:
    """The threshold under its name, for `sizes`, unless it is one number."""
    if isinstance(threshold_C, Tensor) and threshold_C.ndim > 0:
        return {"threshold_C": threshold_C}
    return {}


def _by_panel(tiled: Tiled, threshold_C: Tensor | float) -> tuple[Any, Any]:
    """(thresholds [panels, COLUMNS], the bits of each panel's least, or of -1 if that is negative)."""
    n_columns = len(tiled.operands[1])
    threshold = np.full((len(tiled.W_PDC), COLUMNS), np.inf, np.float32)
    threshold.reshape(-1)[:n_columns] = array(torch.as_tensor(threshold_C, dtype=torch.float32))
    least = np.where((threshold >= 0).all(1), threshold.min(1), np.float32(-1))
    return threshold, least.view(np.int32)


def _search(strip: Strip, thresholds: tuple[Any, Any]) -> None:
    """Selects the strip's entries above their thresholds."""
    maxima = strip.maxima.view(np.int32)
    _above(strip.upper, maxima, *thresholds, strip.starts, strip.columns)


def _copied(strip: Strip) -> _Part:
    n = strip.starts[-1]
    return np.diff(strip.starts), strip.columns[:n].copy(), strip.entries[:n].copy()


def _joined(parts: list[list[_Part]]) -> Selection:
    strips = [strip for part in parts for strip in part]
    counts_R, columns, values = (
        torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*strips, strict=True)
    )
    return selection.starts(counts_R), columns, values


@loop
def _above(entries, maxima, threshold, least, starts, columns):
    """The entries above their column's threshold.

    A panel is passed over if its maximum is not above its least threshold. Maxima compare as integers,
    which are in the order of the numbers only above zero.
    """
    panel_columns = entries.shape[2]
    for r in range(len(starts) - 1):
        n = starts[r]
        for panel in range(len(entries)):
            if least[panel] < 0 or maxima[r, panel] > least[panel]:
                for j in range(panel_columns):
                    columns[n] = panel * panel_columns + j
                    n += entries[panel, r, j] > threshold[panel, j]
        starts[r + 1] = n


@loop
def _keep(threshold, starts, columns, entries):
    """Removes, in place, the entries that are not above their threshold."""
    n = first = 0
    for r in range(len(starts) - 1):
        last = starts[r + 1]
        for i in range(first, last):
            columns[n], entries[n] = columns[i], entries[i]
            n += entries[n] > threshold[columns[n]]
        first = last
        starts[r + 1] = n


@loop
def _count(low, high, pre, threshold, counts):
    for r in range(low, high):
        n = np.int32(0)
        for c in range(pre.shape[1]):
            n += np.int32(pre[r, c] > threshold[c])
        counts[r] = n


@loop
def _write(low, high, pre, threshold, row_starts, columns, values):
    n_columns = pre.shape[1]
    for r in range(low, high):
        i, stop = row_starts[r], row_starts[r + 1]
        for first in range(0, n_columns, BLOCK):
            if i == stop:
                break
            last = min(first + BLOCK, n_columns)
            reached = np.int32(0)
            for c in range(first, last):
                reached |= np.int32(pre[r, c] > threshold[c])
            if reached:
                for c in range(first, last):
                    if pre[r, c] > threshold[c]:
                        columns[i], values[i] = c, pre[r, c]
                        i += 1
