"""Products by tiles, a few rows at a time, are x W^T + b, and so is what is selected from them."""

from __future__ import annotations

import math

import pytest
import torch
from dictlearn_kernels import dispatch, tiles
from dictlearn_kernels.batchtopk_encode import batchtopk_encode
from dictlearn_kernels.batchtopk_encode import reference as batchtopk_reference
from dictlearn_kernels.threads import over
from dictlearn_kernels.threshold_encode import reference as threshold_reference
from dictlearn_kernels.threshold_encode import threshold_encode
from dictlearn_kernels.topk_encode import compiled as topk_loops
from dictlearn_kernels.topk_encode import reference, topk_encode
from torch import Tensor

from tests.kernels.selections import Operands, assert_same, operands

pytestmark = pytest.mark.skipif(not tiles.available(), reason="this CPU has no AVX2")

SHAPES = [(1, 1, 1), (5, 7, 2), (6, 64, 16), (7, 33, 130), (13, 300, 97), (200, 130, 51)]


@pytest.fixture
def always(monkeypatch):
    """Tiles are taken for the smallest products too."""
    monkeypatch.setattr(tiles, "FEWEST_ROWS", 1)
    monkeypatch.setattr(tiles, "FEWEST_ENTRIES", 1)


def in_tiles(given: Operands) -> tuple[Tensor, Tensor]:
    """All entries, the columns that fill up included, and the maxima."""
    of = tiles.exact(*given)

    def part(low: int, high: int) -> list[tuple[Tensor, Tensor]]:
        return [
            (torch.from_numpy(strip.matrix()), maxima_of(strip))
            for strip in tiles.strips(of, low, high)
        ]

    entries, maxima = zip(*(one for some in over(of.n_tiles, part) for one in some), strict=True)
    return torch.cat(entries), torch.cat(maxima)


def maxima_of(strip: tiles.Strip) -> Tensor:
    n_rows, n_panels = len(strip.starts) - 1, len(strip.upper)
    assert not strip.maxima[:, n_panels:].any()  # which are searched as well
    return torch.from_numpy(strip.maxima[:n_rows, :n_panels].copy())


@pytest.mark.parametrize("rows, columns, width", SHAPES, ids=str)
def test_entries_are_those_of_the_product(rows, columns, width, threads):
    x, W, b = operands(rows, columns, width)
    entries, maxima = in_tiles((x, W, b))
    assert entries.shape == (rows, columns + -columns % tiles.COLUMNS)
    assert (entries[:, columns:] == -math.inf).all()
    exact = x.double() @ W.double().T + b.double()
    size = x.double().abs() @ W.double().abs().T + b.double().abs()
    unit = torch.finfo(torch.float32).eps / 2
    assert ((entries[:, :columns].double() - exact).abs() <= (width + 1) * unit * size).all()
    largest = entries.view(torch.int32).unflatten(1, (-1, tiles.COLUMNS)).amax(2)
    assert torch.equal(maxima.view(torch.int32), largest)


def test_rows_do_not_depend_on_those_beside_them():
    x, W, b = operands(300, 200, 64)
    together, _ = in_tiles((x, W, b))
    alone, _ = in_tiles((x[17:18], W, b))
    assert torch.equal(together[17:18], alone)


@pytest.mark.parametrize("k", [1, 16, 100])
@pytest.mark.parametrize("rows, columns, width", [(150, 700, 33), (70, 4096, 64), (5, 100, 7)])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_selects_what_a_full_sort_does(rows, columns, width, k, shift, always, threads):
    given = operands(rows, columns, width, shift)
    with dispatch.using("auto"):
        dispatch.forget()
        assert_same(topk_encode(*given, k), reference.topk_encode(*given, k))
        assert dispatch.summary() == {"topk_encode": "compiled loops on cpu"}


def test_of_equal_entries_takes_as_many_as_are_wanted(always):
    x, W, b = torch.ones(7, 4), torch.ones(96, 4), torch.zeros(96)
    row_starts, _, values = topk_encode(x, W, b, 5)
    assert torch.equal(row_starts, 5 * torch.arange(8)) and (values == 4).all()


