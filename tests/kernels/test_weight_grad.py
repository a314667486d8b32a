"""Weight gradients kept in factors are those that a backward pass would have made."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.sparse_decode import sparse_decode
from dictlearn_kernels.sparse_encode import sparse_encode
from dictlearn_kernels.weight_grad import Collector


def code(n_rows: int, n_columns: int, k: int, seed: int = 0) -> tuple[Pattern, torch.Tensor]:
    """k columns in every row but every fifth, which has none."""
    draws = torch.Generator().manual_seed(seed)
    columns = torch.stack([torch.randperm(n_columns, generator=draws)[:k] for _ in range(n_rows)])
    columns = columns.sort(1).values
    used = torch.arange(n_rows) % 5 != 0
    starts = torch.zeros(n_rows + 1, dtype=torch.int64)
    torch.cumsum(used * k, 0, out=starts[1:])
    values = torch.randn(int(starts[-1]), generator=draws)
    return Pattern(starts, columns[used].flatten(), n_columns), values


@pytest.fixture
def collector():
    made = []

    def start(*parameters):
        made.append(Collector(parameters))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


@pytest.mark.parametrize(
    "n_rows, n_columns, k, width", [(40, 60, 4, 7), (1, 9, 1, 1), (3, 1, 1, 5)]
)
def test_collected_rows_are_the_dense_gradient(collector, n_rows, n_columns, k, width):
    pattern, values = code(n_rows, n_columns, k)
    W = torch.randn(n_columns, width, requires_grad=True)
    g = torch.randn(n_rows, width)
    sparse_decode(pattern, values, W).backward(g)
    assert W.grad is not None
    dense, W.grad = W.grad, None
    collecting = collector(W)
    sparse_decode(pattern, values, W).backward(g)
    collecting.stop()
    assert W.grad is None or pattern.prefers_dense
    gradient = collecting.gradient(W)
    assert gradient is not None
    for low in range(0, n_columns, 7):
        rows = gradient.rows(low, min(low + 7, n_columns))
        expected = dense[low : low + 7]
        if rows is None:
            assert not expected.any()
        else:
            torch.testing.assert_close(rows, expected)


def test_products_of_slices_of_a_parameter_and_its_own_gradient_add_up(collector):
    W = torch.randn(2, 30, 6, requires_grad=True)
    parts = [(0, 0, 30), (1, 1, 30), (2, 0, 60)]  # (seed, slice, columns); 60: both slices at once
    products = []

    def loss() -> torch.Tensor:
        total = 0.1 * W.square().sum()  # reaches .grad whatever is collected
        for seed, place, columns in parts:
            pattern, values = code(50, columns, 2, seed)
            rows = W.flatten(0, 1) if columns == 60 else W[place]
            total = total + sparse_decode(pattern, values, rows).square().sum()
            products.append(pattern)
        return total

    loss().backward()
    assert W.grad is not None
    expected, W.grad = W.grad.flatten(0, 1), None
    collecting = collector(W)
    loss().backward()
    collecting.stop()
    gradient = collecting.gradient(W)
    assert gradient is not None and len(gradient.products) == 3
    for low, high in ((0, 25), (25, 60), (29, 31)):
        torch.testing.assert_close(gradient.rows(low, high), expected[low:high])


def test_an_encoders_gradient_is_collected_and_its_bias_is_not(collector):
    pattern, _ = code(40, 60, 3)
    x, b = torch.randn(40, 8), torch.zeros(60, requires_grad=True)
    W = torch.randn(60, 8, requires_grad=True)
    sparse_encode(pattern, x, W, b).square().sum().backward()
    assert W.grad is not None and b.grad is not None
    expected, bias = W.grad, b.grad
    W.grad = b.grad = None
    collecting = collector(W)
    sparse_encode(pattern, x, W, b).square().sum().backward()
    gradient = collecting.gradient(W)
    assert W.grad is None and gradient is not None
    assert b.grad is not None and torch.equal(b.grad, bias)
    torch.testing.assert_close(gradient.rows(0, 60), expected)


def test_what_is_cleared_is_gone(collector):
    pattern, values = code(40, 60, 3)
    W = torch.randn(60, 8, requires_grad=True)
    collecting = collector(W)
    sparse_decode(pattern, values, W).sum().backward()
    assert collecting.gradient(W) is not None
    collecting.clear()
    assert collecting.gradient(W) is None


def test_others_and_the_stopped_get_tensors(collector):
    pattern, values = code(40, 60, 3)
    W, other = (torch.randn(60, 8, requires_grad=True) for _ in range(2))
    collecting = collector(W)
    sparse_decode(pattern, values, other).sum().backward()
    assert other.grad is not None
    collecting.stop()
    sparse_decode(pattern, values, W).sum().backward()
    assert W.grad is not None


def test_dense_gradients_add_up_in_memory_that_is_kept(collector):
    W = torch.randn(2, 3, 4, requires_grad=True)
    collecting = collector(W)
    addresses = []
    for _ in range(2):
        buffer = collecting.buffer(W)
        addresses.append(buffer.data_ptr())
        collecting.add_dense(W, buffer.fill_(1.0))
        second = collecting.buffer(W)
        assert second.data_ptr() != buffer.data_ptr()
        collecting.add_dense(W, second.fill_(2.0))
        (4.0 * W).sum().backward()  # comes by another way
        for _ in range(2):  # asking twice adds nothing
            gradient = collecting.gradient(W)
            assert gradient is not None
            assert torch.equal(gradient.rows(0, 6), torch.full((6, 4), 7.0))
        collecting.clear()
        assert collecting.gradient(W) is None
    assert addresses[0] == addresses[1]
