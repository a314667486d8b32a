"""x W^T in 16-bit fixed point, with upper bounds: on a CPU without bfloat16, the fast way to select.

Rows are scaled to norm 2^15 - 2 and rounded to integers. AVX2 multiplies 16 pairs of those at once and
adds neighbours to int32, twice as many products an instruction as float32's. Sums are exact, and by
Cauchy and Schwarz none can reach 2^31. Rounding moves a row by sqrt(D / 12) of the 2^15 that its norm
is: 2e-4 at width 512, a fifth of what bfloat16 does, whatever outliers a row has.

    <x, W> <= <x', W'> + e_x |W| + (|x| + e_x) e_W

as in `bounds`, e the measured distances of x' and W', and D unit roundoffs for float32's own sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from dictlearn_kernels.bounds import ROUNDOFF
from dictlearn_kernels.compiled import array, loop, sums
from dictlearn_kernels.memory import kept
from dictlearn_kernels.rounded import SLACK
from dictlearn_kernels.threads import over

DTYPE = torch.int16
# Of a tile: twelve sums, two columns' and one row's numbers fill 16 registers.
ROWS, COLUMNS = 6, 16
UNROLLED = 2  # pairs of numbers that a tile takes before it looks whether there are more
AT_ONCE = 96  # rows of x that stay in a core's own cache while all of W passes by
# Below these float32 is as fast (scripts/bench_fixed_point.py): rows, entries of the product, width.
FEWEST_ROWS, FEWEST_ENTRIES, NARROWEST = 128, 2**20, 64
LARGEST = 2.0**15 - 2  # the norm of a row
# Beyond these a row's scale may not be a float32: nothing is known of what it is multiplied with.
SMALLEST_NORM, LARGEST_NORM = 1e-30, 1e30


class Bounded(NamedTuple):
    """x and W in fixed point: entry (r, c) <= worth_r * worth_c * <x'_r, W'_c> + the rest.

    The rest is over_r * norm_c + reach_r * error_c + bias_c, as in `bounds.Terms`; rows and columns
    that fill up tiles have zeros, the columns a bias of -inf. No entry is below its bound by more than
    spread_R. All are numpy arrays.
    """

    x_RD: Any  # int16, rows in tiles of ROWS, the width filled up for tiles
    of_R3: Any  # worth, over, reach
    W_PDC: Any  # int16 [panels, D / 2, COLUMNS, 2]: pairs of a column's neighbours
    of_P4C: Any  # worth, norm, error, bias: [panels, 4, COLUMNS]
    spread_R: Any
    operands: tuple[Any, Any, Any]  # x, W and b themselves


class Found(NamedTuple):
    """Entries of a few rows, as CSR: whoever looks through their bounds fills starts and columns."""

    starts: Any  # int64 [rows + 1]
    columns: Any  # int64, room for all
    entries: Any  # float32, likewise
    operands: tuple[Any, Any, Any]

    def evaluate(self, rows: slice) -> None:
        """Fills `entries` with what x W^T + b is there, in float32."""
        x, W, b = self.operands
        _evaluate(x[rows], W, b, self.starts, self.columns, self.entries)


@cache
def available() -> bool:
    """Whether this CPU has the instructions."""
    told = numba.config.CPU_NAME, numba.config.CPU_FEATURES  # pyright: ignore
    if told != (None, None):  # then it compiles for some other CPU
        return False
    return bool(llvmlite.binding.get_host_cpu_features().get("avx2"))


def serves(x: Tensor, W: Tensor) -> bool:
    """Whether it takes these numbers, here."""
    of_floats = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, W))
    return of_floats and available() and not torch.compiler.is_compiling()


def pays(rows: int, columns: int, width: int) -> bool:
    """Whether so many rows of x, of such a width, are worth rounding so many of W for."""
    return rows >= FEWEST_ROWS and rows * columns >= FEWEST_ENTRIES and width >= NARROWEST


def bounded(
    x_RD: Tensor, W_CD: Tensor, b_C: Tensor, less_C: Tensor | None = None
) -> Bounded | None:
    """The operands of `upper`; None where a number is not finite, or a row too large or small.

    Bounds are then of x W^T + b - less.
    """
    (R, D), C = x_RD.shape, len(W_CD)
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
    of_4C = torch.stack([worth_C, norm_C, error_C, bias_C])
    of_P4C = of_4C.unflatten(1, (-1, COLUMNS)).transpose(0, 1).contiguous()
    return Bounded(array(x), array(of_R3), array(W), array(of_P4C), array(spread_R), operands)


def n_tiles(of: Bounded) -> int:
    """Of ROWS rows each."""
    return len(of.x_RD) // ROWS


def upper(of: Bounded, low: int, high: int) -> Iterator[tuple[slice, Any, Any, Found]]:
    """Tiles low to high - 1, a few rows at a time: (rows, upper bounds, maxima, room for what is found).

    Bounds are [rows, columns], those that fill up included; maxima [rows, panels] are the largest of
    COLUMNS neighbours. They and the room are overwritten by the next. All is done without the
    interpreter's lock.
    """
    n_rows, n_panels = len(of.operands[0]), len(of.W_PDC)
    n_parts = -(-(high - low) // (AT_ONCE // ROWS))
    size = -(-(high - low) // n_parts)  # all alike
    bounds = np.empty((size * ROWS, n_panels * COLUMNS), np.float32)
    maxima = np.empty((size * ROWS, n_panels), np.float32)
    columns, entries = np.empty(bounds.size, np.int64), np.empty(bounds.size, np.float32)
    for tile in range(low, high, size):
        first, last = tile * ROWS, min(tile + size, high) * ROWS
        _upper(first, last, of.x_RD, of.of_R3, of.W_PDC, of.of_P4C, bounds, maxima)
        rows = slice(first, min(last, n_rows))
        n = rows.stop - first
        found = Found(np.zeros(n + 1, np.int64), columns, entries, of.operands)
        yield rows, bounds[:n], maxima[:n], found


@sums
def _evaluate(x, W, b, starts, columns, entries):
    """Four entries at a time: a core waits for four rows of W at once."""
    for r in range(len(x)):
        row, last = x[r], starts[r + 1] - 1
        for first in range(starts[r], last + 1, 4):
            i1, i2, i3 = min(first + 1, last), min(first + 2, last), min(first + 3, last)
            c0, c1, c2, c3 = columns[first], columns[i1], columns[i2], columns[i3]
            w0, w1, w2, w3 = W[c0], W[c1], W[c2], W[c3]
            s0 = s1 = s2 = s3 = np.float32(0)
            for d in range(len(row)):
                s0 += row[d] * w0[d]
                s1 += row[d] * w1[d]
                s2 += row[d] * w2[d]
                s3 += row[d] * w3[d]
            entries[first], entries[i1] = s0 + b[c0], s1 + b[c1]
            entries[i2], entries[i3] = s2 + b[c2], s3 + b[c3]


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
    """out int32 [panels, D / 2, COLUMNS, 1]: an int32 is a pair of int16."""
    C, D = W.shape
    rows = np.zeros((COLUMNS, 2 * out.shape[1]), np.int16)
    pairs = rows.view(np.int32)
    for panel in range(low, high):
        for j in range(COLUMNS):
            c = panel * COLUMNS + j
            if c < C:
                _round_row(W[c], rows[j], (worth, norm, error), c)
            else:
                rows[j] = 0
        for i in range(out.shape[1]):
            for j in range(COLUMNS):
                out[panel, i, j, 0] = pairs[j, i]


@loop
def _upper(low, high, x, of_rows, W, of_columns, out, maxima):
    n_pairs = x.shape[1] // 2
    for panel in range(len(W)):
        columns, bounds = W[panel].ctypes.data, out[:, panel * COLUMNS :].ctypes.data
        of_panel, largest = of_columns[panel].ctypes.data, maxima[:, panel:].ctypes.data
        for r in range(low, high, ROWS):
            into = bounds + (r - low) * out.strides[0], out.strides[0]
            most = largest + (r - low) * maxima.strides[0], maxima.strides[0]
            rows, of_tile = x[r:].ctypes.data, of_rows[r:].ctypes.data
            _tile(rows, x.strides[0], columns, n_pairs, of_tile, of_panel, *into, *most)  # pyright: ignore


@intrinsic
def _tile(
    typingctx, x, x_stride, W, n_pairs, of_rows, of_columns, out, out_stride, maxima, maxima_stride
):
    """The upper bounds of one tile, and each row's largest.

    All are addresses and distances in bytes, but for n_pairs, a multiple of UNROLLED.

    A pair of a row's neighbours goes to all lanes; vpmaddwd multiplies it with 8 columns' pairs.
    """
    i16, i32, i64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
    shorts, ints = ir.VectorType(i16, 16), ir.VectorType(i32, 8)
    floats = ir.VectorType(ir.FloatType(), 8)
    vectors = range(COLUMNS // 8)

    def generate(context, builder, signature, arguments):
        x, x_stride, W, n_pairs, of_rows, of_columns = arguments[:6]
        out, out_stride, maxima, maxima_stride = arguments[6:]

        def number(n):
            return ir.Constant(i64, n)

        def at(address, offset, kind):
            return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

        def load(address, offset, kind):
            return builder.load(at(address, offset, kind), align=4)

        def everywhere(one, kind):
            nothing = ir.Constant(kind, ir.Undefined)
            first = builder.insert_element(nothing, one, ir.Constant(i32, 0))
            return builder.shuffle_vector(first, nothing, ir.Constant(ints, [0] * 8))

        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def multiply_add(a, b, c):
            return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])

        products = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ints, [shorts, shorts]), "llvm.x86.avx2.pmadd.wd"
        )
        rows = [builder.add(x, builder.mul(number(i), x_stride)) for i in range(ROWS)]
        before = builder.block
        loop = builder.append_basic_block("pairs")
        after = builder.append_basic_block("bounds")
        builder.branch(loop)

        builder.position_at_end(loop)
        pair = builder.phi(i64)
        totals = [builder.phi(ints) for _ in range(ROWS * len(vectors))]
        next_pair = builder.add(pair, number(UNROLLED))
        pair.add_incoming(number(0), before)
        pair.add_incoming(next_pair, loop)
        sums = list(totals)
        for ahead in range(UNROLLED):
            here = builder.add(pair, number(ahead))
            place, along = builder.mul(here, number(COLUMNS * 4)), builder.mul(here, number(4))
            columns = [load(W, builder.add(place, number(32 * j)), shorts) for j in vectors]
            for i in range(ROWS):
                both = everywhere(load(rows[i], along, i32), ints)
                both = builder.bitcast(both, shorts)
                for j in vectors:
                    product = builder.call(products, [both, columns[j]])
                    cell = i * len(vectors) + j
                    sums[cell] = builder.add(sums[cell], product)
        for total, result in zip(totals, sums, strict=True):
            total.add_incoming(ir.Constant(ints, [0] * 8), before)
            total.add_incoming(result, loop)
        builder.cbranch(builder.icmp_signed("<", next_pair, n_pairs), loop, after)

        builder.position_at_end(after)
        of_column = [
            [load(of_columns, number((term * COLUMNS + 8 * j) * 4), floats) for term in range(4)]
            for j in vectors
        ]
        for i in range(ROWS):
            worth, over, reach = (
                everywhere(load(of_rows, number((3 * i + term) * 4), ir.FloatType()), floats)
                for term in range(3)
            )
            row = builder.add(out, builder.mul(number(i), out_stride))
            most = None
            for j in vectors:
                worth_c, norm, error, bias = of_column[j]
                rough = builder.sitofp(sums[i * len(vectors) + j], floats)
                bound = multiply_add(rough, builder.fmul(worth, worth_c), bias)
                bound = multiply_add(reach, error, multiply_add(over, norm, bound))
                builder.store(bound, at(row, number(32 * j), floats), align=4)
                most = bound if most is None else larger(most, bound)
            for half in (4, 2, 1):  # the upper lanes against the lower, until one is left
                lanes = ir.Constant(ints, [min(lane + half, 7) for lane in range(8)])
                most = larger(most, builder.shuffle_vector(most, most, lanes))
            place = at(maxima, builder.mul(number(i), maxima_stride), ir.FloatType())
            builder.store(builder.extract_element(most, ir.Constant(i32, 0)), place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 10), generate
