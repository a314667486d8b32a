"""A matrix's rounded copy that is kept up to date counts until something else writes to the matrix."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels import rounded as module
from dictlearn_kernels.rounded import SLACK, keep, reference, rounded, settle

SHAPE = (3, 5, 8)


@pytest.fixture
def matrix() -> torch.nn.Parameter:
    """Its copy holds nonsense, by which it is told from one made anew."""
    made = torch.nn.Parameter(torch.randn(SHAPE))
    for tensor in keep(made, torch.float16):
        tensor.fill_(7.0)
    settle(made)
    return made


def is_kept(x: torch.Tensor, dtype: torch.dtype = torch.float16) -> bool:
    """Whether the copy was taken; what wasn't has to be right."""
    with torch.no_grad():
        found = rounded(x, dtype)
        nonsense = [bool((tensor == 7.0).all()) for tensor in found]
        assert all(nonsense) or all(map(torch.equal, found, reference.rounded(x, dtype, SLACK)))
        assert len(found.low_RD) == len(found.norm_R) == len(found.error_R) == len(x)
    return all(nonsense)


@torch.no_grad()
def test_it_serves_the_whole_matrix_and_whole_rows(matrix):
    assert is_kept(matrix.flatten(0, 1)) and is_kept(matrix[1]) and is_kept(matrix[2, 1:4])
    for s, norms in enumerate(module._kept[matrix].copy.norm_R.view(3, 5)):
        norms.fill_(s)
        assert (rounded(matrix[s], torch.float16).norm_R == s).all()


@torch.no_grad()
def test_it_serves_nothing_else(matrix):
    assert not is_kept(matrix[1], torch.bfloat16)
    assert not is_kept(matrix[:, 2]) and not is_kept(matrix[1][:, :4]) and not is_kept(matrix[1].T)
    assert not is_kept(matrix[1].clone()) and not is_kept(torch.randn(5, 8))


@pytest.mark.parametrize("write", [
    lambda matrix: matrix.mul_(2),
    lambda matrix: matrix[1].zero_(),
    lambda matrix: matrix.copy_(torch.randn(SHAPE)),
    lambda matrix: torch.optim.SGD([matrix]).step(lambda: setattr(matrix, "grad", matrix.clone())),
    lambda matrix: setattr(matrix, "data", torch.randn(SHAPE)),
])  # fmt: skip
@torch.no_grad()
def test_it_counts_until_something_else_writes(matrix, write):
    assert is_kept(matrix[0])
    write(matrix)
    assert not is_kept(matrix[0]) and not is_kept(matrix[2])
    settle(matrix)
    assert is_kept(matrix[0])


def test_it_counts_from_when_it_has_been_filled():
    made = torch.nn.Parameter(torch.randn(SHAPE))
    keep(made, torch.float16).low_RD.fill_(7.0)
    assert not is_kept(made[0])


def test_it_goes_with_its_matrix():
    before = len(module._kept)
    made = torch.nn.Parameter(torch.randn(SHAPE))
    keep(made, torch.float16)
    assert len(module._kept) == before + 1
    del made
    assert len(module._kept) == before
