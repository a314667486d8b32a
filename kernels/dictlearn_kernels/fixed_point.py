"""x W^T in 16-bit fixed point, with upper bounds: the fast way to select on a CPU.

Rows are scaled to norm 2^15 - 2 and rounded to integers. One instruction multiplies 16 pairs of these
with AVX2, 32 with AVX-512, and adds neighbours to int32: twice as many products as in float32. Sums are
exact. derivations.md, section 3, has the bounds, and why no sum leaves int32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import compiled, tiles
from dictlearn_kernels.bounds import ROUNDOFF
from dictlearn_kernels.compiled import array, sums
from dictlearn_kernels.memory import kept
from dictlearn_kernels.microkernel import UNROLLED
from dictlearn_kernels.rounded import SLACK
from dictlearn_kernels.threads import over
from dictlearn_kernels.tiles import Tiled
from dictlearn_kernels.vector import COLUMNS, ROWS

DTYPE = torch.int16
# float32 is as fast below these numbers of rows, entries and width (scripts/bench_fixed_point.py).
FEWEST_ROWS, FEWEST_ENTRIES, NARROWEST = 128, 2**20, 128
LARGEST = 2.0**15 - 2  # the norm of a rounded row
# A row's unit might not be a float32 outside of these norms.
SMALLEST_NORM, LARGEST_NORM = 1e-30, 1e30


def available() -> bool:
    """Whether this CPU has the instructions."""
    return "avx2" in compiled.cpu_features()


def serves(x: Tensor, W: Tensor) -> bool:
    """Whether fixed point takes these tensors on this CPU."""
    return available() and tiles.serves(x, W)


def pays(rows: int, columns: int, width: int) -> bool:
    """Whether fixed point is faster than float32 for this size; rounding W costs a fixed amount."""
    return rows >= FEWEST_ROWS and rows * columns >= FEWEST_ENTRIES and width >= NARROWEST


def bounded(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, less_C: Tensor | None = None) -> Tiled | None:
    """Operands whose tiles are upper bounds of x W^T + b - less.

    None where a number is not finite, or the norm of a row too small or too large.
    """
    less = {} if less_C is None else {"less_C": less_C}
    sizes = compiled.sizes(x_RD=x_RD, W_CD=W_CD, b_C=b_C, **less)
    R, D, C = (sizes[letter] for letter in "RDC")
    x_RD, W_CD, b_C = (t.detach().contiguous() for t in (x_RD, W_CD, b_C))
    operands = array(x_RD), array(W_CD), array(b_C)
    width = D + -D % (2 * UNROLLED)
    rows, columns = R + -R % ROWS, C + -C % COLUMNS
    x = torch.empty(rows, width, dtype=torch.int16)
    W = kept(columns * width, torch.int16).view(-1, width // 2, COLUMNS, 2)
    unit_R, norm_R, error_R = scales_R = torch.zeros(3, rows)
    unit_C, norm_C, error_C = scales_C = torch.zeros(3, columns)
    into_x = operands[0], array(x), *array(scales_R)
    into_W = operands[1], array(W.view(torch.int32)), *array(scales_C)
    over(rows, lambda low, high: _round_rows(low, high, *into_x), rows * D)
    over(len(W), lambda low, high: _round_panels(low, high, *into_W), columns * D)
    bias, size_C = b_C, b_C.abs()
    if less_C is not None:
        bias, size_C = b_C - less_C, size_C + less_C.abs()
    if not torch.stack([norm_R.sum(), norm_C.sum(), size_C.sum()]).isfinite().all():
        return None
    reach_R = norm_R + error_R
    over_R = error_R + 2 * (D + 16) * ROUNDOFF * reach_R
    norm_C += error_C
    bias_C = torch.full((columns,), -torch.inf)
    bias_C[:C] = bias + 2.0**-20 * size_C
    largest_bias = 2.0**-20 * size_C.max() if C else 0.0
    spread_R = 2 * SLACK * (over_R * norm_C.max() + reach_R * error_C.max() + largest_bias)
    row_terms = torch.stack([unit_R, over_R, reach_R], dim=1)
    terms_4C = torch.stack([bias_C, unit_C, norm_C, error_C])
    terms_P4C = terms_4C.unflatten(1, (-1, COLUMNS)).transpose(0, 1).contiguous()
    return Tiled(array(x), array(W), array(row_terms), array(terms_P4C), array(spread_R), operands)


@sums
def _round_row(x, out, scales, r):
    """Rounds one row into `out`, which may be longer, and notes its unit, norm and error."""
    D = len(x)
    square = 0.0
    for d in range(D):
        square += np.float64(x[d]) * np.float64(x[d])
    norm = np.sqrt(square)
    units, norms, errors = scales
    out[:] = 0
    if not (norm > SMALLEST_NORM and norm < LARGEST_NORM):
        units[r] = errors[r] = 0
        norms[r] = np.float32(0 if norm == 0 else np.inf)
        return
    per_unit, unit = np.float32(LARGEST / norm), np.float32(norm / LARGEST)
    square_error = np.float32(0)
    for d in range(D):
        nearest = np.rint(x[d] * per_unit)
        out[d] = np.int16(nearest)
        error = (x[d] - nearest * unit) * per_unit
        square_error += error * error
    units[r] = unit
    norms[r] = np.float32(norm * SLACK)
    errors[r] = np.sqrt(square_error) * unit * np.float32(SLACK)


@sums
def _round_rows(low, high, x, out, unit, norm, error):
    for r in range(low, high):
        if r < len(x):
            _round_row(x[r], out[r], (unit, norm, error), r)
        else:
            out[r] = 0


@sums
def _round_panels(low, high, W, out, unit, norm, error):
    """Rounds rows of W into panels. `out` is int32 [panels, D / 2, COLUMNS, 1]: pairs of int16."""
    C, D = W.shape
    columns = out.shape[2]
    rows = np.zeros((columns, 2 * out.shape[1]), np.int16)
    pairs = rows.view(np.int32)
    for panel in range(low, high):
        for j in range(columns):
            c = panel * columns + j
            if c < C:
                _round_row(W[c], rows[j], (unit, norm, error), c)
            else:
                rows[j] = 0
        for i in range(out.shape[1]):
            for j in range(columns):
                out[panel, i, j, 0] = pairs[j, i]
