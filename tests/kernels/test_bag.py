"""Bags and sampled products on a CPU: the specification, dtypes, and what torch asks of an operator."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels.bag import bag
from dictlearn_kernels.bag import reference as bag_reference
from dictlearn_kernels.dispatch import using
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.sampled import reference as sampled_reference
from dictlearn_kernels.sampled import sampled
from dictlearn_kernels.sparse_decode import sparse_decode
from dictlearn_kernels.sparse_encode import sparse_encode

LOW = [torch.float32, torch.bfloat16, torch.float16]


def bags(lengths=(3, 0, 9, 1), n: int = 7, dtype=torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices, starts), duplicates included."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randint(n, (int(starts[-1]),), dtype=dtype), starts.to(dtype)


def some_pattern(n: int, f: int, share: float, dtype=torch.int64) -> Pattern:
    mask = torch.rand(n, f) < share
    starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    return Pattern(starts.to(dtype), mask.nonzero()[:, 1].to(dtype), f)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_bag_is_the_sparse_product(dtype, index):
    """With weights of the table's dtype, and in float32 of a table of any: as exact as its output."""
    indices, starts = bags(dtype=index)
    weights, table = torch.randn(13), torch.randn(7, 24).to(dtype)
    for own in (torch.float32, dtype):
        found = bag(indices, starts, weights.to(own), table)
        exact = bag_reference.bag(indices, starts, weights.to(own).double(), table.double())
        assert found.dtype == own
        torch.testing.assert_close(found, exact.to(own), atol=1e-5, rtol=2 * torch.finfo(own).eps)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)])
def test_bags_without_entries_are_zero(lengths):
    indices, starts = bags(lengths)
    assert torch.equal(
        bag(indices, starts, torch.ones(0), torch.ones(7, 3)), torch.zeros(len(lengths), 3)
    )


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_sampled_products_are_those_of_the_dense_one(dtype, index):
    pattern = some_pattern(6, 11, 0.3, index)
    g, W = torch.randn(6, 40), torch.randn(11, 40).to(dtype)
    places = pattern.rows, pattern.columns
    for own in (torch.float32, dtype):
        found = sampled(g.to(own), W, *places, pattern.row_starts)
        exact = sampled_reference.sampled(g.to(own).double(), W.double(), *places)
        assert found.dtype == own
        torch.testing.assert_close(found, exact.to(own), atol=1e-5, rtol=2 * torch.finfo(own).eps)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_a_pattern_multiplies_as_its_dense_matrix_does(kernels, index):
    pattern = some_pattern(30, 50, 0.1, index)
    values = torch.randn(len(pattern.columns), dtype=torch.float64)
    A, W, g = pattern.dense(values), torch.randn(50, 4).double(), torch.randn(30, 4).double()
    with using(kernels):
        torch.testing.assert_close(pattern.matmul(values, W), A @ W)
        torch.testing.assert_close(pattern.transposed_matmul(values, g), A.T @ g)
        torch.testing.assert_close(pattern.column_sums(values), A.sum(0))
        torch.testing.assert_close(pattern.sampled(g, W), (g @ W.T)[A != 0])


def test_a_stacked_pattern_has_the_parts_of_a_code_below_each_other():
    pattern = some_pattern(5, 9, 0.5)
    values = torch.rand(len(pattern.columns)) + 1
    group = pattern.columns // 4
    stacked, order = pattern.stacked(group, 3)
    dense = torch.zeros(3, 5, 9)
    for g in range(3):
        dense[g, :, 4 * g : 4 * g + 4] = pattern.dense(values)[:, 4 * g : 4 * g + 4]
    assert torch.equal(stacked.dense(values[order]), dense.flatten(0, 1))


def test_torch_accepts_the_operators():
    indices, starts = bags()
    torch.library.opcheck(bag, (indices, starts, torch.randn(13), torch.randn(7, 3)))
    torch.library.opcheck(
        bag, (indices.int(), starts.int(), torch.randn(13), torch.randn(7, 3).half())
    )
    pattern = some_pattern(6, 11, 0.3)
    places = pattern.rows, pattern.columns, pattern.row_starts
    torch.library.opcheck(sampled, (torch.randn(6, 4), torch.randn(11, 4), *places))


def test_decoding_and_encoding_compile_without_a_break():
    """From the tensors of a code on: forward, backward, and once more with other sizes."""

    def step(row_starts, columns, values, x, W_enc, W_dec, b):
        pattern = Pattern(row_starts, columns, len(W_dec))
        pre = sparse_encode(pattern, x, W_enc, b)
        return (sparse_decode(pattern, pre * values, W_dec) - x).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n in (20, 33):
        pattern = some_pattern(n, 50, 0.1)
        values = torch.rand(len(pattern.columns))
        inputs = [
            torch.randn(shape).requires_grad_() for shape in ((n, 6), (50, 6), (50, 6), (50,))
        ]
        given = pattern.row_starts, pattern.columns, values, *inputs
        results = [op(*given) for op in (step, compiled)]
        torch.testing.assert_close(*results)
        gradients = [torch.autograd.grad(result, inputs) for result in results]
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs)
