"""The k largest positive entries of every row, in two passes over entries or upper bounds of them.

The first pass finds a threshold that at least k entries reach: the k-th largest of the maxima of groups
of columns. The second pass keeps the entries that reach it, which are a few more than k. Both passes
compare vectors of integers: positive float32 numbers are ordered as the integers of their bits, and
negative ones are negative integers. Tiles come with the maxima of their panels, so both passes go over
these, and look at a panel's entries only where its maximum reaches the threshold.

In fixed point no bound exceeds its entry by more than the row's spread. So the k-th largest bound less
the spread excludes what cannot be among the k largest. The few other entries are evaluated in float32,
and no row needs a second look (derivations.md, section 3).
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
from dictlearn_kernels.dispatch import loops_serve
from dictlearn_kernels.linear import passing
from dictlearn_kernels.selection import Selection
from dictlearn_kernels.threads import over
from dictlearn_kernels.tiles import Tiled
from dictlearn_kernels.vector import BIT, INT, LINE_BYTES, LONG, broadcast, fetch, load

GROUPS_PER_PICK = 3  # groups for each of the k entries, where a row has enough columns
WIDE = 16  # numbers whose comparisons are the bits of one word
BLOCK = 64  # numbers that are compared before the next branch
BLOCK_OF_MAXIMA = 16  # a row has a few hundred maxima
INFINITY = 0x7F800000  # as an integer; the bits of NaN are above it
ROUGH = 12  # low bits that a first threshold may lack: it is then too low by a 2,000th at most


def topk_encode(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int) -> Selection:
    """The k largest positive entries of every row of x W^T + b, as CSR."""
    sizes(x_RD=x_RD, W_CD=W_CD, b_C=b_C)
    if tiles.pays(len(x_RD), len(W_CD)):
        return largest_in_tiles(tiles.exact(x_RD, W_CD, b_C), k)
    return largest(passing(x_RD[:, None], W_CD[None], b_C[None]), k)


def topk_encode_fixed(x_RD: Tensor, W_CD: Tensor, b_C: Tensor, k: int) -> Selection | None:
    """The same by bounds in fixed point; None where the operands do not fit it."""
    tiled = fixed_point.bounded(x_RD, W_CD, b_C)
    return None if tiled is None else largest_in_tiles(tiled, k)


def largest(pre_RC: Tensor, k: int) -> Selection:
    """The k largest positive entries of every row of a float32 matrix, as CSR."""
    n_rows = sizes(pre_RC=pre_RC)["R"]
    if not loops_serve(pre_RC):
        raise ValueError(f"pre_RC is {pre_RC.dtype} on {pre_RC.device}: want float32 on a CPU")
    bits = array(pre_RC.view(torch.int32))
    return _collected(
        n_rows, k, lambda *out: over(n_rows, lambda low, high: _largest(low, high, bits, k, *out))
    )


def largest_in_tiles(tiled: Tiled, k: int) -> Selection:
    """The k largest positive entries of every row of a product, searched strip by strip, as CSR."""
    tiled.check()

    def search(values: Any, columns: Any, counts: Any) -> None:
        def part(low: int, high: int) -> None:
            for strip in tiles.strips(tiled, low, high):
                bits = strip.upper.view(np.int32), strip.maxima.view(np.int32)
                spread = tiled.spread_R[strip.rows]
                _contenders(*bits, k, spread, strip.starts, strip.columns)
                strip.evaluate()
                entries = strip.entries.view(np.int32), strip.starts, strip.columns
                out = values[strip.rows], columns[strip.rows], counts[strip.rows]
                _largest_of(*entries, k, *out)

        over(tiled.n_tiles, part)

    return _collected(len(tiled.operands[0]), k, search)


def _collected(n_rows: int, k: int, search: Callable[..., object]) -> Selection:
    """What `search` writes into the bits of values [R, k], columns [R, k] and counts [R], as CSR."""
    if k < 1:
        raise ValueError(f"k={k}: want 1 or more")
    values_RK = torch.empty(n_rows, k)
    columns_RK = torch.empty(n_rows, k, dtype=torch.int64)
    counts_R = torch.empty(n_rows, dtype=torch.int64)
    search(array(values_RK.view(torch.int32)), array(columns_RK), array(counts_R))
    row_starts = selection.starts(counts_R)
    if int(row_starts[-1]) == n_rows * k:
        return row_starts, columns_RK.flatten(), values_RK.flatten()
    written = torch.arange(k) < counts_R[:, None]
    return row_starts, columns_RK[written], values_RK[written]


@loop
def _largest(low, high, bits, k, values, columns, counts):
    kept, positions, memory, word = _memory(bits.shape[1], k)
    for r in range(low, high):
        threshold = _threshold(bits[r], k, np.float32(0), memory, word)
        n = _reaching(bits[r], threshold, kept, positions)
        counts[r] = _take(kept, positions, n, k, values[r], columns[r])


@loop
def _contenders(bits, maxima, k, spread, starts, columns):
    """The entries of every row that may be among its k largest, by the bits of their bounds."""
    panel_columns = bits.shape[2]
    kept, positions, memory, word = _memory(len(bits) * panel_columns, k)
    largest, panels = np.empty(maxima.shape[1], np.int32), np.empty(maxima.shape[1], np.int64)
    starts[0] = 0
    for r in range(len(spread)):
        threshold = _threshold_of_maxima(maxima[r], k, spread[r], memory, word)
        n_panels = _reaching_of_maxima(maxima[r], threshold, largest, panels)
        for i in range(n_panels):
            first = bits[panels[i], r].ctypes.data
            for line in range(0, panel_columns * bits.itemsize, LINE_BYTES):
                fetch(first + line)  # pyright: ignore
        n = 0
        for i in range(n_panels):
            panel = panels[i]
            for first in range(0, panel_columns, WIDE):
                reached = _reaching_mask(bits[panel, r, first:].ctypes.data, threshold)  # pyright: ignore
                while reached:
                    j = first + _lowest_bit(reached)  # pyright: ignore
                    kept[n], positions[n] = bits[panel, r, j], panel * panel_columns + j
                    n += 1
                    reached &= reached - 1
        # The threshold of the groups' maxima is a little too low: this one is exact.
        threshold = max(1, _less(_kth_largest(kept, n, k, 0), spread[r], word)) if n > k else 1
        end = starts[r]
        for i in range(n):
            columns[end] = positions[i]
            end += kept[i] >= threshold
        starts[r + 1] = end


@loop
def _largest_of(bits, starts, positions, k, values, columns, counts):
    """The k largest of each row's entries from starts[r] to starts[r + 1] - 1."""
    kept = np.empty(len(bits) + WIDE, np.int32)
    for r in range(len(counts)):
        n = 0
        first = starts[r]
        for i in range(first, starts[r + 1]):
            kept[n], positions[first + n] = bits[i], positions[i]
            n += bits[i] > 0
        counts[r] = _take(kept, positions[first:], n, k, values[r], columns[r])


