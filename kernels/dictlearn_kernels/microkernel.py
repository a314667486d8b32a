"""What `tiles` is built of: the product of a few rows of x with a panel of columns of W, in registers.

All of these take addresses, and trust them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from dictlearn_kernels.vector import (
    COLUMNS,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LANES,
    LONG,
    ROWS,
    SHORTS,
    broadcast,
    fold,
    larger,
    load,
    multiply_add,
    number,
    prefetch,
    steps,
    store,
    zeros,
)

UNROLLED = 2  # steps between two tests for the end
VECTORS = COLUMNS // LANES
# Multiplies int16 numbers and adds neighbours: one instruction, whose results are int32.
MULTIPLY_PAIRS = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
AT_ONCE = 4  # rows of W that `dots` multiplies


class _Tile(NamedTuple):
    """The arguments of `tile`: addresses, and distances in bytes, but for the first and n_steps."""

    kind: Any  # a number of the operands' type, float32 or int16
    x: Any  # the tile's first row; the others follow x_stride bytes apart
    x_stride: Any
    W: Any  # the panel
    n_steps: Any  # a multiple of UNROLLED
    row_terms: Any  # what a bound has of each row and column (`tiles.Tiled`)
    column_terms: Any
    out: Any  # ROWS rows of COLUMNS results, out_stride bytes apart
    out_stride: Any
    maxima: Any  # each row's largest result
    maxima_stride: Any
    ahead: Any  # what to fetch meanwhile, `pace` bytes a step
    pace: Any


@intrinsic
def tile(
    typingctx, kind, x, x_stride, W, n_steps, row_terms, column_terms,
    out, out_stride, maxima, maxima_stride, ahead, pace,
):  # fmt: skip
    """Writes the results of one tile, and each row's largest by its bits as an integer."""
    exact = kind == types.float32

    def generate(context, builder, signature, arguments):
        args = _Tile(*arguments)
        totals = _totals(builder, args, exact)
        column_terms = [
            [
                load(builder, args.column_terms, FLOATS, 4 * (term * COLUMNS + LANES * j))
                for term in range(1 if exact else 4)
            ]
            for j in range(VECTORS)
        ]
        for i in range(ROWS):
            row_totals = totals[VECTORS * i : VECTORS * (i + 1)]
            if exact:
                results = [
                    builder.fadd(total, *terms)
                    for total, terms in zip(row_totals, column_terms, strict=True)
                ]
            else:
                results = _bounds(builder, args, i, row_totals, column_terms)
            _write_row(builder, args, i, results)
        return context.get_dummy_value()

    return types.void(kind, *[types.intp] * 12), generate


def _totals(builder: Any, args: _Tile, exact: bool) -> list[Any]:
    """<x_r, W_c> of all rows and columns: VECTORS vectors of float32, or of int32, for each row."""
    kind = FLOATS if exact else INTS
    rows = [builder.add(args.x, builder.mul(number(i), args.x_stride)) for i in range(ROWS)]
    add_products = _add_products_of_floats if exact else _add_products_of_pairs
    with steps(builder, args.n_steps, [zeros(kind)] * (ROWS * VECTORS), UNROLLED) as step:
        prefetch(builder, builder.add(args.ahead, builder.mul(step.i, args.pace)))
        totals = step.values
        for more in range(UNROLLED):
            here = builder.add(step.i, number(more))
            in_panel, in_row = (builder.mul(here, number(n)) for n in (4 * COLUMNS, 4))
            offsets = [builder.add(in_panel, number(4 * LANES * j)) for j in range(VECTORS)]
            columns = [load(builder, args.W, FLOATS if exact else SHORTS, o) for o in offsets]
            sums = []
            for row in rows:
                before = totals[len(sums) : len(sums) + VECTORS]
                sums += add_products(builder, row, in_row, columns, before)
            totals = sums
        step.results = totals
    return list(step.results)


def _add_products_of_floats(builder, row, offset, columns, totals):
    a = broadcast(builder, load(builder, row, FLOAT, offset), FLOATS)
    pairs = zip(columns, totals, strict=True)
    return [multiply_add(builder, a, column, total) for column, total in pairs]


def _add_products_of_pairs(builder, row, offset, columns, totals):
    function = ir.FunctionType(INTS, [SHORTS, SHORTS])
    call = cgutils.get_or_insert_function(builder.module, function, MULTIPLY_PAIRS[LANES])
    pair = builder.bitcast(broadcast(builder, load(builder, row, INT, offset), INTS), SHORTS)
    pairs = zip(columns, totals, strict=True)
    return [builder.add(total, builder.call(call, [pair, column])) for column, total in pairs]


def _bounds(builder: Any, args: _Tile, i: int, totals: Any, column_terms: Any) -> list[Any]:
    """The upper bounds of row i (derivations.md, section 3)."""
    unit, over, reach = (
        broadcast(builder, load(builder, args.row_terms, FLOAT, 4 * (3 * i + term)), FLOATS)
        for term in range(3)
    )
    results = []
    for total, (bias, unit_c, norm, error) in zip(totals, column_terms, strict=True):
        product = builder.sitofp(total, FLOATS)
        bound = multiply_add(builder, product, builder.fmul(unit, unit_c), bias)
        bound = multiply_add(builder, over, norm, bound)
        results.append(multiply_add(builder, reach, error, bound))
    return results


def _write_row(builder: Any, args: _Tile, i: int, results: list[Any]) -> None:
    row = builder.add(args.out, builder.mul(number(i), args.out_stride))
    largest = None
    for j, result in enumerate(results):
        store(builder, result, row, 4 * LANES * j)
        bits = builder.bitcast(result, INTS)
        largest = bits if largest is None else larger(builder, largest, bits)
    largest = fold(builder, largest, lambda a, b: larger(builder, a, b))
    store(builder, largest, args.maxima, builder.mul(number(i), args.maxima_stride))


@intrinsic
def dots(typingctx, x, rows, following, n, out):
    """The products of x with AT_ONCE rows, up to n > 0, a multiple of 2 * LANES.

    The other arguments are addresses: `rows` holds the addresses of the rows, `following` those of rows
    to fetch meanwhile, and `out` takes the sums.
    """

    def generate(context, builder, signature, arguments):
        x, rows, following, n, out = arguments
        theirs, next_ones = (
            [load(builder, table, LONG, 8 * i) for i in range(AT_ONCE)]
            for table in (rows, following)
        )
        with steps(builder, n, [zeros(FLOATS)] * (2 * AT_ONCE), 2 * LANES) as step:
            along = builder.mul(step.i, number(4))
            offsets = [builder.add(along, number(4 * LANES * j)) for j in range(2)]
            numbers = [load(builder, x, FLOATS, offset) for offset in offsets]
            sums = []
            for row, ahead in zip(theirs, next_ones, strict=True):
                prefetch(builder, builder.add(ahead, along))
                for a, offset in zip(numbers, offsets, strict=True):
                    b = load(builder, row, FLOATS, offset)
                    sums.append(multiply_add(builder, a, b, step.values[len(sums)]))
            step.results = sums
        for i in range(AT_ONCE):
            total = builder.fadd(*step.results[2 * i : 2 * i + 2])
            store(builder, fold(builder, total, builder.fadd), out, 4 * i)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate
