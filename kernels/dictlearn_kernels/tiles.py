"""x W^T + b a few rows at a time, or upper bounds of it: nothing of the size of both is written.

A tile is a few rows of x times a panel of two vectors of W's columns: 6 x 16 with AVX2, 12 x 32 with
AVX-512. A step of it takes four bytes of each row, a float32 or a pair of int16, to all lanes and
multiplies them with the columns'; the sums stay in registers. The rows of a strip of tiles stay in a
core's own cache while all of W passes by, each panel fetched while the one before it is multiplied, and
are searched right after. With the results comes the largest of a panel's columns, which says where to
search.

Results lie by panels, as they are made: rows of a matrix of 8,192 columns are 32 KB apart, which a cache
keeps in the same few places. With AVX2 tiles of int16 took 1.2 times as long at width 512, 1.5 times at
128.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from dictlearn_kernels import compiled
from dictlearn_kernels.compiled import array, loop
from dictlearn_kernels.memory import kept
from dictlearn_kernels.threads import over

LANES = compiled.lanes()  # numbers of a vector
# Of a tile: 12 sums, two columns' and one row's numbers fill 16 registers, 24 sums 27 of 32.
ROWS, COLUMNS = {8: 6, 16: 12}[LANES], 2 * LANES
UNROLLED = 2  # steps that a tile takes before it looks whether there are more
AT_ONCE = 144  # rows of a strip
LINE = 16  # float32 numbers of a line of the cache
# Below these torch's matmul is as fast (scripts/bench_fixed_point.py): rows, entries of the product.
FEWEST_ROWS, FEWEST_ENTRIES = 128, {8: 2**20, 16: 2**18}[LANES]


class Tiled(NamedTuple):
    """x and W as tiles take them. All are numpy arrays.

    In float32 an entry is <x_r, W_c> + bias_c. In int16 it is at most worth_r * worth_c * <x_r, W_c> +
    over_r * norm_c + reach_r * error_c + bias_c (`fixed_point`), and no less than that less spread_R.
    Rows and columns that fill up tiles have zeros, the columns a bias of -inf.
    """

    x_RD: Any  # rows in whole tiles, of whole steps
    W_PDC: Any  # [panels, width, COLUMNS], in int16 [panels, width / 2, COLUMNS, 2]: pairs of neighbours
    of_rows: Any  # float32 [rows, 3]: worth, over, reach; of float32 [rows, 0]
    of_columns: (
        Any  # float32 [panels, 4, COLUMNS]: bias, worth, norm, error; of float32 the bias alone
    )
    spread_R: Any
    operands: tuple[Any, Any, Any]  # x, W and b themselves

    @property
    def exact(self) -> bool:
        return self.x_RD.dtype == np.float32

    @property
    def n_tiles(self) -> int:
        return len(self.x_RD) // ROWS

    def check(self) -> None:
        """ValueError unless all of it is of one size."""
        x, W, b = self.operands
        (rows, width), panels = self.x_RD.shape, len(self.W_PDC)
        terms, pair = (1, ()) if self.exact else (4, (2,))
        steps = width if self.exact else width // 2
        fits = (
            self.W_PDC.shape == (panels, steps, COLUMNS, *pair)
            and self.of_rows.shape == (rows, 0 if self.exact else 3)
            and self.of_columns.shape == (panels, terms, COLUMNS)
            and self.spread_R.shape == (rows,)
            and rows % ROWS == 0 == steps % UNROLLED
            and 0 <= rows - len(x) < ROWS
            and 0 <= panels * COLUMNS - len(W) < COLUMNS
            and W.shape == (len(b), x.shape[1])
        )
        if not fits:
            raise ValueError("x, W and what belongs to them differ in size")


class Strip(NamedTuple):
    """A few rows' entries, or upper bounds of them, and room for what is looked for among those.

    Who searches fills `starts` and `columns`, as CSR; `evaluate` then fills `entries`. Arrays may have
    more rows than there are, up to whole tiles.
    """

    of: Tiled
    rows: slice
    upper: Any  # float32 [panels, rows, COLUMNS]
    maxima: Any  # float32 [rows, panels and some zeros]: the largest of COLUMNS by bits as integers
    starts: Any  # int64 [rows + 1]
    columns: Any  # int64, room for all
    entries: Any  # float32, likewise

    def matrix(self) -> Any:
        """A copy of `upper` as [rows, columns], the columns that fill up included."""
        n_rows = len(self.starts) - 1
        return self.upper[:, :n_rows].transpose(1, 0, 2).reshape(n_rows, -1).copy()

    def evaluate(self) -> None:
        """What x W^T + b is at those columns, in float32."""
        n_rows = self.rows.stop - self.rows.start
        n = self.starts[-1] if self.starts.shape == (n_rows + 1,) else -1
        if not 0 <= n <= min(len(self.columns), len(self.entries)):
            raise ValueError(f"starts of {len(self.starts)} say nothing of {n_rows} rows' entries")
        if self.of.exact:
            _copy(self.upper, *self[-3:])
        else:
            x, W, b = self.of.operands
            _evaluate(x[self.rows], W, b, *self[-3:])


def available() -> bool:
    """Whether this CPU multiplies and adds eight or sixteen numbers at once."""
    return compiled.features() >= {"avx2", "fma"}


def serves(x: Tensor, W: Tensor) -> bool:
    """Whether these are float32 numbers on a CPU whose loops can be compiled."""
    of_floats = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, W))
    return of_floats and not torch.compiler.is_compiling()


def pays(rows: int, columns: int) -> bool:
    """Whether tiles take less time than torch's matmul and a search through what it writes."""
    return available() and rows >= FEWEST_ROWS and rows * columns >= FEWEST_ENTRIES


