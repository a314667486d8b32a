"""The error of decoding with its gradients, on a CPU, against its dense specification."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels import decode_error as module
from dictlearn_kernels.decode_error import decode_error, reference
from dictlearn_kernels.dispatch import using
from dictlearn_kernels.pattern import Pattern

SHAPES = [(1, 1, 1, 1), (6, 33, 130, 130), (12, 48, 512, 8), (6, 3, 40, 0)]
WEIGHTS = {"one": (0.7,), "nested": (0.3, 0.0, 1.5)}


def problem(n: int, d: int, f: int, k: int, n_groups: int, n_bias: int | None, dtype=torch.float64):
    """(pattern, [values, W, y, bias]): the last row empty, every third value zero."""
    mask = torch.zeros(n, f, dtype=torch.bool)
    for row in range(n - (n > 1)):
        mask[row, torch.randperm(f)[:k]] = True
    starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    pattern = Pattern(starts, mask.nonzero()[:, 1], f)
    if n_groups > 1:
        pattern, _ = pattern.stacked(pattern.columns * n_groups // f, n_groups)
    shapes: list[tuple[int, ...]] = [(len(pattern.columns),), (f, d), (n, d)]
    shapes += [(n_bias, d)] if n_bias else []
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    tensors[0][::3] = 0.0
    return pattern, [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("n_bias", [None, 1, 2])
@pytest.mark.parametrize(("n", "d", "f", "k"), SHAPES, ids=str)
def test_it_is_the_reference_with_every_gradient(n, d, f, k, n_bias, weights, kernels):
    n_bias = min(n_bias or 0, n)
    pattern, inputs = problem(n, d, f, k, len(weights), n_bias)
    values, W_CD, y_RD, *rest = inputs
    bias_SD = rest[0] if rest else None
    with using(kernels):
        error, e = decode_error(pattern, values, W_CD, y_RD, bias_SD, weights)
        exact, exact_e = reference.decode_error(pattern, values, W_CD, y_RD, bias_SD, weights)
        torch.testing.assert_close(error, exact)
        torch.testing.assert_close(e, exact_e)
        assert not e.requires_grad
        ours, theirs = (torch.autograd.grad(1.5 * loss, inputs) for loss in (error, exact))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_the_references_gradients_are_those_of_its_values(weights):
    pattern, inputs = problem(4, 3, 9, 4, len(weights), 2)

    def error(*tensors):
        return reference.decode_error(pattern, *tensors, weights=weights)[0]

    torch.autograd.gradcheck(error, inputs)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_two_runs_agree_to_the_bit(weights):
    pattern, inputs = problem(64, 16, 96, 9, len(weights), 1, torch.float32)
    runs = []
    for _ in range(2):
        error, e = decode_error(pattern, *inputs, weights=weights)
        runs.append([error, e, *torch.autograd.grad(error, inputs)])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_what_needs_no_gradient_gets_none():
    """Nor is the forward pass made to take one: of constant values, or under no_grad."""
    pattern, (values, W, y, bias) = problem(6, 4, 30, 5, 1, 1)
    constant = values.detach()
    error, _ = decode_error(pattern, constant, W, y, bias)
    (g_W,) = torch.autograd.grad(error, [W])
    (expected,) = torch.autograd.grad(reference.decode_error(pattern, values, W, y, bias)[0], [W])
    torch.testing.assert_close(g_W, expected)
    with torch.no_grad():
        assert not decode_error(pattern, values, W, y, bias)[0].requires_grad


def test_torch_accepts_the_operator():
    pattern, (values, W, y, bias) = problem(6, 4, 30, 3, 1, 2)
    tensors = [t.detach() for t in (values, W, y, bias)]
    places = pattern.row_starts, pattern.columns, pattern.rows
    for wants_values in (False, True):
        torch.library.opcheck(module._one, (*places, *tensors, wants_values))
    torch.library.opcheck(module._one, (*places, *tensors[:3], None, True))


def test_it_compiles_without_a_break():
    def step(row_starts, columns, *tensors):
        return decode_error(Pattern(row_starts, columns, len(tensors[1])), *tensors)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in (8, 14):
        pattern, inputs = problem(n, 4, 40, 3, 1, 2)
        results = [op(pattern.row_starts, pattern.columns, *inputs) for op in (step, compiled)]
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)
        gradients = [torch.autograd.grad(error, inputs) for error, _ in results]
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs)
