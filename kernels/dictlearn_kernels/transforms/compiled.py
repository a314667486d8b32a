"""All products by one loop over tiles, where the tokens that a transform reads and writes lie.

A tile is `ROWS` rows of one matrix, wherever they are, times the columns of a panel, whose numbers lie
column beside column: sums that stay in registers, each step two vectors and a few numbers for all
lanes. A transform's tokens are read, and what it writes is added to them, by their addresses: no
gathered copy is made of x, nor one of y.

What a call keeps for its backward pass is V x, of every stored entry in the order of
`Pattern.by_column`: as many numbers as its transform has ranks, filled up to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from dictlearn_kernels import compiled
from dictlearn_kernels.compiled import array, loop, sums
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.threads import over

LANES = compiled.lanes()
# Of a tile: 12 sums, two columns' and a row's numbers fill 16 registers, 24 sums 27 of 32.
ROWS, COLUMNS = {8: 6, 16: 12}[LANES], 2 * LANES
PARTS = 2  # of the columns that are written, for each thread: narrower ones are slower
NEAR = 2**16  # numbers in panels that stay in a core's own cache while rows pass by


def serves(values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]) -> bool:
    """Whether these loops take such tensors: float32 on a CPU, of a width that panels divide."""
    whole = x_RD.shape[1] % COLUMNS == 0 and not torch.compiler.is_compiling()
    return whole and compiled.serves(values, x_RD, *U, *V)


class _Work:
    """A pattern's entries by transform, and the sets of transforms of equal rank."""

    def __init__(self, pattern: Pattern, values: Tensor, maps: Sequence[Tensor]):
        self._check(pattern, values, maps)
        self.order, starts = pattern.by_column
        self.starts = array(starts.long())
        self.rows = array(pattern.sorted_rows.long())
        self.values = array(values[self.order])
        self.firsts = list(accumulate((len(m) for m in maps), initial=0))
        wide = np.repeat([_whole(m.shape[1]) for m in maps], [len(m) for m in maps])
        self.places = np.zeros(len(self.starts), np.int64)
        np.cumsum(wide * np.diff(self.starts), out=self.places[1:])
        self.entries = self.starts, self.rows, self.places

    @staticmethod
    def _check(pattern: Pattern, values: Tensor, maps: Sequence[Tensor]) -> None:
        compiled.check_csr(pattern.row_starts, pattern.columns, values, pattern.n_rows)
        n = sum(len(one) for one in maps)
        if n != pattern.n_columns:
            raise ValueError(f"the maps are {n}: want one for each of {pattern.n_columns} columns")

    def over(self, part: Callable[[int, int, int, int], object]) -> None:
        """part(set, low, high, its first transform) for all transforms, low to high - 1 of a set."""

        def several(low: int, high: int) -> None:
            for g, (first, end) in enumerate(pairwise(self.firsts)):
                if low < end and first < high:
                    part(g, max(low, first), min(high, end), first)

        over(self.firsts[-1], several)

    def read(self, x_RD: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """M x for every transform's tokens."""
        hidden = torch.empty(int(self.places[-1]))
        x, stacks, out = array(x_RD), list(map(array, maps)), array(hidden)
        self.over(lambda g, *which: _read(*which, self.entries, x, stacks[g], out))
        return hidden

    def written(self, hidden: Tensor, maps: Sequence[Tensor], like_RD: Tensor) -> Tensor:
        """Sum over a token's transforms of value * M^T hidden."""
        y_RD = torch.zeros_like(like_RD)
        y, stacks, of = array(y_RD), list(map(array, maps)), array(hidden)
        n_panels = y_RD.shape[1] // COLUMNS
        n_parts = min(n_panels, PARTS * torch.get_num_threads())

        def columns(low: int, high: int) -> None:
            ends = low * n_panels // n_parts, high * n_panels // n_parts
            for first, stack in zip(self.firsts, stacks, strict=False):
                _write(*ends, first, self.entries, self.values, of, stack, y)

        over(n_parts, columns)
        return y_RD


def forward(
    pattern: Pattern, values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(y [R, D], V x)."""
    _check(pattern, x_RD, U, V)
    work = _Work(pattern, values, U)
    hidden = work.read(x_RD, V)
    return work.written(hidden, U, x_RD), hidden


def backward(
    pattern: Pattern,
    values: Tensor,
    x_RD: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    hidden: Tensor | None,
    g_RD: Tensor,
    wants_x: bool,
    g_U: Sequence[Tensor],
    g_V: Sequence[Tensor],
) -> tuple[Tensor, Tensor | None]:
    """(g_values, g_x); the maps' gradients are written where the caller says."""
    _check(pattern, x_RD, U, V, g_U, g_V)
    compiled.sizes(x_RD=x_RD, g_RD=g_RD)
    work = _Work(pattern, values, U)
    if hidden is None:
        hidden = work.read(x_RD, V)
    elif hidden.shape != (work.places[-1],):
        raise ValueError(f"hidden has the shape {list(hidden.shape)}: want [{work.places[-1]}]")
    back = work.read(g_RD, U)
    g_sorted = torch.empty_like(values)
    of = array(hidden), array(back), array(x_RD), array(g_RD)
    into_U, into_V = (list(map(array, sides)) for sides in (g_U, g_V))
    given = work.entries, work.values, of, array(g_sorted)
    work.over(lambda g, *which: _differentiate(*which, *given, into_U[g], into_V[g]))
    g_values = torch.empty_like(values)
    g_values[work.order] = g_sorted
    return g_values, work.written(back, V, x_RD) if wants_x else None


def _check(pattern: Pattern, x_RD: Tensor, U: Sequence[Tensor], *others: Sequence[Tensor]) -> None:
    """ValueError unless x has the pattern's rows, and all of the maps the shapes of U's."""
    if x_RD.shape != (pattern.n_rows, x_RD.shape[-1]) or x_RD.shape[-1] % COLUMNS:
        raise ValueError(f"x_RD has the shape {list(x_RD.shape)}: want {pattern.n_rows} rows")
    for maps in others:
        if [one.shape for one in maps] != [one.shape for one in U]:
            raise ValueError("maps that belong together differ in shape")
    for maps in (U, *others):
        for one_MKD in maps:
            compiled.sizes(x_RD=x_RD, one_MKD=one_MKD)
            if not one_MKD.is_contiguous():
                raise ValueError("a set of maps is not contiguous")


def _whole(rank: int) -> int:
    return rank + -rank % LANES


@loop
def _addresses(a, rows, n, spare):
    """Of n of a's rows, and of `spare` for those that fill up a tile."""
    found = np.empty(n + ROWS, np.int64)
    found[n:] = np.int64(spare.ctypes.data)
    for i in range(n):
        found[i] = a[rows[i]].ctypes.data
    return found


@loop
def _in_turn(a, n, spare):
    """Of a's first n rows, and of `spare`."""
    found = np.empty(n + COLUMNS, np.int64)
    found[n:] = np.int64(spare.ctypes.data)
    for i in range(n):
        found[i] = a[i].ctypes.data
    return found


@loop
def _read(low, high, first, entries, x, maps, hidden):
    """M x of transforms low to high - 1, the first in `maps` being `first`."""
    starts, rows, places = entries
    _, K, D = maps.shape
    wide = K + -K % LANES
    panel = np.empty((D, COLUMNS), np.float32)
    nothing, lost = np.zeros(D, np.float32), np.empty(wide, np.float32)
    for t in range(low, high):
        start, M = starts[t], starts[t + 1] - starts[t]
        ranks = _in_turn(maps[t - first], K, nothing)
        tokens = _addresses(x, rows[start:], M, nothing)
        out = _in_turn(hidden[places[t] : places[t + 1]].reshape(M, wide), M, lost)
        for k in range(0, K, COLUMNS):
            _transpose(ranks[k:].ctypes.data, D, panel.ctypes.data)  # pyright: ignore
            for m in range(0, M, ROWS):
                given = tokens[m:].ctypes.data, 4, panel.ctypes.data, D, out[m:].ctypes.data, 4 * k
                if wide - k >= COLUMNS:
                    _tile(*given)  # pyright: ignore
                else:
                    _half_tile(*given)  # pyright: ignore


@loop
def _write(low, high, first, entries, values, hidden, maps, y):
    """Adds value * M^T hidden to columns of y, panels low to high - 1, for the transforms of maps."""
    starts, rows, places = entries
    n, K, D = maps.shape
    wide = K + -K % LANES
    near = _near(K, high - low)
    panels, one = np.empty((near, K, COLUMNS), np.float32), np.float32(1)
    nothing, lost = np.zeros(wide, np.float32), np.zeros(D, np.float32)
    for t in range(first, first + n):
        start, M = starts[t], starts[t + 1] - starts[t]
        of = _in_turn(hidden[places[t] : places[t + 1]].reshape(M, wide), M, nothing)
        into = _addresses(y, rows[start:], M, lost)
        weights = np.zeros(M + ROWS, np.float32)
        weights[:M] = values[start : start + M]
        for begin in range(low, high, near):
            several = min(near, high - begin)
            for k in range(K):
                row = maps[t - first, k, COLUMNS * begin :].ctypes.data
                _spread(row, one, several, panels[0, k].ctypes.data, 4 * panels[0].size)  # pyright: ignore
            for m in range(0, M, ROWS):
                from_, to, weight = (
                    of[m:].ctypes.data,
                    into[m:].ctypes.data,
                    weights[m:].ctypes.data,
                )
                for p in range(several):
                    panel, offset = panels[p].ctypes.data, 4 * COLUMNS * (begin + p)
                    _add_tile(from_, 4, panel, K, to, offset, weight)  # pyright: ignore


@loop
def _near(n_rows, n_panels):
    """How many panels of so many rows to fill at a time."""
    return max(1, min(NEAR // (COLUMNS * max(1, n_rows)), n_panels))


@sums
def _differentiate(low, high, first, entries, values, of, g_values, g_U, g_V):
    starts, rows, places = entries
    hidden, back, x, g = of
    K = g_U.shape[1]
    wide = K + -K % LANES
    lost = np.empty(x.shape[1], np.float32)
    for t in range(low, high):
        start, stop = starts[t], starts[t + 1]
        if start == stop:
            g_U[t - first] = 0
            g_V[t - first] = 0
            continue
        h_MK = hidden[places[t] : places[t + 1]].reshape(stop - start, wide)
        b_MK = back[places[t] : places[t + 1]].reshape(stop - start, wide)
        for m in range(stop - start):
            total = np.float32(0)
            for k in range(K):
                total += h_MK[m, k] * b_MK[m, k]
            g_values[start + m] = total
        _outer(h_MK, g, rows[start:stop], values[start:stop], g_U[t - first], lost)
        _outer(b_MK, x, rows[start:stop], values[start:stop], g_V[t - first], lost)


@loop
def _outer(h_MK, x, rows, values, out_KD, lost):
    """out = sum over tokens m of value_m * h_m x_m; `lost` is a row for what fills up a tile.

    It is the caller's: numba frees an array of ours after its last use, and an address is none.
    """
    (M, wide), (K, D) = h_MK.shape, out_KD.shape
    of = np.empty(K + ROWS, np.int64)
    for k in range(K + ROWS):
        of[k] = h_MK.ctypes.data + 4 * min(k, wide - 1)
    into = _in_turn(out_KD, K, lost)
    near = _near(M, D // COLUMNS)
    panels = np.empty((near, M, COLUMNS), np.float32)
    for begin in range(0, D // COLUMNS, near):
        several = min(near, D // COLUMNS - begin)
        for m in range(M):
            row = x[rows[m], COLUMNS * begin :].ctypes.data
            _spread(row, values[m], several, panels[0, m].ctypes.data, 4 * panels[0].size)  # pyright: ignore
        for p in range(several):
            panel, offset = panels[p].ctypes.data, 4 * COLUMNS * (begin + p)
            for k in range(0, K, ROWS):
                _tile(of[k:].ctypes.data, 4 * wide, panel, M, into[k:].ctypes.data, offset)  # pyright: ignore


_i32, _i64, _float = ir.IntType(32), ir.IntType(64), ir.FloatType()
_floats = ir.VectorType(_float, LANES)


def _at(builder, address, offset, kind):
    place = builder.add(address, ir.Constant(_i64, offset)) if offset else address
    return builder.inttoptr(place, kind.as_pointer())


def _everywhere(builder, number):
    nothing = ir.Constant(_floats, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(_i32, 0))
    lanes = ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, nothing, lanes)


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


def _generate_tile(context, builder, arguments, vectors, adds):
    rows, step, panel, n_steps, out, offset, *weights = arguments
    zero = ir.Constant(_i64, 0)
    addresses = [builder.load(_at(builder, rows, 8 * i, _i64)) for i in range(ROWS)]
    before = builder.block
    loop = builder.append_basic_block("steps")
    after = builder.append_basic_block("results")
    builder.branch(loop)

    builder.position_at_end(loop)
    at_step, along = builder.phi(_i64), builder.phi(_i64)
    totals = [builder.phi(_floats) for _ in range(ROWS * vectors)]
    following = builder.add(at_step, ir.Constant(_i64, 1))
    for place, ahead in ((at_step, following), (along, builder.add(along, step))):
        place.add_incoming(zero, before)
        place.add_incoming(ahead, loop)
    beside = builder.add(panel, builder.mul(at_step, ir.Constant(_i64, 4 * COLUMNS)))
    columns = [
        builder.load(_at(builder, beside, 4 * LANES * j, _floats), align=4) for j in range(vectors)
    ]
    sums = []
    for address in addresses:
        number = builder.load(_at(builder, builder.add(address, along), 0, _float), align=4)
        a = _everywhere(builder, number)
        for column in columns:
            total = totals[len(sums)]
            sums.append(_multiply_add(builder, a, column, total))
            total.add_incoming(ir.Constant(_floats, [0.0] * LANES), before)
            total.add_incoming(sums[-1], loop)
    builder.cbranch(builder.icmp_signed("<", following, n_steps), loop, after)

    builder.position_at_end(after)
    for i in range(ROWS):
        row = builder.add(builder.load(_at(builder, out, 8 * i, _i64)), offset)
        for j in range(vectors):
            place, result = _at(builder, row, 4 * LANES * j, _floats), sums[i * vectors + j]
            if adds:
                weight = builder.load(_at(builder, weights[0], 4 * i, _float), align=4)
                there = builder.load(place, align=4)
                result = _multiply_add(builder, _everywhere(builder, weight), result, there)
            builder.store(result, place, align=4)
    return context.get_dummy_value()


@intrinsic
def _tile(typingctx, rows, step, panel, n_steps, out, offset):
    """out[i, :] = sum over steps l of A[i, l] panel[l, :] for ROWS rows; n_steps is at least 1.

    All but n_steps are addresses or distances in bytes: `rows` and `out` are where the addresses of A's
    and out's rows lie; A[i, l + 1] is `step` behind A[i, l], and a result `offset` behind its row.
    """

    def generate(context, builder, signature, arguments):
        return _generate_tile(context, builder, arguments, 2, False)

    return types.void(*[types.intp] * 6), generate


@intrinsic
def _half_tile(typingctx, rows, step, panel, n_steps, out, offset):
    """The same for a panel's first LANES columns."""

    def generate(context, builder, signature, arguments):
        return _generate_tile(context, builder, arguments, 1, False)

    return types.void(*[types.intp] * 6), generate


@intrinsic
def _add_tile(typingctx, rows, step, panel, n_steps, out, offset, weights):
    """The same, added to out times a row's weight."""

    def generate(context, builder, signature, arguments):
        return _generate_tile(context, builder, arguments, 2, True)

    return types.void(*[types.intp] * 7), generate


@intrinsic
def _spread(typingctx, row, factor, n, place, panel):
    """A row times a factor, its n parts of COLUMNS each to a row of a panel.

    `place` is the address in the first panel, `panel` the bytes from one panel to the next.
    """

    def generate(context, builder, signature, arguments):
        row, factor, n, place, panel = arguments
        weight = _everywhere(builder, factor)
        before = builder.block
        loop = builder.append_basic_block("parts")
        after = builder.append_basic_block("spread")
        builder.branch(loop)

        builder.position_at_end(loop)
        at, of, into = (builder.phi(_i64) for _ in range(3))
        following = builder.add(at, ir.Constant(_i64, 1))
        for where, start, ahead in (
            (at, ir.Constant(_i64, 0), following),
            (of, row, builder.add(of, ir.Constant(_i64, 4 * COLUMNS))),
            (into, place, builder.add(into, panel)),
        ):
            where.add_incoming(start, before)
            where.add_incoming(ahead, loop)
        for j in range(0, COLUMNS, LANES):
            numbers = builder.load(_at(builder, of, 4 * j, _floats), align=4)
            scaled = builder.fmul(numbers, weight)
            builder.store(scaled, _at(builder, into, 4 * j, _floats), align=4)
        builder.cbranch(builder.icmp_signed("<", following, n), loop, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, *[types.intp] * 3), generate


# Of two vectors of eight, numbered one after the other: their single numbers, pairs and fours in turn.
_INTERLEAVE = (
    ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
)
_COMES_OUT = (0, 2, 1, 3, 4, 6, 5, 7)  # which column each vector is after that


@intrinsic
def _transpose(typingctx, rows, n, panel):
    """panel[d, j] = row_j[d] for d below n, a multiple of 8; `rows` has COLUMNS addresses."""

    def generate(context, builder, signature, arguments):
        rows, n, panel = arguments
        eight = ir.VectorType(_float, 8)
        shuffle = ir.VectorType(_i32, 8)
        addresses = [builder.load(_at(builder, rows, 8 * j, _i64)) for j in range(COLUMNS)]
        before = builder.block
        loop = builder.append_basic_block("blocks")
        after = builder.append_basic_block("transposed")
        builder.branch(loop)

        builder.position_at_end(loop)
        d = builder.phi(_i64)
        following = builder.add(d, ir.Constant(_i64, 8))
        d.add_incoming(ir.Constant(_i64, 0), before)
        d.add_incoming(following, loop)
        along = builder.mul(d, ir.Constant(_i64, 4))
        into = builder.add(panel, builder.mul(d, ir.Constant(_i64, 4 * COLUMNS)))
        for first in range(0, COLUMNS, 8):
            block = [
                builder.load(_at(builder, builder.add(address, along), 0, eight), align=4)
                for address in addresses[first : first + 8]
            ]
            for distance, masks in zip((1, 2, 4), _INTERLEAVE, strict=True):
                for i in range(8):
                    if i & distance:
                        continue
                    pair = block[i], block[i + distance]
                    block[i], block[i + distance] = (
                        builder.shuffle_vector(*pair, ir.Constant(shuffle, mask)) for mask in masks
                    )
            for column, vector in zip(_COMES_OUT, block, strict=True):
                place = _at(builder, into, 4 * (COLUMNS * column + first), eight)
                builder.store(vector, place, align=4)
        builder.cbranch(builder.icmp_signed("<", following, n), loop, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate
