"""The grouped kernels of low-rank maps against the dense einsum: outputs and every gradient."""

from __future__ import annotations

import dictlearn_kernels.transforms as op
import pytest
import torch
from dictlearn_kernels.dispatch import using
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.transforms import reference

from tests.kernels.test_transforms import random_pattern

# rows, width, [(transforms, rank)], share of pairs stored
CASES = [
    (1, 1, [(1, 1)], 1.0),
    (7, 5, [(2, 3), (1, 40), (4, 1)], 0.4),  # more ranks than a block, and fewer
    (68, 66, [(1, 7), (2, 2)], 0.97),  # more entries, and a wider row, than a block
    (8, 80, [(1, 48), (2, 16)], 1.0),  # all multiples of 16
    (6, 4, [(2, 2)], 0.0),
]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def kernels_only(monkeypatch):
    """Also where the dense route would be taken; in several pieces of the width."""
    monkeypatch.setattr(op, "DENSE_ABOVE", 1.0)
    monkeypatch.setattr("dictlearn_kernels.transforms.triton.PART_BYTES", 1)
    with using("triton"):
        yield


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel leaves unwritten is NaN."""
    empty = torch.Tensor.new_empty

    def poisoned_empty(self, *args, **kwargs):
        made = empty(self, *args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned_empty)


def problem(n, d, groups, share, dtype, device):
    pattern = random_pattern(n, sum(count for count, _ in groups), share)
    values = torch.randn(len(pattern.columns))
    values[::3] = 0.0  # stored zeros get their gradient too
    x = torch.randn(n, d)
    maps = [torch.randn(c, r, d) / (r * d) ** 0.25 for _ in "UV" for c, r in groups]
    floats = [t.to(device, dtype).requires_grad_() for t in (values, x, *maps)]
    starts, columns = pattern.row_starts.to(device), pattern.columns.to(device)
    return Pattern(starts, columns, pattern.n_columns), floats


def results(function, pattern, inputs, weights, **kwargs):
    values, x, *maps = inputs
    half = len(maps) // 2
    y = function(pattern, values, x, maps[:half], maps[half:], **kwargs)
    return y, *torch.autograd.grad((y * weights.to(y.dtype)).sum(), inputs)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_every_gradient_match_the_reference(case, dtype, device):
    pattern, inputs = problem(*case, dtype=dtype, device=device)
    weights = torch.randn(case[0], case[1], device=device).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = results(reference.transform, pattern, exact, weights)
    kept = results(op.transform, pattern, inputs, weights)
    for ours, theirs in zip(kept, expected, strict=True):
        assert ours.dtype is dtype
        scale = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * scale)
    again = results(op.transform, pattern, inputs, weights, recompute=True)
    for first, second in zip(kept, again, strict=True):
        assert torch.equal(first, second)


def test_an_input_without_a_gradient_changes_no_other(device):
    pattern, (values, x, *maps) = problem(*CASES[1], torch.float32, device)
    half = len(maps) // 2
    inputs = (values, *maps)
    gradients = [
        torch.autograd.grad(
            op.transform(pattern, values, given, maps[:half], maps[half:]).square().sum(), inputs
        )
        for given in (x, x.detach())
    ]
    for with_x, without in zip(*gradients, strict=True):
        assert torch.equal(with_x, without)


def test_what_no_kernel_serves_is_said(device):
    pattern, inputs = problem(*CASES[1], torch.float64, device)
    with pytest.raises(ValueError, match="transforms has no kernel for torch.float64"):
        results(op.transform, pattern, inputs, torch.ones((), device=device))
