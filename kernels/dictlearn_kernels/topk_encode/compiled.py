"""The k largest positive entries of every row, in two passes over pre-activations or bounds of them.

The first finds a threshold that at least k entries reach: the k-th largest of the maxima of groups of
columns. The second keeps what reaches it, which is little more than k. Both go by vectors, because
float32 numbers above zero are ordered as the integers of their bits are, and those below zero as
negative ones. Bounds come with the maxima of every few neighbours: both passes go over those, and only
where one reaches the threshold are its neighbours looked at.

In fixed point no bound exceeds its entry by more than the row's spread. So the k entries with the
largest bounds are no smaller than the k-th largest bound less the spread, and what has a lower bound
than that cannot be selected: the little that is left is evaluated in float32, and no row needs a second
look. Rows are taken a few at a time, whose bounds are in the cache when they are searched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from dictlearn_kernels import fixed_point, selection, tiles
from dictlearn_kernels.compiled import array, loop, sizes
from dictlearn_kernels.linear import passing
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threads import over
from dictlearn_kernels.tiles import Tiled

GROUPS_PER_PICK = 3  # so many groups for each entry that is looked for, where there are so many
WIDE = 16  # numbers whose comparisons are the bits of one word
LANES = 64  # that are looked at together
LANES_OF_MAXIMA = 16  # which are a few hundred
INFINITY = 0x7F800000  # as an integer; above it nothing is a number
ROUGH = 12  # bits that a first threshold may lack: it is then less by a 2,000th at most


def serves(x_RD: Tensor) -> bool:
    return x_RD.device.type == "cpu" and x_RD.dtype == torch.float32


def topk_encode(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int) -> Selection:
    """The k largest positive entries of every row of x W^T + b, as CSR."""
    sizes(x_RD=x_RD, W_CD=W_CD, b_C=b_C)
    if tiles.pays(len(x_RD), len(W_CD)):
        return largest_in_tiles(tiles.exact(x_RD, W_CD, b_C), k)
    return largest(passing(x_RD[:, None], W_CD[None], b_C[None]), k)


def topk_encode_fixed(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int) -> Selection | None:
    """The same by bounds in fixed point; None where the operands don't go into it."""
    of = fixed_point.bounded(x_RD, W_CD, b_C)
    return None if of is None else largest_in_tiles(of, k)


def largest(pre_RC: Tensor, k: int) -> Selection:
    """The k largest positive entries of every row of a float32 matrix, as CSR."""
    n_rows = sizes(pre_RC=pre_RC)["R"]
    if not serves(pre_RC):
        raise ValueError(f"pre_RC is {pre_RC.dtype} on {pre_RC.device}: want float32 on a CPU")
    bits = array(pre_RC.view(torch.int32))
    return _collected(
        n_rows, k, lambda *out: over(n_rows, lambda low, high: _largest(low, high, bits, k, *out))
    )


def largest_in_tiles(of: Tiled, k: int) -> Selection:
    """The same of a product, a few rows of which are searched at a time."""
    of.check()

    def search(values: Any, columns: Any, counts: Any) -> None:
        def part(low: int, high: int) -> None:
            for strip in tiles.strips(of, low, high):
                bits = strip.upper.view(np.int32), strip.maxima.view(np.int32)
                _contenders(*bits, k, of.spread_R[strip.rows], strip.starts, strip.columns)
                strip.evaluate()
                of_rows = (out[strip.rows] for out in (values, columns, counts))
                _largest_of(strip.entries.view(np.int32), strip.starts, strip.columns, k, *of_rows)

        over(of.n_tiles, part)

    return _collected(len(of.operands[0]), k, search)


