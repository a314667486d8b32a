"""x W^T + b a few rows at a time, or upper bounds of it, so that a product is never written in full.

A tile is ROWS rows of x times a panel of COLUMNS rows of W: 6 x 16 with AVX2, 12 x 32 with AVX-512. A
strip is as many tiles as a core's own cache holds the rows of. All of W passes by a strip, panel by
panel, each fetched while the one before it is multiplied, and the results are searched right after. The
largest result of each row and panel stands beside them and says where a search is worth its time.

Results lie panel by panel, in the order in which they are made. As a matrix, rows of 8,192 columns would
be 32 KB apart, which a cache keeps in the same few places: with AVX2 tiles of int16 took 1.2 times as
long at width 512, and 1.5 times at width 128.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dictlearn_kernels import compiled
from dictlearn_kernels.compiled import array, loop
from dictlearn_kernels.dispatch import loops_serve
from dictlearn_kernels.memory import kept
from dictlearn_kernels.microkernel import AT_ONCE, UNROLLED, dots, tile
from dictlearn_kernels.threads import over
from dictlearn_kernels.vector import COLUMNS, LANES, ROWS

STRIP_ROWS = 144  # at most
LINE = 16  # float32 numbers in a line of the cache
# torch's matmul is as fast below these numbers of rows and entries (scripts/bench_fixed_point.py).
FEWEST_ROWS, FEWEST_ENTRIES = 128, {8: 2**20, 16: 2**18}[LANES]


class Tiled(NamedTuple):
    """x and W as tiles take them, in numpy arrays. They are float32, or int16 for fixed point.

    In float32 an entry is <x_r, W_c> + bias_c. In int16 its upper bound is

        unit_r * unit_c * <x_r, W_c> + over_r * norm_c + reach_r * error_c + bias_c

    and the entry is at least that bound less spread_R (derivations.md, section 3). Rows and columns
    that fill up the last tile hold zeros; such columns have the bias -inf.
    """

    x_RD: Any  # whole tiles of rows, of a whole number of steps
    W_PDC: Any  # [panels, width, COLUMNS]; in int16 [panels, width / 2, COLUMNS, 2]: neighbours in pairs
    row_terms: Any  # float32 [rows, 3]: unit, over, reach; in float32 [rows, 0]
    column_terms: (
        Any  # float32 [panels, 4, COLUMNS]: bias, unit, norm, error; in float32 bias alone
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
        """Raises ValueError unless all sizes fit together."""
        x, W, b = self.operands
        (rows, width), panels = self.x_RD.shape, len(self.W_PDC)
        terms, pair = (1, ()) if self.exact else (4, (2,))
        steps = width if self.exact else width // 2
        fits = (
            self.W_PDC.shape == (panels, steps, COLUMNS, *pair)
            and self.row_terms.shape == (rows, 0 if self.exact else 3)
            and self.column_terms.shape == (panels, terms, COLUMNS)
            and self.spread_R.shape == (rows,)
            and rows % ROWS == 0 == steps % UNROLLED
            and 0 <= rows - len(x) < ROWS
            and 0 <= panels * COLUMNS - len(W) < COLUMNS
            and W.shape == (len(b), x.shape[1])
        )
        if not fits:
            raise ValueError("x, W and their terms differ in size")


class Strip(NamedTuple):
    """The entries of a few rows, or upper bounds of them, with room for what a search selects.

    The search fills `starts` and `columns` as CSR, and `evaluate` then fills `entries`. Arrays may have
    more rows than the strip, up to whole tiles.
    """

    tiled: Tiled
    rows: slice
    upper: Any  # float32 [panels, rows, COLUMNS]
    maxima: (
        Any  # float32 [rows, panels and some zeros]: the largest of COLUMNS, by bits as integers
    )
    starts: Any  # int64 [rows + 1]
    columns: Any  # int64, room for all
    entries: Any  # float32, room for all

    def matrix(self) -> Any:
        """A copy of `upper` as [rows, columns], including the columns that fill up the last panel."""
        n_rows = len(self.starts) - 1
        return self.upper[:, :n_rows].transpose(1, 0, 2).reshape(n_rows, -1).copy()

    def evaluate(self) -> None:
        """Fills `entries`: x W^T + b at the selected columns, in float32."""
        n_rows = self.rows.stop - self.rows.start
        n = self.starts[-1] if self.starts.shape == (n_rows + 1,) else -1
        if not 0 <= n <= min(len(self.columns), len(self.entries)):
            raise ValueError(
                f"starts of {len(self.starts)} do not fit {n_rows} rows and their entries"
            )
        selected = self.starts, self.columns, self.entries
        if self.tiled.exact:
            _copy(self.upper, *selected)
        else:
            x, W, b = self.tiled.operands
            _evaluate(x[self.rows], W, b, *selected)


def available() -> bool:
    """Whether this CPU has vectors of eight or sixteen numbers, and multiplies and adds them at once."""
    return compiled.cpu_features() >= {"avx2", "fma"}


def serves(x: Tensor, W: Tensor) -> bool:
    """Whether these are float32 numbers on a CPU, outside of torch.compile."""
    return loops_serve(x, W)


def pays(rows: int, columns: int) -> bool:
    """Whether tiles are faster for this size than torch's matmul and a search through its result."""
    return available() and rows >= FEWEST_ROWS and rows * columns >= FEWEST_ENTRIES