@loop
def _memory(n_columns, k):
    """(kept, positions, memory, word) that the searches of all rows share."""
    room = max(n_columns, GROUPS_PER_PICK * k) + BLOCK
    return (
        np.empty(room, np.int32),
        np.empty(room, np.int64),
        np.empty(room, np.int32),
        np.empty(1, np.int32),
    )


def _threshold_by(block: int) -> Any:
    @loop
    def threshold(bits, k, spread, memory, word):
        """The bits of a positive number: an entry below it plus `spread` is not among the k largest.

        It is the k-th largest entry or a little less, less the spread.
        """
        n_blocks = len(bits) // block
        n_groups = min((GROUPS_PER_PICK * k + block - 1) // block, n_blocks)
        if n_groups * block < k:
            return np.int32(1)
        blocks = bits[: n_blocks * block].reshape(n_blocks, block)
        groups = memory[: n_groups * block].reshape(n_groups, block)
        groups[:] = 0
        for first in range(0, n_blocks, n_groups):
            for group in range(min(n_groups, n_blocks - first)):
                for j in range(block):
                    x = blocks[first + group, j]
                    groups[group, j] = x if x > groups[group, j] else groups[group, j]
        reached = _kth_largest(memory, n_groups * block, k, ROUGH)
        return max(np.int32(1), _less(reached, spread, word))

    return threshold


def _reaching_by(block: int) -> Any:
    @loop
    def reaching(bits, threshold, kept, positions):
        """Keeps the numbers that reach the threshold, and returns their count."""
        n, n_blocks = 0, len(bits) // block
        blocks = bits[: n_blocks * block].reshape(n_blocks, block)
        for b in range(n_blocks):
            reached = np.int32(0)
            for j in range(block):
                reached |= np.int32(blocks[b, j] >= threshold)
            if reached:
                for j in range(block):
                    x = blocks[b, j]
                    if x >= threshold:
                        kept[n], positions[n] = x, b * block + j
                        n += 1
        for i in range(n_blocks * block, len(bits)):
            if bits[i] >= threshold:
                kept[n], positions[n] = bits[i], i
                n += 1
        return n

    return reaching


_threshold, _reaching = _threshold_by(BLOCK), _reaching_by(BLOCK)
_threshold_of_maxima = _threshold_by(BLOCK_OF_MAXIMA)
_reaching_of_maxima = _reaching_by(BLOCK_OF_MAXIMA)


@loop
def _less(bits, spread, word):
    """The bits of the number with these bits, less `spread`."""
    word[0] = bits
    word.view(np.float32)[0] -= spread
    return word[0]


@loop
def _take(kept, positions, n, k, values, columns):
    """Writes the k largest of the first n, in their order, and returns their count."""
    ties = 0  # entries equal to the threshold that may still be taken
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
            values[count], columns[count] = x, positions[i]
            count += 1
    return count


@loop
def _kth_largest(numbers, n, k, lowest):
    """The k-th largest of the first n numbers, none negative, bit by bit; it lacks the `lowest` bits.

    The numbers after them are overwritten with zeros, up to a whole vector.
    """
    numbers[n : n + -n % WIDE] = 0
    first = numbers.ctypes.data
    kth = np.int32(0)
    for bit in range(30, lowest - 1, -1):
        higher = kth | np.int32(1 << bit)
        reaching = 0
        for i in range(0, n, WIDE):
            reaching += _n_reaching(first + i * numbers.itemsize, higher)  # pyright: ignore
        if reaching >= k:
            kth = higher
    return kth


_WIDE_INTS = ir.VectorType(INT, WIDE)


def _which_reach(builder, address, threshold):
    numbers = load(builder, address, _WIDE_INTS)
    reach = builder.icmp_signed(">=", numbers, broadcast(builder, threshold, _WIDE_INTS))
    return builder.bitcast(reach, ir.IntType(WIDE))


@intrinsic
def _reaching_mask(typingctx, address, threshold):
    """A bit for each of the WIDE int32 at an address: whether it is at least the threshold."""

    def generate(context, builder, signature, arguments):
        return builder.zext(_which_reach(builder, *arguments), INT)

    return types.int32(types.intp, types.int32), generate


@intrinsic
def _n_reaching(typingctx, address, threshold):
    """The number of bits that `_reaching_mask` would set."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.ctpop(_which_reach(builder, *arguments)), LONG)

    return types.int64(types.intp, types.int32), generate


@intrinsic
def _lowest_bit(typingctx, mask):
    """The position of the lowest bit that is set in an int32 other than zero."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.cttz(arguments[0], ir.Constant(BIT, 1)), LONG)

    return types.int64(types.int32), generate