def _collected(n_rows: int, k: int, search: Callable[..., object]) -> Selection:
    """What `search` writes into the bits of values, columns and counts: [R, k] twice and [R]."""
    if k < 1:
        raise ValueError(f"k={k}: want 1 or more")
    values_RK = torch.empty(n_rows, k)
    columns_RK = torch.empty(n_rows, k, dtype=torch.int64)
    counts_R = torch.empty(n_rows, dtype=torch.int64)
    search(array(values_RK.view(torch.int32)), array(columns_RK), array(counts_R))
    row_starts = selection.starts(counts_R)
    if int(row_starts[-1]) == n_rows * k:
        return row_starts, columns_RK.flatten(), values_RK.flatten()
    taken = torch.arange(k) < counts_R[:, None]
    return row_starts, columns_RK[taken], values_RK[taken]


@loop
def _largest(low, high, bits, k, values, columns, counts):
    kept, places, memory, word = _memory(bits.shape[1], k)
    for r in range(low, high):
        threshold = _threshold(bits[r], k, np.float32(0), memory, word)
        n = _reaching(bits[r], threshold, kept, places)
        counts[r] = _taken(kept, places, n, k, values[r], columns[r])


@loop
def _contenders(bits, maxima, k, spread, starts, columns):
    """Which entries of every row may be among its k largest, by the bits of their bounds."""
    of_panel = bits.shape[2]
    kept, places, memory, word = _memory(len(bits) * of_panel, k)
    largest, panels = np.empty(maxima.shape[1], np.int32), np.empty(maxima.shape[1], np.int64)
    starts[0] = 0
    for r in range(len(spread)):
        threshold = _threshold_of_maxima(maxima[r], k, spread[r], memory, word)
        n_near = _reaching_of_maxima(maxima[r], threshold, largest, panels)
        for i in range(n_near):
            place = bits[panels[i], r].ctypes.data
            for line in range(0, of_panel * bits.itemsize, 64):
                tiles.fetch(place + line)  # pyright: ignore
        n = 0
        for i in range(n_near):
            panel = panels[i]
            for first in range(0, of_panel, WIDE):
                reached = _reaching_mask(bits[panel, r, first:].ctypes.data, threshold)  # pyright: ignore
                while reached:
                    j = first + _lowest(reached)  # pyright: ignore
                    kept[n], places[n] = bits[panel, r, j], panel * of_panel + j
                    n += 1
                    reached &= reached - 1
        # What the groups' maxima say is a little too low.
        threshold = max(1, _less(_kth_largest(kept, n, k, 0), spread[r], word)) if n > k else 1
        end = starts[r]
        for i in range(n):
            columns[end] = places[i]
            end += kept[i] >= threshold
        starts[r + 1] = end


@loop
def _largest_of(bits, starts, places, k, values, columns, counts):
    kept = np.empty(len(bits) + WIDE, np.int32)
    for r in range(len(counts)):
        n = 0
        first = starts[r]
        for i in range(first, starts[r + 1]):
            kept[n], places[first + n] = bits[i], places[i]
            n += bits[i] > 0
        counts[r] = _taken(kept, places[first:], n, k, values[r], columns[r])


@loop
def _memory(n_columns, k):
    """(kept, places, memory, word) that the searches of all rows share."""
    room = max(n_columns, GROUPS_PER_PICK * k) + LANES
    return (
        np.empty(room, np.int32),
        np.empty(room, np.int64),
        np.empty(room, np.int32),
        np.empty(1, np.int32),
    )


