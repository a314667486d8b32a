"""Every sparse operation equals its dense reference: outputs and every gradient, on both routes."""

from __future__ import annotations

import dictlearn_kernels.pattern as pattern_module
import pytest
import torch
from dictlearn_kernels import sparse_decode as decode_op
from dictlearn_kernels import sparse_encode as encode_op
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.sparse_decode import reference as decode_reference
from dictlearn_kernels.sparse_encode import reference as encode_reference
from dictlearn_kernels.threshold import reference as threshold_reference
from dictlearn_kernels.threshold import select_above
from dictlearn_kernels.top_k import batch_top_k, row_top_k
from dictlearn_kernels.top_k import reference as top_k_reference
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = [(1, 1, 1, 1), (7, 33, 130, 130), (64, 48, 512, 8), (5, 3, 40, 0)]


@pytest.fixture(params=["sparse", "dense"])
def route(request, monkeypatch):
    monkeypatch.setattr(
        pattern_module, "DENSE_ABOVE", {"sparse": 1.0, "dense": -1.0}[request.param]
    )


def random_pattern(n: int, f: int, k: int) -> Pattern:
    """k entries a row, the last row empty when there are several."""
    mask = torch.zeros(n, f, dtype=torch.bool)
    for row in range(n - (n > 1)):
        mask[row, torch.randperm(f)[:k]] = True
    rows, columns = mask.nonzero(as_tuple=True)
    starts = torch.zeros(n + 1, dtype=torch.int64)
    starts[1:] = mask.sum(1).cumsum(0)
    return Pattern(starts, columns, f)


def leaves(*shapes) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same_gradients(outputs, inputs, weights) -> None:
    ours, reference = (
        torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True) for out in outputs
    )
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("n", "d", "f", "k"), SHAPES, ids=str)
def test_decode_matches_the_reference(route, n, d, f, k):
    pattern = random_pattern(n, f, k)
    values, W = leaves((len(pattern.columns),), (f, d))
    with torch.no_grad():
        values[::3] = 0.0  # stored zeros get their gradient too
    outputs = [op.sparse_decode(pattern, values, W) for op in (decode_op, decode_reference)]
    torch.testing.assert_close(*outputs)
    assert_same_gradients(outputs, (values, W), torch.randn_like(outputs[0]))


@pytest.mark.parametrize(("n", "d", "f", "k"), SHAPES, ids=str)
@pytest.mark.parametrize("known", [False, True])
def test_encode_matches_the_reference(route, known, n, d, f, k):
    pattern = random_pattern(n, f, k)
    x, W, b = leaves((n, d), (f, d), (f,))
    reference = encode_reference.sparse_encode(pattern, x, W, b)
    given = reference.detach() if known else None
    output = encode_op.sparse_encode(pattern, x, W, b, given)
    torch.testing.assert_close(output, reference)
    assert_same_gradients([output, reference], (x, W, b), torch.randn_like(output))


@pytest.mark.parametrize("op", ["decode", "encode"])
def test_two_runs_agree_to_the_bit(op):
    pattern = random_pattern(64, 96, 9)
    x, W, b = (leaf.float() for leaf in leaves((64, 16), (96, 16), (96,)))
    results = []
    for _ in range(2):
        inputs = [t.detach().clone().requires_grad_() for t in (x, W, b)]
        out = encode_op.sparse_encode(Pattern(pattern.row_starts, pattern.columns, 96), *inputs)
        if op == "decode":
            out = decode_op.sparse_decode(pattern, out, inputs[1])
        results.append(torch.autograd.grad(out.square().sum(), inputs))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def dense(selection, n: int, f: int) -> torch.Tensor:
    starts, columns, values = selection
    return Pattern(starts, columns, f).dense(values)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 9), f=st.integers(1, 70), share=st.floats(0, 1), shift=st.floats(-3, 3))
def test_selections_match_a_full_sort(n, f, share, shift):
    pre = torch.randn(n, f, generator=torch.Generator().manual_seed(n * 71 + f)) + shift
    k = max(1, round(share * f))
    budget = max(1, round(share * n * f))
    assert torch.equal(dense(row_top_k(pre, k), n, f), top_k_reference.row_top_k(pre, k))
    assert torch.equal(
        dense(batch_top_k(pre, budget), n, f), top_k_reference.batch_top_k(pre, budget)
    )
    threshold = torch.rand(f)
    assert torch.equal(
        dense(select_above(pre, threshold), n, f), threshold_reference.select_above(pre, threshold)
    )


def test_batch_top_k_survives_a_sample_that_misleads():
    pre = torch.full((64, 67), -1.0)
    pre[:, 0] = 100.0  # the sampled column holds all that is large
    pre[5, 7] = 1.0
    _, columns, values = batch_top_k(pre, 65)
    assert len(values) == 65
    assert 7 in columns


def test_batch_top_k_breaks_ties_by_position_and_keeps_the_budget():
    pre = torch.ones(4, 8)
    starts, columns, values = batch_top_k(pre, 11)
    assert starts.tolist() == [0, 8, 11, 11, 11]
    assert columns.tolist() == [*range(8), 0, 1, 2]


def test_nothing_at_or_below_zero_is_selected():
    pre = torch.tensor([[3.0, 0.0, -1.0], [0.0, -2.0, -3.0]])
    for starts, columns, _ in (row_top_k(pre, 3), batch_top_k(pre, 6)):
        assert starts.tolist() == [0, 1, 1]
        assert columns.tolist() == [0]
