"""The fused optimiser's kernels against the equations."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels.dispatch import using
from dictlearn_kernels.fused_adam import Features, measure, reference, update

from tests.kernels.adam_cases import CASES, build


@pytest.mark.parametrize("name", CASES)
def test_measures_what_is_left_after_the_projection(name, device):
    case = build(name, device)
    with using("triton"):
        square, along = measure(case.features, case.gradients)
    expected, expected_along = reference.measure(case.features, case.gradients)
    torch.testing.assert_close(square, expected, rtol=1e-5, atol=1e-9)
    assert (along is None) == (expected_along is None)
    if along is not None:
        torch.testing.assert_close(along, expected_along, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("name", CASES)
def test_takes_the_step_of_the_equations(name, scale, device):
    ours, plain = build(name, device), build(name, device)
    _, along = reference.measure(ours.features, ours.gradients)
    with using("triton"):
        update(ours.features, ours.gradients, ours.moments, along, ours.steps, scale)
    reference.update(plain.features, plain.gradients, plain.moments, along, plain.steps, scale)
    for got, expected in zip(ours.tensors(), plain.tensors(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_two_runs_agree_to_the_bit(device):
    runs = [build("a_feature_that_always_fires", device) for _ in range(2)]
    for case in runs:
        with using("triton"):
            _, along = measure(case.features, case.gradients)
            update(case.features, case.gradients, case.moments, along, case.steps)
    for first, second in zip(runs[0].tensors(), runs[1].tensors(), strict=True):
        assert torch.equal(first, second)


def test_moments_in_bfloat16_are_rounded_by_chance_to_a_neighbour(device):
    low, full = build("concat", device, "bfloat16"), build("concat", device, "bfloat16")
    with using("triton"):
        update(low.features, low.gradients, low.moments, None, low.steps)
    g = full.gradients[0]
    assert g is not None
    before = full.state[0]["exp_avg"][0, 2:11].float()
    gradient = g.rows(2, 11)
    assert gradient is not None
    exact = before + 0.1 * (gradient - before)
    error = (low.state[0]["exp_avg"][0, 2:11].float() - exact) / exact.abs().clamp_min(1e-6)
    assert error.abs().max() < 2**-7 + 1e-6
    assert error.max() > 0 > error.min()
    torch.testing.assert_close(
        low.features.parts[0][0].norm(dim=-1), torch.ones_like(low.features.parts[0][0][..., 0])
    )


def test_a_shadow_follows_its_rows(device):
    case = build("concat", device)
    (W, _) = case.features.parts[0]
    shadow = torch.full_like(W, torch.nan, dtype=torch.float16)
    whole = Features(((W, 0),), W.shape[1], "concat", shadow=shadow)
    with using("triton"):
        _, along = measure(whole, case.gradients)
        update(whole, case.gradients, case.moments, along, case.steps)
    torch.testing.assert_close(shadow.float(), W, rtol=1e-3, atol=1e-6)
