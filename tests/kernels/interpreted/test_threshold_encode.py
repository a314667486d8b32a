"""The kernel that writes a bit an entry finds every entry above its threshold."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels import dispatch
from dictlearn_kernels import threshold_encode as op
from dictlearn_kernels.batchtopk_encode import batchtopk_encode
from dictlearn_kernels.batchtopk_encode import reference as batch_reference
from dictlearn_kernels.threshold_encode import reference, triton

from tests.kernels.selections import assert_same, on, operands

DTYPES = [None, torch.float16]


@pytest.fixture(autouse=True)
def _forced():
    with dispatch.using("triton"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [-10.0, 0.0, 1.5, 100.0, "per column"])
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 1, 1), (0, 9, 4), (70, 140, 33)])
def test_matches_a_comparison(device, rows, columns, width, threshold, dtype):
    x, W, b = on(device, operands(rows, columns, width))
    if threshold == "per column":
        threshold = torch.randn(columns, device=device)
    expected = reference.threshold_encode(x, W, b, threshold)
    ours = op.threshold_encode(x, W, b, threshold, dtype)
    assert_same(ours, expected)
    assert all(map(torch.equal, ours, op.threshold_encode(x, W, b, threshold, dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_words_hold_the_contenders_and_little_else(device, dtype):
    x, W, b = on(device, operands(33, 161, 20))
    threshold = torch.zeros(161, device=device)
    ours = triton.contenders(x, W, b, threshold, dtype)
    assert ours.shape == (33, 6)
    seen = torch.zeros(33, 161, dtype=torch.bool, device=device)
    seen[op._set_bits(ours)] = True
    pre = torch.addmm(b, x, W.T)
    assert seen[pre > 0].all()
    assert not seen[pre < -0.05].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [1, 90, 10_000])
def test_a_batch_budget_matches_a_full_sort(device, budget, dtype):
    x = torch.randn(40, 2, 20, device=device)
    W, b = torch.randn(2, 60, 20, device=device), torch.randn(2, 60, device=device)
    expected = batch_reference.batchtopk_encode(x, W, b, budget)
    assert_same(batchtopk_encode(x, W, b, budget, dtype), expected)


def test_everything_shipped_names_every_argument():
    for variant in triton.shipped():
        assert {*variant.signature, *variant.constants} == set(variant.kernel.arg_names)
