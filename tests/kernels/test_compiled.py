"""Loops compiled for the CPU: the selection, the sort, and how threads share them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dictlearn_kernels import csr, dispatch, selection
from dictlearn_kernels.compiled import lanes
from dictlearn_kernels.decode_error.compiled import decode_error
from dictlearn_kernels.fused_adam import compiled as fused_adam
from dictlearn_kernels.fused_adam.moments import FORMS
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.threads import ALONE, over
from dictlearn_kernels.threshold_encode import reference
from dictlearn_kernels.threshold_encode.compiled import above
from dictlearn_kernels.topk_encode.compiled import largest

from tests.kernels.adam_cases import CASES, build

SIZED_BY_VECTORS = ("tiles", "fixed_point", "transforms")


@pytest.mark.skipif(lanes() == 8, reason="vectors are no longer here")
def test_loops_for_shorter_vectors_pass_the_same_tests():
    """What a CPU without AVX-512 runs, compiled for one and run on this."""
    told = {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2",
    }
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in SIZED_BY_VECTORS]
    code = "from dictlearn_kernels.compiled import lanes; assert lanes() == 8; import sys, pytest; "
    code += "sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *files],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expected(pre_RC: torch.Tensor, k: int) -> selection.Selection:
    values_RK, columns_RK = pre_RC.topk(k, dim=1)
    return selection.of_positive(columns_RK, values_RK)


@pytest.mark.parametrize("shift", [0.0, -2.5, -9.0, 4.0])
@pytest.mark.parametrize("rows, columns, k", [
    (1, 64, 1), (7, 64, 64), (5, 128, 3), (33, 1024, 32), (3, 8192, 32), (2, 8192, 4000), (0, 64, 2),
])  # fmt: skip
def test_takes_the_largest(rows, columns, k, shift, threads):
    pre_RC = torch.randn(rows, columns, generator=torch.Generator().manual_seed(k)) + shift
    for got, wanted in zip(largest(pre_RC, k), expected(pre_RC, k), strict=True):
        assert torch.equal(got, wanted)


def test_of_equal_entries_takes_as_many_as_are_wanted():
    pre_RC = torch.randint(-2, 3, (40, 256), generator=torch.Generator().manual_seed(0)).float()
    pre_RC[3] = 1.0
    pre_RC[4] = -1.0
    pre_RC[5] = -0.0
    for k in (1, 7, 100, 256):
        row_starts, columns, values = largest(pre_RC, k)
        wanted_starts, _, wanted_values = expected(pre_RC, k)
        assert torch.equal(row_starts, wanted_starts)
        rows = torch.repeat_interleave(row_starts.diff())
        assert torch.equal(pre_RC[rows, columns], values)
        for r in range(40):
            low, high = row_starts[r], row_starts[r + 1]
            assert torch.equal(values[low:high].sort()[0], wanted_values[low:high].sort()[0])
            assert (columns[low:high].diff() > 0).all()


def test_takes_infinity_and_nothing_that_is_not_a_number():
    pre_RC = torch.full((2, 128), -1.0)
    pre_RC[0, 5], pre_RC[0, 9], pre_RC[0, 70] = torch.inf, torch.nan, 2.0
    pre_RC[1, :64] = torch.nan
    row_starts, columns, values = largest(pre_RC, 4)
    assert row_starts.tolist() == [0, 2, 2]
    assert (columns.tolist(), values.tolist()) == ([5, 70], [torch.inf, 2.0])


@pytest.mark.parametrize("threshold", [-9.0, 0.0, 1.5, 9.0, "by column"])
@pytest.mark.parametrize("rows, columns", [(1, 1), (7, 33), (40, 256), (0, 5), (3, 1000)])
def test_takes_what_is_above_a_threshold(rows, columns, threshold, threads):
    generator = torch.Generator().manual_seed(columns)
    pre_RC = torch.randn(rows, columns, generator=generator)
    pre_RC[:, ::7] = 1.5  # not above itself
    pre_RC[:1, :1] = torch.nan
    pre_RC[1:2, :1] = torch.inf
    if threshold == "by column":
        threshold = torch.randn(columns, generator=generator)
    for got, wanted in zip(
        above(pre_RC, threshold), reference.select_above(pre_RC, threshold), strict=True
    ):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_sorts_by_column_stably(dtype):
    for entries, n_columns in ((0, 4), (1, 1), (500, 37), (64, 1000)):
        columns = torch.randint(n_columns, (entries,), dtype=dtype)
        order, starts = csr.by_column(columns, n_columns)
        assert torch.equal(order, columns.argsort(stable=True))
        counts = torch.bincount(columns, minlength=n_columns)
        assert torch.equal(starts, torch.nn.functional.pad(counts.cumsum(0), (1, 0)))


@pytest.mark.parametrize("shares", [(0.3, 0.3), (0.0, 0.5, 1.0), (0.0, 0.0)])
def test_interleaves_as_torch_does(shares):
    generator = torch.Generator().manual_seed(len(shares))
    parts = [
        reference.select_above(torch.rand(9, 20, generator=generator), 1 - share)
        for share in shares
    ]
    ours = selection.interleaved(parts)
    with dispatch.using("reference"):
        theirs = selection.interleaved(parts)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and torch.equal(mine, other)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("low, high", [(0, 1), (1, 3), (2, 3), (0, 3)])
def test_puts_rows_together_as_torch_does(low, high, narrow):
    """The code of three sources as one row a token, with the columns of some of them."""
    generator = torch.Generator().manual_seed(3)
    parts = [
        reference.select_above(torch.rand(9, 20, generator=generator), t) for t in (0.7, 0.99, 0.2)
    ]
    row_starts, columns, _ = selection.interleaved(parts)
    source = (torch.arange(27) % 3).repeat_interleave(row_starts.diff())
    columns = columns + 20 * source
    if narrow:
        row_starts, columns = row_starts.int(), columns.int()

    def merged() -> list[torch.Tensor]:
        pattern, entries = Pattern(row_starts, columns, 60).merged(3, 20 * low, 20 * high)
        return [pattern.row_starts, pattern.columns, *pattern.by_column, columns[entries]]

    ours = merged()
    with dispatch.using("reference"):
        theirs = merged()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and torch.equal(mine, other)


def test_every_row_is_given_to_one_part(threads):
    for n in (0, 1, 2, 7, 100, 1001):
        rows = [r for low, high in over(n, lambda *part: part) for r in range(low, high)]
        assert rows == list(range(n))


def test_few_numbers_are_left_to_one_thread(threads):
    for numbers, alone in ((ALONE - 1, True), (ALONE, threads == 1), (None, threads == 1)):
        parts = over(100, lambda *part: part, numbers)
        assert (parts == [(0, 100)]) == alone


def test_an_error_in_a_part_is_raised(threads):
    for bad in (0, 50, 99):

        def part(low: int, high: int, bad: int = bad) -> None:
            if low <= bad < high:
                raise ValueError(f"row {bad}")

        with pytest.raises(ValueError, match=f"row {bad}$"):
            over(100, part)


def test_the_number_of_threads_does_not_show(monkeypatch):
    monkeypatch.setattr("dictlearn_kernels.threads.ALONE", 0)

    def results() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        W, y = (torch.randn(n, 33, generator=generator) for n in (50, 200))
        starts, columns = torch.arange(201) * 5, torch.arange(1000) % 50
        values = torch.rand(1000, generator=generator)
        out = list(decode_error(starts, columns, values, W, y, None, True))
        for name, form in itertools.product(CASES, FORMS):
            case = build(name, form=form)
            square, along = fused_adam.measure(case.features, case.gradients)
            fused_adam.update(case.features, case.gradients, case.moments, along, case.steps, 0.3)
            out += [square, *case.tensors()]
        return out

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results()
        torch.set_num_threads(3)
        shared = results()
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one, other)
