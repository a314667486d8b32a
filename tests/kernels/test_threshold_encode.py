"""Every entry above its threshold is selected, and no other, whatever the matmul's precision."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels import batchtopk_encode as batch_op
from dictlearn_kernels import dispatch
from dictlearn_kernels import threshold_encode as op
from dictlearn_kernels.batchtopk_encode import batchtopk_encode
from dictlearn_kernels.batchtopk_encode import reference as batch_reference
from dictlearn_kernels.selection import interleaved, largest, row_largest, where
from dictlearn_kernels.threshold_encode import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.selections import assert_same, dense, identity, operands

PRECISIONS = [None, torch.bfloat16, torch.float16, torch.int16]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("threshold", [-10.0, 0.0, 1.5, 100.0, "per column"])
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 1, 1), (40, 130, 17), (0, 9, 4)])
def test_matches_a_comparison(rows, columns, width, threshold, dtype):
    x, W, b = operands(rows, columns, width)
    if threshold == "per column":
        threshold = torch.randn(columns)
    expected = reference.threshold_encode(x, W, b, threshold)
    assert_same(op.threshold_encode(x, W, b, threshold, dtype), expected)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_entries_at_their_threshold_are_out_and_the_next_float_is_in(dtype):
    one = torch.tensor(1.0)
    above = torch.nextafter(one, 2 * one)
    pre = torch.stack([one, above, -one, one]).repeat(3, 1)
    starts, columns, values = op.threshold_encode(*identity(pre), 1.0, dtype)
    assert starts.tolist() == [0, 1, 2, 3]
    assert columns.tolist() == [1, 1, 1]
    assert values.tolist() == [float(above)] * 3


def test_the_words_of_a_kernel_hold_every_contender():
    x, W, b = operands(9, 77, 12)
    threshold = torch.zeros(77)
    words = op.contenders(x, W, b, threshold, torch.bfloat16, "cpu")
    assert words.shape == (9, 3)
    rows, columns = op._set_bits(words)
    seen = torch.zeros(9, 77, dtype=torch.bool)
    seen[rows, columns] = True
    pre = torch.addmm(b, x, W.T)
    assert seen[pre > 0].all()
    assert not seen[pre < -0.1].any()
    torch.library.opcheck(op.contenders, (x, W, b, threshold, torch.bfloat16, "cpu"))
    compiled = torch.compile(lambda *a: op.contenders(*a), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, W, b, threshold, torch.bfloat16, "cpu"), words)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("n_sources", [1, 3])
@pytest.mark.parametrize("budget", [0, 1, 90, 10_000])
def test_a_batch_budget_matches_a_full_sort(n_sources, budget, dtype):
    x = torch.randn(40, n_sources, 20)
    W, b = torch.randn(n_sources, 60, 20), torch.randn(n_sources, 60)
    expected = batch_reference.batchtopk_encode(x, W, b, budget)
    assert_same(batchtopk_encode(x, W, b, budget, dtype), expected)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_batch_budget_survives_a_sample_that_misleads(dtype):
    pre = torch.full((64, 67), -1.0)
    pre[:, 0] = 100.0  # sampled rows and columns hold all that is large
    pre[5, 7] = 1.0
    x, W, b = identity(pre)
    _, columns, values = batchtopk_encode(x[:, None], W[None], b[None], 65, dtype)
    assert len(values) == 65
    assert 7 in columns


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_batch_budget_breaks_ties_by_position(dtype):
    x, W, b = identity(torch.ones(4, 8))
    starts, columns, _ = batchtopk_encode(x[:, None], W[None], b[None], 11, dtype)
    assert starts.tolist() == [0, 8, 11, 11, 11]
    assert columns.tolist() == [*range(8), 0, 1, 2]


def test_a_kernel_that_is_not_there_is_named():
    x, W, b = (t.double() for t in operands(3, 5, 4))
    with dispatch.using("triton"):
        with pytest.raises(ValueError, match="threshold_encode has no kernel for torch.float64"):
            op.threshold_encode(x, W, b, 0.0)
        with pytest.raises(ValueError, match="batchtopk_encode has no kernel for torch.float64"):
            batch_op.batchtopk_encode(x[:, None], W[None], b[None], 3)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 9), f=st.integers(1, 40), share=st.floats(0, 1), together=st.integers(1, 3))
def test_narrowing_a_selection_matches_a_full_sort(n, f, share, together):
    generator = torch.Generator().manual_seed(n * 41 + f)
    pre = torch.randn(n * together, f, generator=generator)
    found = reference.select_above(pre, 0.0)
    k = max(1, round(share * f))
    grouped = pre.relu().view(n, -1)
    kept = grouped.argsort(dim=1, descending=True).argsort(dim=1) < k
    ours = dense(row_largest(found, k, together), f)
    assert torch.equal(ours.view(n, -1), grouped * kept)
    ranks = pre.flatten().argsort(descending=True).argsort().view_as(pre)
    assert torch.equal(dense(largest(found, k), f), pre.relu() * (ranks < k))
    positive = torch.ones_like(found[2], dtype=torch.bool)
    assert all(map(torch.equal, where(found, positive), found))


def test_selections_of_several_sources_are_interleaved_by_row():
    pre = torch.randn(5, 3, 7)
    parts = [reference.select_above(pre[:, s], 0.0) for s in range(3)]
    assert torch.equal(dense(interleaved(parts), 7), pre.relu().flatten(0, 1))