def _threshold_by(lanes: int) -> Any:
    @loop
    def threshold(bits, k, spread, memory, word):
        """The bits of a number above zero that no entry is below which `spread` more would bring among
        the k largest: their k-th largest or a little less, less the spread.
        """
        n_blocks = len(bits) // lanes
        n_groups = min((GROUPS_PER_PICK * k + lanes - 1) // lanes, n_blocks)
        if n_groups * lanes < k:
            return np.int32(1)
        blocks = bits[: n_blocks * lanes].reshape(n_blocks, lanes)
        groups = memory[: n_groups * lanes].reshape(n_groups, lanes)
        groups[:] = 0
        for first in range(0, n_blocks, n_groups):
            for group in range(min(n_groups, n_blocks - first)):
                for j in range(lanes):
                    x = blocks[first + group, j]
                    groups[group, j] = x if x > groups[group, j] else groups[group, j]
        reached = _kth_largest(memory, n_groups * lanes, k, ROUGH)
        return max(np.int32(1), _less(reached, spread, word))

    return threshold


def _reaching_by(lanes: int) -> Any:
    @loop
    def reaching(bits, threshold, kept, places):
        """Keeps the numbers that reach the threshold: how many."""
        n, n_blocks = 0, len(bits) // lanes
        blocks = bits[: n_blocks * lanes].reshape(n_blocks, lanes)
        for block in range(n_blocks):
            reached = np.int32(0)
            for j in range(lanes):
                reached |= np.int32(blocks[block, j] >= threshold)
            if reached:
                for j in range(lanes):
                    x = blocks[block, j]
                    if x >= threshold:
                        kept[n], places[n] = x, block * lanes + j
                        n += 1
        for i in range(n_blocks * lanes, len(bits)):
            if bits[i] >= threshold:
                kept[n], places[n] = bits[i], i
                n += 1
        return n

    return reaching


_threshold, _reaching = _threshold_by(LANES), _reaching_by(LANES)
_threshold_of_maxima = _threshold_by(LANES_OF_MAXIMA)
_reaching_of_maxima = _reaching_by(LANES_OF_MAXIMA)


@loop
def _less(bits, spread, word):
    """The bits of the number of these bits, less `spread`."""
    word[0] = bits
    word.view(np.float32)[0] -= spread
    return word[0]


@loop
def _taken(kept, places, n, k, values, columns):
    """Writes the k largest of the first n, in the order they come in: how many there are."""
    ties = 0  # that may still be taken
    threshold = np.int32(0)
    if n > k:
        threshold = _kth_largest(kept, n, k, 0)
        ties = k
        for i in range(n):
            ties -= kept[i] > threshold
    count = 0
    for i in range(n):
        x = kept[i]
        if x == threshold and n > k:
            ties -= 1
            if ties < 0:
                continue
        if x >= threshold and x <= INFINITY:
            values[count], columns[count] = x, places[i]
            count += 1
    return count


@loop
def _kth_largest(numbers, n, k, lowest):
    """Of the first n, none below zero, a bit at a time; the `lowest` bits are left out.

    What comes after them is overwritten with zeros, up to a whole vector.
    """
    numbers[n : n + -n % WIDE] = 0
    first = numbers.ctypes.data
    found = np.int32(0)
    for bit in range(30, lowest - 1, -1):
        higher = found | np.int32(1 << bit)
        reaching = 0
        for i in range(0, n, WIDE):
            reaching += _n_reaching(first + i * numbers.itemsize, higher)  # pyright: ignore
        if reaching >= k:
            found = higher
    return found


_i1, _i32, _i64 = (ir.IntType(n) for n in (1, 32, 64))
_ints = ir.VectorType(_i32, WIDE)


def _which_reach(builder, place, threshold):
    numbers = builder.load(builder.inttoptr(place, _ints.as_pointer()), align=4)
    nothing = ir.Constant(_ints, ir.Undefined)
    first = builder.insert_element(nothing, threshold, ir.Constant(_i32, 0))
    everywhere = builder.shuffle_vector(first, nothing, ir.Constant(_ints, [0] * WIDE))
    reach = builder.icmp_signed(">=", numbers, everywhere)
    return builder.bitcast(reach, ir.IntType(WIDE))


@intrinsic
def _reaching_mask(typingctx, place, threshold):
    """A bit for each of WIDE int32 at an address: whether it is no less than the threshold."""

    def generate(context, builder, signature, arguments):
        return builder.zext(_which_reach(builder, *arguments), _i32)

    return types.int32(types.intp, types.int32), generate


@intrinsic
def _n_reaching(typingctx, place, threshold):
    """How many of them are."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.ctpop(_which_reach(builder, *arguments)), _i64)

    return types.int64(types.intp, types.int32), generate


@intrinsic
def _lowest(typingctx, mask):
    """The place of the lowest bit of an int32 that has any."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.cttz(arguments[0], ir.Constant(_i1, 1)), _i64)

    return types.int64(types.int32), generate
