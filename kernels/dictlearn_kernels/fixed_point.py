"""x W^T in 16-bit fixed point, with upper bounds: the fast way to select on a CPU.

Rows are scaled to norm 2^15 - 2 and rounded to integers. AVX2 multiplies 16 pairs of those at once,
AVX-512 32, and adds neighbours to int32: twice as many products an instruction as float32's. Sums are
exact, and by Cauchy and Schwarz none can reach 2^31. Rounding moves a row by sqrt(D / 12) of the 2^15
that its norm is: 2e-4 at width 512, a fifth of what bfloat16 does, whatever outliers a row has.

    <x, W> <= <x', W'> + e_x |W| + (|x| + e_x) e_W

as in `bounds`, e the measured distances of x' and W', and D unit roundoffs for float32's own sums.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import compiled, tiles
from dictlearn_kernels.bounds import ROUNDOFF
from dictlearn_kernels.compiled import array, sums
from dictlearn_kernels.memory import kept
from dictlearn_kernels.rounded import SLACK
from dictlearn_kernels.threads import over
from dictlearn_kernels.tiles import COLUMNS, ROWS, UNROLLED, Tiled

DTYPE = torch.int16
# Below these float32 is as fast (scripts/bench_fixed_point.py): rows, entries of the product, width.
FEWEST_ROWS, FEWEST_ENTRIES, NARROWEST = 128, 2**20, 128
LARGEST = 2.0**15 - 2  # the norm of a row
# Beyond these a row's scale may not be a float32: nothing is known of what it is multiplied with.
SMALLEST_NORM, LARGEST_NORM = 1e-30, 1e30


def available() -> bool:
    """Whether this CPU has the instructions."""
    return "avx2" in compiled.features()


def serves(x: Tensor, W: Tensor) -> bool:
    """Whether it takes these numbers, here."""
    return available() and tiles.serves(x, W)


def pays(rows: int, columns: int, width: int) -> bool:
    """Whether so many rows of x, of such a width, are worth rounding so many of W for."""
    return rows >= FEWEST_ROWS and rows * columns >= FEWEST_ENTRIES and width >= NARROWEST


def bounded(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, less_C: Tensor | None = None) -> Tiled | None:
    """Operands whose tiles are upper bounds of x W^T + b - less.

    None where a number is not finite, or a row too large or small.
    """
    less = {} if less_C is None else {"less_C": less_C}
    found = compiled.sizes(x_RD=x_RD, W_CD=W_CD, b_C=b_C, **less)
    R, D, C = (found[letter] for letter in "RDC")
    x_RD, W_CD, b_C = (t.detach().contiguous() for t in (x_RD, W_CD, b_C))
    operands = array(x_RD), array(W_CD), array(b_C)
    width = D + -D % (2 * UNROLLED)
    rows, columns = R + -R % ROWS, C + -C % COLUMNS
    x = torch.empty(rows, width, dtype=torch.int16)
    W = kept(columns * width, torch.int16).view(-1, width // 2, COLUMNS, 2)
    worth_R, norm_R, error_R = of_R = torch.zeros(3, rows)
    worth_C, norm_C, error_C = of_C = torch.zeros(3, columns)
    into_x = operands[0], array(x), *array(of_R)
    into_W = operands[1], array(W.view(torch.int32)), *array(of_C)
    over(rows, lambda low, high: _round_rows(low, high, *into_x), rows * D)
    over(len(W), lambda low, high: _round_panels(low, high, *into_W), columns * D)
    bias, size_C = b_C, b_C.abs()
    if less_C is not None:
        bias, size_C = b_C - less_C, size_C + less_C.abs()
    known = torch.stack([norm_R.sum(), norm_C.sum(), size_C.sum()]).isfinite().all()
    if not known:
        return None
    reach_R = norm_R + error_R
    over_R = error_R + 2 * (D + 16) * ROUNDOFF * reach_R
    norm_C += error_C
    bias_C = torch.full((columns,), -torch.inf)
    bias_C[:C] = bias + 2.0**-20 * size_C
    most = 2.0**-20 * size_C.max() if C else 0.0
    spread_R = 2 * SLACK * (over_R * norm_C.max() + reach_R * error_C.max() + most)
    of_R3 = torch.stack([worth_R, over_R, reach_R], dim=1)
    of_4C = torch.stack([bias_C, worth_C, norm_C, error_C])
    of_P4C = of_4C.unflatten(1, (-1, COLUMNS)).transpose(0, 1).contiguous()
    return Tiled(array(x), array(W), array(of_R3), array(of_P4C), array(spread_R), operands)


@sums
def _round_row(x, out, scales, r):
    """Rounds one row into `out`, which may be longer; notes its worth, norm and error."""
    D = len(x)
    square = 0.0
    for d in range(D):
        square += np.float64(x[d]) * np.float64(x[d])
    norm = np.sqrt(square)
    worth, norms, errors = scales
    out[:] = 0
    if not (norm > SMALLEST_NORM and norm < LARGEST_NORM):
        worth[r] = errors[r] = 0
        norms[r] = np.float32(0 if norm == 0 else np.inf)
        return
    per_unit, unit = np.float32(LARGEST / norm), np.float32(norm / LARGEST)
    away = np.float32(0)
    for d in range(D):
        nearest = np.rint(x[d] * per_unit)
        out[d] = np.int16(nearest)
        error = (x[d] - nearest * unit) * per_unit
        away += error * error
    worth[r] = unit
    norms[r] = np.float32(norm * SLACK)
    errors[r] = np.sqrt(away) * unit * np.float32(SLACK)


@sums
def _round_rows(low, high, x, out, worth, norm, error):
    for r in range(low, high):
        if r < len(x):
            _round_row(x[r], out[r], (worth, norm, error), r)
        else:
            out[r] = 0


@sums
def _round_panels(low, high, W, out, worth, norm, error):
    """out int32 [panels, D / 2, a panel's columns, 1]: an int32 is a pair of int16."""
    C, D = W.shape
    columns = out.shape[2]
    rows = np.zeros((columns, 2 * out.shape[1]), np.int16)
    pairs = rows.view(np.int32)
    for panel in range(low, high):
        for j in range(columns):
            c = panel * columns + j
            if c < C:
                _round_row(W[c], rows[j], (worth, norm, error), c)
            else:
                rows[j] = 0
        for i in range(out.shape[1]):
            for j in range(columns):
                out[panel, i, j, 0] = pairs[j, i]
