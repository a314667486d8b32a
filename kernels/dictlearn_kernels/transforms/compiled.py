"""The products of transforms by tiles, which read and write a transform's tokens where they lie.

A tile multiplies ROWS rows of one matrix, given by their addresses, with a panel of another, and its
sums stay in registers. So x is not gathered for a transform, and neither is y.

A call keeps V x for its backward pass (`hidden`): for each stored entry, in the order of
`Pattern.by_column`, one number for each rank of its transform, filled up to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import compiled
from dictlearn_kernels.compiled import array, loop, sums
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.threads import over
from dictlearn_kernels.transforms.microkernel import add_tile, half_tile, spread, tile, transpose
from dictlearn_kernels.vector import COLUMNS, LANES, ROWS

PARTS = 2  # ranges of columns for each thread that writes y: narrower ranges are slower
CACHED = 2**16  # numbers in panels that stay in a core's own cache while rows pass by


def serves(values: Tensor, x_RD: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]) -> bool:
    """Whether these loops take the tensors: float32 on a CPU, of a width that panels divide."""
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
        self.offsets = np.zeros(len(self.starts), np.int64)  # of the transforms in `hidden`
        np.cumsum(wide * np.diff(self.starts), out=self.offsets[1:])
        self.entries = self.starts, self.rows, self.offsets

    @staticmethod
    def _check(pattern: Pattern, values: Tensor, maps: Sequence[Tensor]) -> None:
        compiled.check_csr(pattern.row_starts, pattern.columns, values, pattern.n_rows)
        n = sum(map(len, maps))
        if n != pattern.n_columns:
            raise ValueError(f"{n} maps: want one for each of {pattern.n_columns} columns")

    def over(self, part: Callable[[int, int, int, int], object]) -> None:
        """Calls part(g, low, high, first) for transforms low to high - 1 of each set g at `first`."""

        def sets(low: int, high: int) -> None:
            for g, (first, end) in enumerate(pairwise(self.firsts)):
                if low < end and first < high:
                    part(g, max(low, first), min(high, end), first)

        over(self.firsts[-1], sets)

    def read(self, x_RD: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """`hidden`: M x for every transform's tokens."""
        hidden = torch.empty(int(self.offsets[-1]))
        x, stacks, out = array(x_RD), list(map(array, maps)), array(hidden)
        self.over(lambda g, *part: _read(*part, self.entries, x, stacks[g], out))
        return hidden

    def written(self, hidden: Tensor, maps: Sequence[Tensor], like_RD: Tensor) -> Tensor:
        """The sum of value * M^T hidden over each token's transforms."""
        y_RD = torch.zeros_like(like_RD)
        y, stacks, h = array(y_RD), list(map(array, maps)), array(hidden)
        n_panels = y_RD.shape[1] // COLUMNS
        n_parts = min(n_panels, PARTS * torch.get_num_threads())

        def columns(low: int, high: int) -> None:
            ends = low * n_panels // n_parts, high * n_panels // n_parts
            for first, stack in zip(self.firsts, stacks, strict=False):
                _write(*ends, first, self.entries, self.values, h, stack, y)

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
    """(g_values, g_x). The maps' gradients are written into g_U and g_V."""
    _check(pattern, x_RD, U, V, g_U, g_V)
    compiled.sizes(x_RD=x_RD, g_RD=g_RD)
    work = _Work(pattern, values, U)
    if hidden is None:
        hidden = work.read(x_RD, V)
    elif hidden.shape != (work.offsets[-1],):
        raise ValueError(f"hidden has the shape {list(hidden.shape)}: want [{work.offsets[-1]}]")
    back = work.read(g_RD, U)
    g_sorted = torch.empty_like(values)
    factors = array(hidden), array(back), array(x_RD), array(g_RD)
    into_U, into_V = (list(map(array, sides)) for sides in (g_U, g_V))
    shared = work.entries, work.values, factors, array(g_sorted)
    work.over(lambda g, *part: _differentiate(*part, *shared, into_U[g], into_V[g]))
    g_values = torch.empty_like(values)
    g_values[work.order] = g_sorted
    return g_values, work.written(back, V, x_RD) if wants_x else None


def _check(pattern: Pattern, x_RD: Tensor, U: Sequence[Tensor], *others: Sequence[Tensor]) -> None:
    """Raises ValueError unless x has the pattern's rows, and all maps have the shapes of U's."""
    if x_RD.shape != (pattern.n_rows, x_RD.shape[-1]) or x_RD.shape[-1] % COLUMNS:
        raise ValueError(f"x_RD has the shape {list(x_RD.shape)}: want {pattern.n_rows} rows")
    for maps in others:
        if [M.shape for M in maps] != [M.shape for M in U]:
            raise ValueError("maps that belong together differ in shape")
    for maps in (U, *others):
        for maps_MKD in maps:
            compiled.sizes(x_RD=x_RD, maps_MKD=maps_MKD)
            if not maps_MKD.is_contiguous():
                raise ValueError("a set of maps is not contiguous")


def _whole(rank: int) -> int:
    """The rank, filled up to whole vectors."""
    return rank + -rank % LANES


@loop
def _addresses(a, rows, n, spare):
    """The addresses of a[rows[0]] to a[rows[n - 1]], and of `spare` for rows that fill up a tile."""
    addresses = np.empty(n + ROWS, np.int64)
    addresses[n:] = np.int64(spare.ctypes.data)
    for i in range(n):
        addresses[i] = a[rows[i]].ctypes.data
    return addresses


@loop
def _addresses_in_order(a, n, spare):
    """The addresses of a's first n rows, and of `spare` for rows that fill up a tile or panel."""
    addresses = np.empty(n + COLUMNS, np.int64)
    addresses[n:] = np.int64(spare.ctypes.data)
    for i in range(n):
        addresses[i] = a[i].ctypes.data
    return addresses


