"""KL from states equals that of whole logits: values and gradient, chunk by chunk."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels.dispatch import using
from dictlearn_kernels.kl_chunked import _kl_of_states, kl_of_states, reference

# rows, vocabulary, width of the states, width of the teacher's
CASES = [(1, 1, 1, 1), (7, 33, 5, 5), (9, 64, 16, 3), (5, 2, 1, 4)]


def problem(N, V, D, E, dtype=torch.float64, device="cpu"):
    """Logits of some nats; a teacher of the same width has the same unembedding."""
    states, W = torch.randn(N, D), 3 * torch.randn(V, D) / D**0.5
    teacher_states = states + 0.3 * torch.randn(N, D) if D == E else torch.randn(N, E)
    teacher_W = W if D == E else 3 * torch.randn(V, E) / E**0.5
    states, *rest = (t.to(device, dtype) for t in (states, W, teacher_states, teacher_W))
    return states.requires_grad_(), *rest


def value_and_gradient(function, inputs, weights, **kwargs):
    kl_N = function(*inputs, **kwargs)
    (gradient,) = torch.autograd.grad((kl_N * weights.to(kl_N.dtype)).sum(), inputs[0])
    return kl_N.detach(), gradient


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_match_the_reference(case, chunk, temperature):
    inputs = problem(*case)
    weights = torch.randn(case[0])
    plain = value_and_gradient(reference.kl_of_states, inputs, weights, temperature=temperature)
    ours = value_and_gradient(kl_of_states, inputs, weights, temperature=temperature, chunk=chunk)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs)
    with using("reference"):
        dense = value_and_gradient(kl_of_states, inputs, weights, temperature=temperature)
    assert all(torch.equal(a, b) for a, b in zip(dense, plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_states_have_a_float32_kl(dtype):
    inputs = problem(32, 100, 16, 16, dtype)
    exact = [t.detach().double() for t in inputs]
    exact[0].requires_grad_()
    plain = value_and_gradient(reference.kl_of_states, exact, torch.ones(32))
    kl_N, gradient = value_and_gradient(kl_of_states, inputs, torch.ones(32))
    assert kl_N.dtype is torch.float32 and gradient.dtype is dtype
    torch.testing.assert_close(kl_N.double(), plain[0], rtol=0.05, atol=0.02)
    torch.testing.assert_close(gradient.double(), plain[1], rtol=0.05, atol=0.03)


def test_equal_models_have_no_kl_and_no_gradient():
    states, W, _, _ = problem(6, 50, 8, 8, torch.float32)
    kl_N, gradient = value_and_gradient(
        kl_of_states, (states, W, states.detach(), W), torch.ones(6)
    )
    assert (kl_N == 0).all() and (gradient == 0).all()


def test_no_rows_are_no_kl():
    inputs = problem(0, 5, 3, 3)
    kl_N, gradient = value_and_gradient(kl_of_states, inputs, torch.ones(0))
    assert kl_N.shape == (0,) and gradient.shape == (0, 3)


@pytest.mark.parametrize("case", [CASES[1], CASES[2]], ids=str)
@pytest.mark.parametrize("wants_gradient", [True, False])
def test_the_operation_is_well_formed(case, wants_gradient):
    inputs = [t.requires_grad_(wants_gradient and i == 0) for i, t in enumerate(problem(*case))]
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    arguments = *(t.detach().requires_grad_(t.requires_grad) for t in inputs), 2.0, 4, "cpu"
    torch.library.opcheck(_kl_of_states, (*arguments, wants_gradient), test_utils=checks)
    if wants_gradient:
        torch.library.opcheck(_kl_of_states, (*arguments, True))


def test_compiles_whole():
    inputs = problem(*CASES[2])

    def loss(*inputs):
        return kl_of_states(*inputs, temperature=2.0, chunk=4).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager, ours = (torch.autograd.grad(f(*inputs), inputs[0])[0] for f in (loss, compiled))
    assert torch.equal(eager, ours)


def test_reference_is_differentiated_right():
    states, W, other, other_W = problem(3, 5, 2, 2)
    assert torch.autograd.gradcheck(
        lambda s: reference.kl_of_states(s, W, other, other_W, 1.5), (states,)
    )
