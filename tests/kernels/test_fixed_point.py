"""Selection in 16-bit fixed point is that of float32, and its bounds are bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dictlearn_kernels import dispatch, fixed_point, tiles
from dictlearn_kernels.threads import over
from dictlearn_kernels.threshold_encode import compiled as threshold_loops
from dictlearn_kernels.threshold_encode import reference as threshold_reference
from dictlearn_kernels.threshold_encode import threshold_encode
from dictlearn_kernels.topk_encode import compiled as topk_loops
from dictlearn_kernels.topk_encode import reference, topk_encode
from torch import Tensor

from dictlearn.dicts.encoder import LinearMap
from tests.kernels.selections import assert_same, operands

pytestmark = pytest.mark.skipif(not fixed_point.available(), reason="this CPU has no AVX2")

SHAPES = [(1, 1, 1), (5, 7, 2), (6, 64, 16), (7, 33, 130), (13, 300, 97), (200, 130, 51)]


def bounds_of(of: tiles.Tiled) -> Tensor:
    """All upper bounds, the columns that fill up included."""

    def part(low: int, high: int) -> list[Tensor]:
        return [torch.from_numpy(strip.matrix()) for strip in tiles.strips(of, low, high)]

    return torch.cat([one for part in over(of.n_tiles, part) for one in part])


def spoilt(rows: int, columns: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Operands with rows of very different sizes, an outlier and rows of zeros."""
    x, W, b = operands(rows, columns, width)
    W *= 10 ** torch.linspace(-4, 2, columns)[:, None]
    x *= 10 ** torch.linspace(-3, 3, rows)[:, None]
    x[0, 0] = 1e3
    x[-1], W[-1] = 0, 0
    return x, W, b


@pytest.mark.parametrize("rows, columns, width", SHAPES, ids=str)
@pytest.mark.parametrize("make", [operands, spoilt])
def test_no_entry_exceeds_its_bound_nor_is_further_below_than_the_spread(
    rows, columns, width, make, threads
):
    x, W, b = make(rows, columns, width)
    of = fixed_point.bounded(x, W, b)
    assert of is not None
    bounds = bounds_of(of)
    assert bounds.shape == (rows, columns + -columns % tiles.COLUMNS)
    assert (bounds[:, columns:] == -math.inf).all()
    above = bounds[:, :columns].double() - (x.double() @ W.double().T + b.double())
    single = torch.addmm(b, x, W.T).double()
    assert (above >= 0).all()
    assert (bounds[:, :columns].double() >= single).all()
    spread = torch.from_numpy(of.spread_R[:rows]).double()[:, None]
    assert (above <= spread).all()
    assert (bounds[:, :columns].double() - single <= spread).all()


def test_bounds_are_tighter_than_those_of_bfloat16():
    x, W, b = operands(64, 256, 512)
    of = fixed_point.bounded(x, W, b)
    assert of is not None
    over_by = (bounds_of(of) - torch.addmm(b, x, W.T)).mean()
    assert over_by < 1e-3 * x.norm(dim=1).mean()  # 2^-9 is bfloat16's, of x and of W


def test_sums_do_not_leave_int32():
    """Rows along one another: every sum is the largest that there can be."""
    x = torch.ones(6, 4096)
    of = fixed_point.bounded(x, x, torch.zeros(6))
    assert of is not None
    torch.testing.assert_close(bounds_of(of)[:, :6], torch.full((6, 6), 4096.0), rtol=4e-3, atol=0)
    peak = torch.eye(6, 4096) * 1e4  # one number that is all of a row's norm
    of = fixed_point.bounded(peak, peak, torch.zeros(6))
    assert of is not None
    torch.testing.assert_close(
        bounds_of(of)[:, :6].diag(), torch.full((6,), 1e8), rtol=4e-3, atol=0
    )


