"""The kernels that take the vocabulary in blocks, against whole logits."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels.dispatch import using
from dictlearn_kernels.kl_chunked import kl_of_states, reference

from tests.kernels.test_kl_chunked import problem, value_and_gradient

CASES = [(1, 1, 1, 1), (7, 33, 5, 40), (66, 200, 16, 16), (3, 130, 70, 70)]
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def kernels_only():
    with using("triton"):
        yield


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_match_the_reference(case, dtype, temperature, device, monkeypatch):
    # Several segments of the vocabulary, of two blocks each, and differences one block at a time.
    monkeypatch.setattr("dictlearn_kernels.kl_chunked.triton.PROGRAMS", 2)
    monkeypatch.setattr("dictlearn_kernels.kl_chunked.triton.GAP_BYTES", 1)
    inputs = problem(*case, dtype=dtype, device=device)
    weights = torch.rand(case[0], device=device)
    exact = [t.detach().double() for t in inputs]
    exact[0].requires_grad_()
    plain = value_and_gradient(reference.kl_of_states, exact, weights, temperature=temperature)
    ours = value_and_gradient(kl_of_states, inputs, weights, temperature=temperature)
    assert ours[0].dtype is torch.float32 and ours[1].dtype is dtype
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.isfinite().all()
        atol = TOLERANCES[dtype] * max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(mine.double(), theirs, rtol=TOLERANCES[dtype], atol=atol)
    again = value_and_gradient(kl_of_states, inputs, weights, temperature=temperature)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_equal_models_have_no_kl_and_no_gradient(device):
    states, W, _, _ = problem(6, 150, 8, 8, torch.float32, device)
    kl_N, gradient = value_and_gradient(
        kl_of_states, (states, W, states.detach(), W), torch.ones(6, device=device)
    )
    assert (kl_N == 0).all() and (gradient == 0).all()


def test_large_logits_do_not_overflow(device):
    states, W, other, other_W = problem(4, 100, 8, 8, torch.float32, device)
    kl_N = kl_of_states(1e3 * states, W, other, other_W)
    exact = (1e3 * states).double(), W.double(), other.double(), other_W.double()
    expected = reference.kl_of_states(*exact)
    torch.testing.assert_close(kl_N.double(), expected, rtol=1e-5, atol=1e-3)


def test_no_rows_are_no_kl(device):
    inputs = problem(0, 5, 3, 3, torch.float32, device)
    kl_N, gradient = value_and_gradient(kl_of_states, inputs, torch.ones(0, device=device))
    assert kl_N.shape == (0,) and gradient.shape == (0, 3)