def test_takes_infinity_and_nothing_that_is_not_a_number(always):
    x, W, b = torch.ones(2, 4), torch.ones(128, 4), torch.full((128,), -9.0)
    b[5], b[9], b[70] = math.inf, math.nan, 2.0
    x[1, 0] = -math.inf
    found = topk_encode(x, W, b, 4)
    same = topk_loops.largest(torch.addmm(b, x, W.T), 4)
    assert found[0].tolist() == [0, 2, 2] and found[1].tolist() == [5, 70]
    assert all(map(torch.equal, found, same))


@pytest.mark.parametrize("threshold", [-9.0, 0.0, 1.5, 9.0, "by column"])
@pytest.mark.parametrize("rows, columns, width", SHAPES, ids=str)
def test_takes_what_is_above_a_threshold(rows, columns, width, threshold, always, threads):
    x, W, b = operands(rows, columns, width)
    if threshold == "by column":
        threshold = torch.randn(columns)
    dispatch.forget()
    ours = threshold_encode(x, W, b, threshold)
    assert_same(ours, threshold_reference.threshold_encode(x, W, b, threshold))
    assert dispatch.summary() == {"threshold_encode": "compiled loops on cpu"}


@pytest.mark.parametrize("threshold", [-9.5, 0.0, 3.0])
def test_what_is_no_number_is_above_nothing_and_hides_nothing(threshold, always):
    x, W, b = torch.ones(2, 4), torch.ones(40, 4), torch.full((40,), -9.0)
    b[5], b[6], b[9], b[20] = math.inf, math.nan, -math.nan, 2.0
    ours = threshold_encode(x, W, b, threshold)
    expected = torch.addmm(b, x, W.T) > threshold
    assert ours[0].tolist() == [0, *expected.sum(1).cumsum(0).tolist()]
    assert torch.equal(ours[1], expected.nonzero()[:, 1])


@pytest.mark.parametrize("budget", [0, 1, 300, 10**6])
@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_takes_the_largest_of_a_batch(budget, shift, always, threads):
    both = [operands(90, 400, 24, shift) for _ in range(2)]
    x, W, b = zip(*both, strict=True)
    x_RSD, W_SCD, b_SC = torch.stack(x, 1), torch.stack(W), torch.stack(b)
    ours = batchtopk_encode(x_RSD, W_SCD, b_SC, budget)
    assert_same(ours, batchtopk_reference.batchtopk_encode(x_RSD, W_SCD, b_SC, budget))


def test_results_do_not_depend_on_threads(always):
    x, W, b = operands(500, 1024, 96)
    before, found = torch.get_num_threads(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append((topk_encode(x, W, b, 16), threshold_encode(x, W, b, 2.0)))
    torch.set_num_threads(before)
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert all(map(torch.equal, ours, theirs))


def test_small_products_and_other_cpus_have_torchs(monkeypatch):
    rows, columns = tiles.FEWEST_ROWS, tiles.FEWEST_ENTRIES // tiles.FEWEST_ROWS
    taken = []
    real = tiles.exact
    monkeypatch.setattr(tiles, "exact", lambda *of: taken.append(1) or real(*of))

    def in_tiles(rows: int, columns: int) -> bool:
        taken.clear()
        given = operands(rows, columns, 8)
        assert_same(topk_encode(*given, 3), reference.topk_encode(*given, 3))
        assert_same(
            threshold_encode(*given, 2.0), threshold_reference.threshold_encode(*given, 2.0)
        )
        return {0: False, 2: True}[len(taken)]  # both, or neither

    assert in_tiles(rows, columns)
    assert not in_tiles(rows - 1, columns + 64)
    assert not in_tiles(rows, columns - 1)
    monkeypatch.setattr(tiles, "available", lambda: False)
    assert not in_tiles(rows, columns)


def test_rows_of_a_stack_need_not_lie_together(always):
    x = torch.randn(80, 3, 32)
    W, b = torch.randn(3, 128, 32), torch.zeros(3, 128)
    for s in range(3):
        ours = topk_loops.topk_encode(x[:, s], W[s], b[s], 4)
        assert_same(ours, reference.topk_encode(x[:, s].contiguous(), W[s], b[s], 4))