def exact(x_RD: Tensor, W_CD: Tensor, b_C: Tensor) -> Tiled:
    """float32 operands; W in another order of its numbers, in memory that the next call overwrites."""
    found = compiled.sizes(x_RD=x_RD, W_CD=W_CD, b_C=b_C)
    R, D, C = (found[letter] for letter in "RDC")
    x_RD, W_CD, b_C = (t.detach().contiguous() for t in (x_RD, W_CD, b_C))
    operands = array(x_RD), array(W_CD), array(b_C)
    width, n_panels = D + -D % UNROLLED, -(-C // COLUMNS)
    if R % ROWS or width > D:
        x_RD = torch.nn.functional.pad(x_RD, (0, width - D, 0, -R % ROWS))
    W_PDC = array(kept(n_panels * width * COLUMNS, torch.float32).view(-1, width, COLUMNS))
    over(n_panels, lambda low, high: _panels(low, high, operands[1], W_PDC), C * D)
    bias = np.full((n_panels, 1, COLUMNS), -np.inf, np.float32)
    bias.reshape(-1)[:C] = operands[2]
    of_rows, spread_R = np.zeros((len(x_RD), 0), np.float32), np.zeros(len(x_RD), np.float32)
    return Tiled(array(x_RD), W_PDC, of_rows, bias, spread_R, operands)


def strips(of: Tiled, low: int, high: int) -> Iterator[Strip]:
    """Tiles low to high - 1, a few rows at a time, each in the memory of the one before.

    All is done without the interpreter's lock.
    """
    of.check()
    if not 0 <= low < high <= of.n_tiles:
        raise ValueError(f"tiles {low} to {high - 1}: there are {of.n_tiles}")
    n_rows, n_panels = len(of.operands[0]), len(of.W_PDC)
    n_parts = -(-(high - low) // (AT_ONCE // ROWS))
    size = -(-(high - low) // n_parts)  # all alike
    room = _in_lines(size * ROWS * n_panels * COLUMNS)
    n_lines = -(-n_panels // LINE)
    maxima = np.zeros((size * ROWS, (n_lines + 1 - n_lines % 2) * LINE), np.float32)
    columns, entries = np.empty(room.size, np.int64), np.empty(room.size, np.float32)
    for tile in range(low, high, size):
        first, last = tile * ROWS, min(tile + size, high) * ROWS
        upper = room[: (last - first) * n_panels * COLUMNS].reshape(n_panels, -1, COLUMNS)
        _fill(first, last, *of[:4], upper, maxima)
        rows = slice(first, min(last, n_rows))
        starts = np.zeros(rows.stop - first + 1, np.int64)
        yield Strip(of, rows, upper, maxima, starts, columns, entries)


def _in_lines(n: int) -> Any:
    """Room for n float32 that begins where a line of the cache does."""
    room = np.empty(n + LINE, np.float32)
    return room[-room.ctypes.data // room.itemsize % LINE :][:n]


@loop
def _panels(low, high, W, out):
    C, D = W.shape
    for panel in range(low, high):
        if out.shape[1] > D or (panel + 1) * COLUMNS > C:
            out[panel] = 0
        for j in range(min(COLUMNS, C - panel * COLUMNS)):
            row = W[panel * COLUMNS + j]
            for d in range(D):
                out[panel, d, j] = row[d]


@loop
def _copy(upper, starts, columns, entries):
    for r in range(len(starts) - 1):
        for i in range(starts[r], starts[r + 1]):
            panel, j = divmod(columns[i], COLUMNS)
            entries[i] = upper[panel, r, j]


@loop
def _evaluate(x, W, b, starts, columns, entries):
    """Four entries at a time, while the rows of W for the next four are fetched."""
    D = x.shape[1]
    whole = D - D % (2 * LANES)
    sums = np.empty(4, np.float32)
    places, rows, following = np.empty(4, np.int64), np.empty(4, np.int64), np.empty(4, np.int64)
    for r in range(len(x)):
        end = starts[r + 1]
        for first in range(starts[r], end, 4):
            for i in range(4):
                places[i] = columns[min(first + i, end - 1)]
                rows[i] = W[places[i]].ctypes.data
                following[i] = W[columns[min(first + 4 + i, end - 1)]].ctypes.data
            of = x[r].ctypes.data, rows.ctypes.data, following.ctypes.data
            _dots(*of, whole, sums.ctypes.data)  # pyright: ignore
            for i in range(min(4, end - first)):
                total = sums[i]
                for d in range(whole, D):
                    total += x[r, d] * W[places[i], d]
                entries[first + i] = total + b[places[i]]


@loop
def _fill(low, high, x, W, of_rows, of_columns, upper, maxima):
    steps = x.shape[1] * x.itemsize // 4
    pace = -(-4 * COLUMNS * ROWS // (high - low))
    for panel in range(len(W)):
        columns, bounds = W[panel].ctypes.data, upper[panel].ctypes.data
        ahead = W[min(panel + 1, len(W) - 1)].ctypes.data
        of_panel, largest = of_columns[panel].ctypes.data, maxima[:, panel:].ctypes.data
        for r in range(low, high, ROWS):
            into = bounds + (r - low) * upper.strides[1], upper.strides[1]
            most = largest + (r - low) * maxima.strides[0], maxima.strides[0]
            rows, of_tile = x[r:].ctypes.data, of_rows[r:].ctypes.data
            given = rows, x.strides[0], columns, steps, of_tile, of_panel
            _tile(x[r, 0], *given, *into, *most, ahead, pace)  # pyright: ignore
            ahead += steps * pace


# Sums of two neighbours' products, which a CPU may have one instruction to add to a total for.
PRODUCTS = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
HALVES = [n for n in (8, 4, 2, 1) if n < LANES]
READ, NEAR, DATA = 0, 2, 1  # what llvm.prefetch is told: 2 is a core's own second cache
_i32, _i64, _float = ir.IntType(32), ir.IntType(64), ir.FloatType()
_bytes = ir.IntType(8).as_pointer()
_ints, _floats, _shorts = (
    ir.VectorType(kind, n)
    for kind, n in ((_i32, LANES), (_float, LANES), (ir.IntType(16), 2 * LANES))
)


def _load(builder, address, offset, kind):
    place = builder.add(address, offset) if offset is not None else address
    return builder.load(builder.inttoptr(place, kind.as_pointer()), align=4)


def _store(builder, value, address, offset):
    place = builder.add(address, ir.Constant(_i64, offset))
    builder.store(value, builder.inttoptr(place, value.type.as_pointer()), align=4)


def _everywhere(builder, number, kind):
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(_i32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_ints, [0] * LANES))


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


@intrinsic
def _tile(
    typingctx,
    kind,
    x,
    x_stride,
    W,
    n_steps,
    of_rows,
    of_columns,
    out,
    out_stride,
    maxima,
    maxima_stride,
    ahead,
    pace,
):
    """The results of one tile, and each row's largest.

    `kind` is a number of the operands' type, float32 or int16; all others are addresses and distances
    in bytes, but for n_steps, a multiple of UNROLLED. What is `ahead` is fetched, `pace` bytes a step.
    """
    exact = kind == types.float32
    sum_type = _floats if exact else _ints
    vectors = range(COLUMNS // LANES)

    def generate(context, builder, signature, arguments):
        _, x, x_stride, W, n_steps, of_rows, of_columns = arguments[:7]
        out, out_stride, maxima, maxima_stride, ahead, pace = arguments[7:]
        fetch = _fetching(builder)
        products = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_ints, [_shorts, _shorts]), PRODUCTS[LANES]
        )

        def number(n):
            return ir.Constant(_i64, n)

        def add_products(row, along, columns, totals):
            if exact:
                a = _everywhere(builder, _load(builder, row, along, _float), _floats)
                return [_multiply_add(builder, a, *of) for of in zip(columns, totals, strict=True)]
            pair = _everywhere(builder, _load(builder, row, along, _i32), _ints)
            pair = builder.bitcast(pair, _shorts)
            return [
                builder.add(total, builder.call(products, [pair, column]))
                for column, total in zip(columns, totals, strict=True)
            ]

        rows = [builder.add(x, builder.mul(number(i), x_stride)) for i in range(ROWS)]
        before = builder.block
        loop = builder.append_basic_block("steps")
        after = builder.append_basic_block("results")
        builder.branch(loop)

        builder.position_at_end(loop)
        step = builder.phi(_i64)
        begun = [[builder.phi(sum_type) for _ in vectors] for _ in range(ROWS)]
        following = builder.add(step, number(UNROLLED))
        step.add_incoming(number(0), before)
        step.add_incoming(following, loop)
        sums = begun
        fetch(builder.add(ahead, builder.mul(step, pace)))
        for more in range(UNROLLED):
            here = builder.add(step, number(more))
            place, along = builder.mul(here, number(4 * COLUMNS)), builder.mul(here, number(4))
            columns = [
                _load(
                    builder,
                    W,
                    builder.add(place, number(4 * LANES * j)),
                    _floats if exact else _shorts,
                )
                for j in vectors
            ]
            sums = [
                add_products(row, along, columns, totals)
                for row, totals in zip(rows, sums, strict=True)
            ]
        for i in range(ROWS):
            for j in vectors:
                begun[i][j].add_incoming(
                    ir.Constant(sum_type, [0.0 if exact else 0] * LANES), before
                )
                begun[i][j].add_incoming(sums[i][j], loop)
        builder.cbranch(builder.icmp_signed("<", following, n_steps), loop, after)

        builder.position_at_end(after)
        of_column = [
            [
                _load(builder, of_columns, number(4 * (term * COLUMNS + LANES * j)), _floats)
                for term in range(1 if exact else 4)
            ]
            for j in vectors
        ]

        def result(total, of_row, bias, *rest):
            if exact:
                return builder.fadd(total, bias)
            (worth, over, reach), (worth_c, norm, error) = of_row, rest
            total = builder.sitofp(total, _floats)
            total = _multiply_add(builder, total, builder.fmul(worth, worth_c), bias)
            total = _multiply_add(builder, over, norm, total)
            return _multiply_add(builder, reach, error, total)

        for i in range(ROWS):
            of_row = [
                _everywhere(
                    builder, _load(builder, of_rows, number(4 * (3 * i + n)), _float), _floats
                )
                for n in range(0 if exact else 3)
            ]
            row = builder.add(out, builder.mul(number(i), out_stride))
            most = None
            for j in vectors:
                entries = result(sums[i][j], of_row, *of_column[j])
                _store(builder, entries, row, 4 * LANES * j)
                bits = builder.bitcast(entries, _ints)
                most = bits if most is None else _larger(builder, most, bits)
            for half in HALVES:  # the upper lanes against the lower, until one is left
                lanes = ir.Constant(_ints, [min(lane + half, LANES - 1) for lane in range(LANES)])
                most = _larger(builder, most, builder.shuffle_vector(most, most, lanes))
            largest = builder.extract_element(most, ir.Constant(_i32, 0))
            _store(builder, largest, builder.add(maxima, builder.mul(number(i), maxima_stride)), 0)
        return context.get_dummy_value()

    return types.void(kind, *[types.intp] * 12), generate


def _larger(builder, a, b):
    return builder.select(builder.icmp_signed(">", a, b), a, b)


@intrinsic
def _dots(typingctx, x, rows, following, n, out):
    """The products of x with four rows, as far as n, a multiple of 2 * LANES; four others are fetched.

    All but n are addresses: `rows` and `following` of where the rows' addresses lie, `out` of the sums.
    """

    def generate(context, builder, signature, arguments):
        x, rows, following, n, out = arguments
        fetch = _fetching(builder)
        zero = ir.Constant(_i64, 0)
        nothing = ir.Constant(_floats, [0.0] * LANES)
        theirs, next_ones = (
            [_load(builder, of, ir.Constant(_i64, 8 * i), _i64) for i in range(4)]
            for of in (rows, following)
        )
        before = builder.block
        test = builder.append_basic_block("test")
        loop = builder.append_basic_block("loop")
        after = builder.append_basic_block("sums")
        builder.branch(test)

        builder.position_at_end(test)
        d = builder.phi(_i64)
        d.add_incoming(zero, before)
        totals = [[builder.phi(_floats) for _ in range(2)] for _ in range(4)]
        builder.cbranch(builder.icmp_signed("<", d, n), loop, after)

        builder.position_at_end(loop)
        along = builder.mul(d, ir.Constant(_i64, 4))
        places = [builder.add(along, ir.Constant(_i64, 4 * LANES * j)) for j in range(2)]
        numbers = [_load(builder, x, place, _floats) for place in places]
        for row, ahead, total in zip(theirs, next_ones, totals, strict=True):
            fetch(builder.add(ahead, along))
            for j in range(2):
                more = _multiply_add(
                    builder, numbers[j], _load(builder, row, places[j], _floats), total[j]
                )
                total[j].add_incoming(nothing, before)
                total[j].add_incoming(more, loop)
        d.add_incoming(builder.add(d, ir.Constant(_i64, 2 * LANES)), loop)
        builder.branch(test)

        builder.position_at_end(after)
        for i in range(4):
            total = builder.fadd(*totals[i])
            for half in HALVES:
                lanes = ir.Constant(_ints, [min(lane + half, LANES - 1) for lane in range(LANES)])
                total = builder.fadd(total, builder.shuffle_vector(total, total, lanes))
            _store(builder, builder.extract_element(total, ir.Constant(_i32, 0)), out, 4 * i)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@intrinsic
def fetch(typingctx, address):
    """Has the 64 bytes around an address come nearer, without waiting for them."""

    def generate(context, builder, signature, arguments):
        _fetching(builder)(arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp), generate


def _fetching(builder):
    arguments = [_bytes, _i32, _i32, _i32]
    call = builder.module.declare_intrinsic(
        "llvm.prefetch", [_bytes], ir.FunctionType(ir.VoidType(), arguments)
    )
    how = [ir.Constant(_i32, n) for n in (READ, NEAR, DATA)]
    return lambda address: builder.call(call, [builder.inttoptr(address, _bytes), *how])