@pytest.mark.parametrize("spoil", ["x", "W", "b"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_what_does_not_fit_is_left_to_float32(spoil, value):
    given = dict(zip("xWb", operands(7, 80, 16), strict=True))
    given[spoil].view(-1)[3] = value
    fits = spoil == "b" and value == 1e38
    assert (fixed_point.bounded(given["x"], given["W"], given["b"]) is not None) == fits
    ours = topk_encode(given["x"], given["W"], given["b"], 5, torch.int16)
    theirs = topk_encode(given["x"], given["W"], given["b"], 5)
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[2], theirs[2])


@pytest.mark.parametrize("k", [1, 16, 100])
@pytest.mark.parametrize("rows, columns, width", [(150, 700, 33), (70, 4096, 64)])
@pytest.mark.parametrize("make", [operands, spoilt])
def test_selects_what_a_full_sort_does(rows, columns, width, k, make, threads):
    x, W, b = make(rows, columns, width)
    with dispatch.using("auto"):
        dispatch.forget()
        ours = topk_encode(x, W, b, k, torch.int16)
        assert dispatch.summary() == {"topk_encode": "16-bit fixed point on cpu"}
    row_starts, columns_, values = reference.topk_encode(x, W, b, k)
    assert torch.equal(ours[0], row_starts) and torch.equal(ours[1], columns_)
    torch.testing.assert_close(ours[2], values, rtol=1e-4, atol=1e-5 * float(values.max()))


def test_without_the_spread_the_selection_would_be_wrong(monkeypatch):
    """The tests above can fail: the largest bounds are not those of the largest entries."""
    given = operands(200, 2048, 512)
    expected = reference.topk_encode(*given, 32)
    assert_same(topk_encode(*given, 32, torch.int16), expected)
    bounded = fixed_point.bounded

    def without(*operands):
        of = bounded(*operands)
        assert of is not None
        return of._replace(spread_R=np.zeros_like(of.spread_R))

    monkeypatch.setattr(fixed_point, "bounded", without)
    assert not torch.equal(topk_encode(*given, 32, torch.int16)[1], expected[1])


def test_results_do_not_depend_on_threads():
    x, W, b = operands(500, 1024, 96)
    before, found = torch.get_num_threads(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(
            (topk_encode(x, W, b, 16, torch.int16), threshold_encode(x, W, b, 2.0, torch.int16))
        )
    torch.set_num_threads(before)
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("by_column", [False, True])
def test_takes_what_is_above_a_threshold(by_column, threads):
    x, W, b = operands(210, 1000, 40)
    threshold = 2.0 + torch.rand(1000) if by_column else 2.5
    expected = threshold_reference.threshold_encode(x, W, b, threshold)
    assert 0 < len(expected[1]) < 0.02 * 210 * 1000
    found = threshold_loops.above_fixed(x, W, b, threshold)
    assert found is not None
    assert_same(found, expected)


def test_where_much_is_above_float32_is_faster_and_taken():
    x, W, b = operands(210, 1000, 40)
    assert threshold_loops.above_fixed(x, W, b, 0.5) is None
    dispatch.forget()
    assert_same(
        threshold_encode(x, W, b, 0.5, torch.int16),
        threshold_reference.threshold_encode(x, W, b, 0.5),
    )
    told = dispatch.summary()["threshold_encode"]
    assert told == "16-bit fixed point on cpu; compiled loops on cpu"


def test_an_encoder_takes_it_where_it_pays_and_what_it_is_told_elsewhere():
    rows, width = fixed_point.FEWEST_ROWS, fixed_point.NARROWEST
    columns = fixed_point.FEWEST_ENTRIES // rows
    x, W, b = operands(rows, columns, width)

    def selected(rows: int, columns: int, width: int, dtype: torch.dtype | None = None) -> str:
        dispatch.forget()
        given = W[None, :columns, :width].contiguous(), b[None, :columns].contiguous()
        LinearMap(*given, dtype).top_k(x[:rows, None, :width], 4)
        return dispatch.summary()["topk_encode"]

    assert selected(rows, columns, width) == "16-bit fixed point on cpu"
    assert selected(rows - 1, columns, width) == "compiled loops on cpu"
    assert selected(rows, columns - 64, width) == "compiled loops on cpu"
    assert selected(rows, columns, width - 1) == "compiled loops on cpu"
    assert selected(rows, columns, width, torch.float32) == "compiled loops on cpu"
    assert selected(1, 64, 8, torch.int16) == "16-bit fixed point on cpu"
    with dispatch.using("reference"):
        assert selected(rows, columns, width) == "reference"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_not_its_own(dtype):
    x, W, b = (t.to(dtype) for t in operands(70, 64, 32))
    assert not fixed_point.serves(x, W)
    assert_same(topk_encode(x, W, b, 3, torch.int16), reference.topk_encode(x, W, b, 3))


def test_rows_of_a_stack_need_not_lie_together():
    x = torch.randn(80, 3, 32)
    W, b = torch.randn(3, 128, 32), torch.zeros(3, 128)
    for s in range(3):
        ours = topk_loops.topk_encode_fixed(x[:, s], W[s], b[s], 4)
        assert ours is not None
        assert_same(ours, reference.topk_encode(x[:, s].contiguous(), W[s], b[s], 4))
