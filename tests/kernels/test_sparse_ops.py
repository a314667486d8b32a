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


@pytest.mark.parametrize("n_centres", [1, 3])
def test_a_centre_has_the_gradient_that_comes_through_x(n_centres):
    pattern = random_pattern(12, 30, 5)
    source = torch.arange(12) % n_centres
    if n_centres > 1:  # the features of row r are those of its source
        pattern = Pattern(pattern.row_starts, pattern.columns + 30 * source[pattern.rows], 90)
    x, W, b = leaves((12, 8), (30 * n_centres, 8), (30 * n_centres,))
    (centre,) = leaves((n_centres, 8))
    through_x = encode_reference.sparse_encode(pattern, x - centre[source], W, b)
    less = (x - centre[source]).detach()
    output = encode_op.sparse_encode(pattern, less, W, b, None, centre)
    torch.testing.assert_close(output, through_x)
    assert_same_gradients([output, through_x], (W, b, centre), torch.randn_like(output))


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