@loop
def _read(low, high, first, entries, x, maps, hidden):
    """Writes M x of transforms low to high - 1; the first one in `maps` is `first`."""
    starts, rows, offsets = entries
    _, K, D = maps.shape
    wide = K + -K % LANES
    panel = np.empty((D, COLUMNS), np.float32)
    zeros, unused = np.zeros(D, np.float32), np.empty(wide, np.float32)
    for t in range(low, high):
        start, M = starts[t], starts[t + 1] - starts[t]
        h_MK = hidden[offsets[t] : offsets[t + 1]].reshape(M, wide)
        ranks = _addresses_in_order(maps[t - first], K, zeros)
        tokens = _addresses(x, rows[start:], M, zeros)
        out = _addresses_in_order(h_MK, M, unused)
        for k in range(0, K, COLUMNS):
            transpose(ranks[k:].ctypes.data, D, panel.ctypes.data)  # pyright: ignore
            for m in range(0, M, ROWS):
                operands = tokens[m:].ctypes.data, 4, panel.ctypes.data, D
                if wide - k >= COLUMNS:
                    tile(*operands, out[m:].ctypes.data, 4 * k)  # pyright: ignore
                else:
                    half_tile(*operands, out[m:].ctypes.data, 4 * k)  # pyright: ignore


@loop
def _write(low, high, first, entries, values, hidden, maps, y):
    """Adds value * M^T hidden of all transforms in `maps` to panels low to high - 1 of y's columns."""
    starts, rows, offsets = entries
    n, K, D = maps.shape
    wide = K + -K % LANES
    n_cached = _n_cached(K, high - low)
    panels, unit = np.empty((n_cached, K, COLUMNS), np.float32), np.float32(1)
    panel_bytes = 4 * panels[0].size
    zeros, unused = np.zeros(wide, np.float32), np.zeros(D, np.float32)
    for t in range(first, first + n):
        start, M = starts[t], starts[t + 1] - starts[t]
        h_MK = hidden[offsets[t] : offsets[t + 1]].reshape(M, wide)
        tokens = _addresses_in_order(h_MK, M, zeros)
        out = _addresses(y, rows[start:], M, unused)
        weights = np.zeros(M + ROWS, np.float32)
        weights[:M] = values[start : start + M]
        for begin in range(low, high, n_cached):
            n_panels = min(n_cached, high - begin)
            for k in range(K):
                row = maps[t - first, k, COLUMNS * begin :].ctypes.data
                spread(row, unit, n_panels, panels[0, k].ctypes.data, panel_bytes)  # pyright: ignore
            for m in range(0, M, ROWS):
                h, to = tokens[m:].ctypes.data, out[m:].ctypes.data
                weight = weights[m:].ctypes.data
                for p in range(n_panels):
                    panel, offset = panels[p].ctypes.data, 4 * COLUMNS * (begin + p)
                    add_tile(h, 4, panel, K, to, offset, weight)  # pyright: ignore


@loop
def _n_cached(n_rows, n_panels):
    """The number of panels with this many rows that are filled at a time."""
    return max(1, min(CACHED // (COLUMNS * max(1, n_rows)), n_panels))


@sums
def _differentiate(low, high, first, entries, values, factors, g_values, g_U, g_V):
    """The gradients of transforms low to high - 1 and of their entries' values."""
    starts, rows, offsets = entries
    hidden, back, x, g = factors
    K = g_U.shape[1]
    wide = K + -K % LANES
    unused = np.empty(x.shape[1], np.float32)
    for t in range(low, high):
        start, stop = starts[t], starts[t + 1]
        if start == stop:
            g_U[t - first] = 0
            g_V[t - first] = 0
            continue
        h_MK = hidden[offsets[t] : offsets[t + 1]].reshape(stop - start, wide)
        b_MK = back[offsets[t] : offsets[t + 1]].reshape(stop - start, wide)
        for m in range(stop - start):
            total = np.float32(0)
            for k in range(K):
                total += h_MK[m, k] * b_MK[m, k]
            g_values[start + m] = total
        _outer(h_MK, g, rows[start:stop], values[start:stop], g_U[t - first], unused)
        _outer(b_MK, x, rows[start:stop], values[start:stop], g_V[t - first], unused)


@loop
def _outer(h_MK, x, rows, values, out_KD, unused):
    """out = sum over tokens m of value_m * h_m x_m.

    Rows that fill up a tile go to `unused`, which the caller owns: numba frees an array of this function
    after its last use, and does not count an address as one.
    """
    (M, wide), (K, D) = h_MK.shape, out_KD.shape
    ranks = np.empty(K + ROWS, np.int64)
    for k in range(K + ROWS):
        ranks[k] = h_MK.ctypes.data + 4 * min(k, wide - 1)
    out = _addresses_in_order(out_KD, K, unused)
    n_cached = _n_cached(M, D // COLUMNS)
    panels = np.empty((n_cached, M, COLUMNS), np.float32)
    panel_bytes = 4 * panels[0].size
    for begin in range(0, D // COLUMNS, n_cached):
        n_panels = min(n_cached, D // COLUMNS - begin)
        for m in range(M):
            row = x[rows[m], COLUMNS * begin :].ctypes.data
            spread(row, values[m], n_panels, panels[0, m].ctypes.data, panel_bytes)  # pyright: ignore
        for p in range(n_panels):
            panel, offset = panels[p].ctypes.data, 4 * COLUMNS * (begin + p)
            for k in range(0, K, ROWS):
                h, to = ranks[k:].ctypes.data, out[k:].ctypes.data
                tile(h, 4 * wide, panel, M, to, offset)  # pyright: ignore
