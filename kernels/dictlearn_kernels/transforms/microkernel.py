"""What the products of transforms are built of: tiles in registers, and panels in the cache.

A panel holds COLUMNS numbers of each of its rows, row after row. All of these functions take addresses
and distances in bytes, and trust them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from dictlearn_kernels.vector import (
    COLUMNS,
    FLOAT,
    FLOATS,
    INT,
    LANES,
    LONG,
    ROWS,
    broadcast,
    load,
    multiply_add,
    number,
    steps,
    store,
    zeros,
)

VECTORS = COLUMNS // LANES
EIGHT = ir.VectorType(FLOAT, 8)


class _Tile(NamedTuple):
    """The arguments of `tile`."""

    rows: Any  # where the addresses of A's rows lie
    stride: Any  # from A[i, l] to A[i, l + 1]
    panel: Any
    n_steps: Any  # at least 1
    out: Any  # where the addresses of the rows of results lie
    offset: Any  # from a row's address to its first result
    weights: Any = None  # where the rows' weights lie


def _build(context: Any, builder: Any, args: _Tile, vectors: int) -> Any:
    addresses = [load(builder, args.rows, LONG, 8 * i) for i in range(ROWS)]
    initial = [number(0), *[zeros(FLOATS)] * (ROWS * vectors)]
    with steps(builder, args.n_steps, initial) as step:
        in_row, *totals = step.values
        row = builder.add(args.panel, builder.mul(step.i, number(4 * COLUMNS)))
        columns = [load(builder, row, FLOATS, 4 * LANES * j) for j in range(vectors)]
        sums = []
        for address in addresses:
            a = broadcast(builder, load(builder, address, FLOAT, in_row), FLOATS)
            for column in columns:
                sums.append(multiply_add(builder, a, column, totals[len(sums)]))
        step.results = [builder.add(in_row, args.stride), *sums]
    _, *sums = step.results
    for i in range(ROWS):
        row = builder.add(load(builder, args.out, LONG, 8 * i), args.offset)
        for j, result in enumerate(sums[vectors * i : vectors * (i + 1)]):
            if args.weights is not None:
                weight = broadcast(builder, load(builder, args.weights, FLOAT, 4 * i), FLOATS)
                before = load(builder, row, FLOATS, 4 * LANES * j)
                result = multiply_add(builder, weight, result, before)
            store(builder, result, row, 4 * LANES * j)
    return context.get_dummy_value()


@intrinsic
def tile(typingctx, rows, stride, panel, n_steps, out, offset):
    """out[i, :] = sum over steps l of A[i, l] panel[l, :] for ROWS rows."""

    def generate(context, builder, signature, arguments):
        return _build(context, builder, _Tile(*arguments), VECTORS)

    return types.void(*[types.intp] * 6), generate


@intrinsic
def half_tile(typingctx, rows, stride, panel, n_steps, out, offset):
    """`tile` for a panel's first LANES columns."""

    def generate(context, builder, signature, arguments):
        return _build(context, builder, _Tile(*arguments), 1)

    return types.void(*[types.intp] * 6), generate


@intrinsic
def add_tile(typingctx, rows, stride, panel, n_steps, out, offset, weights):
    """out[i, :] += weights[i] * what `tile` gives."""

    def generate(context, builder, signature, arguments):
        return _build(context, builder, _Tile(*arguments), VECTORS)

    return types.void(*[types.intp] * 7), generate


@intrinsic
def spread(typingctx, row, factor, n, out, panel_bytes):
    """Writes a row times a factor, COLUMNS numbers each to one row of n panels.

    `out` is the row's address in the first panel.
    """

    def generate(context, builder, signature, arguments):
        row, factor, n, out, panel_bytes = arguments
        weight = broadcast(builder, factor, FLOATS)
        with steps(builder, n, [row, out]) as step:
            source, target = step.values
            for j in range(VECTORS):
                numbers = load(builder, source, FLOATS, 4 * LANES * j)
                store(builder, builder.fmul(numbers, weight), target, 4 * LANES * j)
            following = builder.add(source, number(4 * COLUMNS))
            step.results = [following, builder.add(target, panel_bytes)]
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, *[types.intp] * 3), generate


# How two vectors of eight are interleaved, their lanes numbered one after the other: single numbers,
# then pairs, then fours. Each step has a mask for the first result and one for the second.
_INTERLEAVE = (
    ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
)
_ORDER = (0, 2, 1, 3, 4, 6, 5, 7)  # the column that each vector holds after these three steps


@intrinsic
def transpose(typingctx, rows, n, panel):
    """panel[d, j] = row_j[d] for d below n, a multiple of 8; `rows` holds COLUMNS addresses."""

    def generate(context, builder, signature, arguments):
        rows, n, panel = arguments
        addresses = [load(builder, rows, LONG, 8 * j) for j in range(COLUMNS)]
        with steps(builder, n, step=8) as step:
            in_row = builder.mul(step.i, number(4))
            out = builder.add(panel, builder.mul(step.i, number(4 * COLUMNS)))
            for first in range(0, COLUMNS, 8):
                eight = addresses[first : first + 8]
                block = [load(builder, address, EIGHT, in_row) for address in eight]
                for column, vector in zip(_ORDER, _transposed(builder, block), strict=True):
                    store(builder, vector, out, 4 * (COLUMNS * column + first))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def _transposed(builder: Any, block: list[Any]) -> list[Any]:
    """Eight vectors whose lanes are the eight columns of `block`, in the order `_ORDER`."""
    for distance, masks in zip((1, 2, 4), _INTERLEAVE, strict=True):
        for i in range(8):
            if not i & distance:
                pair = block[i], block[i + distance]
                block[i], block[i + distance] = (
                    builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(INT, 8), mask))
                    for mask in masks
                )
    return block
