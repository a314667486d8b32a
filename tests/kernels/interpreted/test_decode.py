"""The kernels that decode, against their references; see conftest for how these run."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels.bag import bag
from dictlearn_kernels.bag import reference as bag_reference
from dictlearn_kernels.bag import triton as bag_triton
from dictlearn_kernels.decode_error import decode_error
from dictlearn_kernels.decode_error import reference as error_reference
from dictlearn_kernels.dispatch import using
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.sampled import reference as sampled_reference
from dictlearn_kernels.sampled import sampled
from dictlearn_kernels.sparse_decode import sparse_decode

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of an output rounded to the type; the interpreter rounds to bfloat16 by cutting off.
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Forces the kernels, and hands them memory full of NaN, so that what they leave out shows."""
    new_empty = torch.Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        tensor = new_empty(self, *args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    with using("triton"):
        yield


def bags_of(lengths: list[int], n_columns: int, device, dtype=torch.int64):
    """(indices, starts) of random bags, duplicates included."""
    generator = torch.Generator().manual_seed(len(lengths))
    indices = torch.randint(n_columns, (sum(lengths),), generator=generator, dtype=dtype)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(dtype)
    return indices.to(device), starts.to(device)


def within(found, expected_double, dtype, terms: int) -> None:
    """Equal but for the output's rounding and float32 sums of so many terms of size 1."""
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), expected_double, rtol=ROUNDING[dtype], atol=1e-6 * max(1, terms) ** 0.5
    )


LENGTHS = {
    "one": [1],
    "short": [3, 0, 1, 8, 9, 2],
    "none at the ends": [0, 0, 5, 0],
    "long first": [40, 0, 3],
    "long last": [2, 39],
    "long between": [7, 0, 33, 0, 16, 17, 1],
    "blocks exactly": [16, 16, 32, 16],
    "two long in a block": [17, 23, 18],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_bags_of_any_length_are_summed(lengths, device):
    """In pieces where a bag has more entries than a chunk, of 16 here."""
    indices, starts = bags_of(lengths, 11, device)
    weights, table = torch.randn(len(indices), device=device), torch.randn(11, 5, device=device)
    found = bag_triton.bag(indices, starts, weights, table, torch.float32, chunk=16)
    expected = bag_reference.bag(indices, starts, weights.double(), table.double())
    within(found, expected, torch.float32, len(indices))
    again = bag_triton.bag(indices, starts, weights, table, torch.float32, chunk=16)
    assert torch.equal(found, again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [1, 24, 600])
def test_bags_of_any_width_and_precision(D, dtype, device):
    """Float32 weights of a table of lower precision, and weights of the table's own."""
    indices, starts = bags_of([3, 0, 9, 1], 7, device, torch.int32)
    weights = torch.randn(13, device=device)
    table = torch.randn(7, D, device=device).to(dtype)
    for own in (torch.float32, dtype):
        found = bag(indices, starts, weights.to(own), table)
        expected = bag_reference.bag(indices, starts, weights.to(own).double(), table.double())
        within(found, expected, own, 13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "D", "F", "k"), [(1, 1, 1, 1), (5, 20, 33, 7), (4, 300, 9, 9)])
def test_sampled_products(n, D, F, k, dtype, device):
    pattern = pattern_of(n, F, k, device)
    g, W = torch.randn(n, D, device=device), torch.randn(F, D, device=device).to(dtype)
    for own in (torch.float32, dtype):
        places = pattern.rows, pattern.columns
        found = sampled(g.to(own), W, *places, pattern.row_starts)
        expected = sampled_reference.sampled(g.to(own).double(), W.double(), *places)
        within(found, expected, own, D)


def pattern_of(n: int, F: int, k: int, device, spread: bool = False) -> Pattern:
    """k random columns in every row, or 0 to k of them."""
    generator = torch.Generator().manual_seed(n * F + k)
    counts = [int(torch.randint(k + 1, (), generator=generator)) if spread else k for _ in range(n)]
    columns = [torch.randperm(F, generator=generator)[:count].sort().values for count in counts]
    starts = torch.tensor([0, *counts]).cumsum(0)
    return Pattern(starts.to(device), torch.cat(columns).to(device), F)


@pytest.mark.parametrize("bias", [0, 1, 3])
@pytest.mark.parametrize(
    ("n", "D", "F", "k"), [(3, 1, 1, 1), (6, 20, 50, 7), (3, 130, 90, 90)], ids=str
)
def test_the_error_of_decoding(n, D, F, k, bias, device):
    """Rows of more entries than a program keeps at once too; values at zero have a gradient."""
    pattern = pattern_of(n, F, k, device, spread=True)
    generator = torch.Generator().manual_seed(0)
    values, W, wide, b = (
        torch.randn(shape, generator=generator).to(device)
        for shape in ((len(pattern.columns),), (F, D), (n, 2 * D), (max(bias, 1), D))
    )
    values[::3] = 0.0
    y = wide[:, :D]  # rows with something between them, as of one target among several
    inputs = [t.detach().requires_grad_() for t in (values, W, y, b)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    n_inputs = 4 if bias else 3

    def run(op, values, W, y, b):
        error, e = op(pattern, values, W, y, b if bias else None)
        wanted = (values, W, y, b)[:n_inputs]
        return [error, e, *torch.autograd.grad(1.5 * error, wanted)]

    results = [run(decode_error, *inputs), run(error_reference.decode_error, *doubles)]
    for mine, exact in zip(*results, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=2e-5, atol=2e-5 * (k * D) ** 0.5)
    again = run(decode_error, *inputs)
    assert all(torch.equal(*pair) for pair in zip(results[0], again, strict=True))


def test_the_error_without_gradients_and_in_low_precision(device):
    pattern = pattern_of(4, 30, 5, device)
    values, y = torch.randn(20, device=device), torch.randn(4, 8, device=device)
    W = torch.randn(30, 8, device=device).bfloat16()
    error, e = decode_error(pattern, values, W, y)
    exact, _ = error_reference.decode_error(pattern, values.double(), W.double(), y.double())
    assert e.dtype == torch.float32
    torch.testing.assert_close(error.double(), exact, rtol=1e-5, atol=1e-5)


def test_decoding_and_its_gradients(device):
    pattern = pattern_of(6, 12, 4, device, spread=True)
    inputs = [torch.randn(shape, device=device) for shape in ((len(pattern.columns),), (12, 10))]
    inputs = [t.requires_grad_() for t in inputs]
    y = sparse_decode(pattern, *inputs)
    dense = pattern.dense(inputs[0]) @ inputs[1]
    torch.testing.assert_close(y, dense)
    found, expected = (torch.autograd.grad(out.square().sum(), inputs) for out in (y, dense))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    sums = pattern.column_sums(inputs[0].detach())
    torch.testing.assert_close(sums, pattern.dense(inputs[0].detach()).sum(0))