def exact(x_RD: Tensor, W_CD: Tensor, b_C: Tensor) -> Tiled:
    """float32 operands. W is rearranged in a buffer that this thread's next call overwrites."""
    sizes = compiled.sizes(x_RD=x_RD, W_CD=W_CD, b_C=b_C)
    R, D, C = (sizes[letter] for letter in "RDC")
    x_RD, W_CD, b_C = (t.detach().contiguous() for t in (x_RD, W_CD, b_C))
    operands = array(x_RD), array(W_CD), array(b_C)
    width, n_panels = D + -D % UNROLLED, -(-C // COLUMNS)
    if R % ROWS or width > D:
        x_RD = torch.nn.functional.pad(x_RD, (0, width - D, 0, -R % ROWS))
    W_PDC = array(kept(n_panels * width * COLUMNS, torch.float32).view(-1, width, COLUMNS))
    over(n_panels, lambda low, high: _rearrange(low, high, operands[1], W_PDC), C * D)
    bias = np.full((n_panels, 1, COLUMNS), -np.inf, np.float32)
    bias.reshape(-1)[:C] = operands[2]
    row_terms, spread_R = np.zeros((len(x_RD), 0), np.float32), np.zeros(len(x_RD), np.float32)
    return Tiled(array(x_RD), W_PDC, row_terms, bias, spread_R, operands)


def strips(tiled: Tiled, low: int, high: int) -> Iterator[Strip]:
    """Tiles low to high - 1, strip by strip, each in the memory of the one before.

    The loops let go of the interpreter's lock.
    """
    tiled.check()
    if not 0 <= low < high <= tiled.n_tiles:
        raise ValueError(f"tiles {low} to {high - 1}: there are {tiled.n_tiles}")
    n_rows, n_panels = len(tiled.operands[0]), len(tiled.W_PDC)
    n_strips = -(-(high - low) // (STRIP_ROWS // ROWS))
    size = -(-(high - low) // n_strips)  # tiles, about as many in every strip
    room = _aligned(size * ROWS * n_panels * COLUMNS)
    n_lines = -(-n_panels // LINE)
    maxima = np.zeros((size * ROWS, (n_lines + 1 - n_lines % 2) * LINE), np.float32)
    columns, entries = np.empty(room.size, np.int64), np.empty(room.size, np.float32)
    for first_tile in range(low, high, size):
        first, last = first_tile * ROWS, min(first_tile + size, high) * ROWS
        upper = room[: (last - first) * n_panels * COLUMNS].reshape(n_panels, -1, COLUMNS)
        _fill(first, last, *tiled[:4], upper, maxima)
        rows = slice(first, min(last, n_rows))
        starts = np.zeros(rows.stop - first + 1, np.int64)
        yield Strip(tiled, rows, upper, maxima, starts, columns, entries)


def _aligned(n: int) -> Any:
    """Room for n float32 numbers that begins at a line of the cache."""
    room = np.empty(n + LINE, np.float32)
    return room[-room.ctypes.data // room.itemsize % LINE :][:n]


@loop
def _rearrange(low, high, W, out):
    """Panels low to high - 1 of W: [panels, width, COLUMNS]."""
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
    sums = np.zeros(AT_ONCE, np.float32)
    selected = np.empty(AT_ONCE, np.int64)
    rows, following = np.empty(AT_ONCE, np.int64), np.empty(AT_ONCE, np.int64)
    for r in range(len(x)):
        end = starts[r + 1]
        for first in range(starts[r], end, AT_ONCE):
            for i in range(AT_ONCE):
                selected[i] = columns[min(first + i, end - 1)]
                rows[i] = W[selected[i]].ctypes.data
                following[i] = W[columns[min(first + AT_ONCE + i, end - 1)]].ctypes.data
            if whole:
                tables = rows.ctypes.data, following.ctypes.data
                dots(x[r].ctypes.data, *tables, whole, sums.ctypes.data)  # pyright: ignore
            for i in range(min(AT_ONCE, end - first)):
                total = sums[i]
                for d in range(whole, D):
                    total += x[r, d] * W[selected[i], d]
                entries[first + i] = total + b[selected[i]]


@loop
def _fill(low, high, x, W, row_terms, column_terms, upper, maxima):
    """The results of rows low to high - 1, in whole tiles, with all panels."""
    n_steps = x.shape[1] * x.itemsize // 4
    # The next panel is fetched once in the time that all of the strip's tiles take.
    pace = -(-4 * COLUMNS * ROWS // (high - low))
    for panel in range(len(W)):
        columns, results = W[panel].ctypes.data, upper[panel].ctypes.data
        terms, largest = column_terms[panel].ctypes.data, maxima[:, panel:].ctypes.data
        ahead = W[min(panel + 1, len(W) - 1)].ctypes.data
        for r in range(low, high, ROWS):
            operands = x[r:].ctypes.data, x.strides[0], columns, n_steps
            both_terms = row_terms[r:].ctypes.data, terms
            out = results + (r - low) * upper.strides[1], upper.strides[1]
            most = largest + (r - low) * maxima.strides[0], maxima.strides[0]
            tile(x[r, 0], *operands, *both_terms, *out, *most, ahead, pace)  # pyright: ignore
            ahead += n_steps * pace
