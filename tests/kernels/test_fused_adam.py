"""The CPU's fused optimiser against the equations, and against torch's Adam."""

from __future__ import annotations

import pytest
import torch
from dictlearn_kernels import rounded
from dictlearn_kernels.dispatch import forget, summary, using
from dictlearn_kernels.fused_adam import (
    FeatureRows,
    Step,
    compiled,
    cpu,
    measure,
    reference,
    update,
)
from dictlearn_kernels.fused_adam.moments import FORMS
from dictlearn_kernels.weight_grad import RowGradient

from tests.kernels.adam_cases import CASES, build


@pytest.fixture(autouse=True)
def _blocks_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", 40)
    monkeypatch.setattr(compiled, "CACHED", 40)


@pytest.fixture(params=[compiled, cpu], ids=["compiled", "torch"])
def passes(request):
    return request.param


@pytest.mark.parametrize("name", CASES)
def test_measures_what_is_left_after_the_projection(name, passes):
    case = build(name)
    square, along = passes.measure(case.features, case.gradients)
    expected, expected_along = reference.measure(case.features, case.gradients)
    torch.testing.assert_close(square, expected, rtol=1e-5, atol=1e-9)
    assert (along is None) == (expected_along is None)
    if along is not None:
        torch.testing.assert_close(along, expected_along, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("name", CASES)
def test_takes_the_step_of_the_equations(name, scale, passes):
    ours, plain = build(name), build(name)
    _, along = reference.measure(ours.features, ours.gradients)
    passes.update(ours.features, ours.gradients, ours.moments, along, ours.steps, scale)
    with using("reference"):
        update(plain.features, plain.gradients, plain.moments, along, plain.steps, scale)
    for got, expected in zip(ours.tensors(), plain.tensors(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_is_torchs_adam_to_the_bit_where_nothing_is_fixed(passes):
    p = torch.nn.Parameter(torch.randn(1, 40, 33))
    q = torch.nn.Parameter(p.detach().clone())
    theirs = torch.optim.Adam([q], lr=1e-2, fused=True)
    stored = FORMS["float32"].zeros(p)
    features = FeatureRows(((p, 0),), 40)
    for number in range(1, 6):
        gradient = torch.randn(1, 40, 33)
        q.grad = gradient.clone()
        theirs.step()
        step = Step(number, 1e-2, 0.9, 0.999, 1e-8)
        moments = FORMS["float32"](stored, 33, 0)
        passes.update(features, [RowGradient(gradient, [], 33)], [moments], None, [step], 1.0)
        assert torch.equal(p, q)


def test_a_part_without_a_gradient_stays():
    case = build("several_targets")
    case.gradients[1] = None
    kept = case.features.parts[1][0].clone(), case.state[1]["exp_avg"].clone()
    _, along = measure(case.features, case.gradients)
    update(case.features, case.gradients, case.moments, along, case.steps)
    assert torch.equal(case.state[1]["exp_avg"], kept[1])
    after = case.features.parts[1][0]
    assert torch.equal(after[0, :2], kept[0][0, :2])  # rows of others
    ratio = after[0, 2:-1] / kept[0][0, 2:-1]  # all parts are brought to norm 1 together
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_a_shadow_follows_its_rows(mode):
    case = build("free")
    (W, _) = case.features.parts[0]
    shadow = rounded.keep(W, torch.bfloat16)
    whole = FeatureRows(((W, 0),), W.shape[1], shadow=shadow)
    with using(mode):
        update(whole, case.gradients, case.moments, None, case.steps)
    expected = rounded.reference.rounded(W[0], torch.bfloat16, rounded.SLACK)
    assert all(map(torch.equal, shadow, expected))


def test_torch_knows_that_weights_have_moved():
    """So that a backward pass over what they were is refused, and no copy of that is taken."""
    case = build("free")
    (W, _) = case.features.parts[0]
    before = W._version
    update(case.features, case.gradients, case.moments, None, case.steps)
    assert W._version > before


@pytest.mark.parametrize("form", FORMS)
def test_the_choice_is_told(form):
    forget()
    case = build("free", form=form)
    measure(case.features, case.gradients)
    update(case.features, case.gradients, case.moments, None, case.steps)
    assert summary()["fused_adam"] == "compiled loops on cpu"


def test_weights_that_no_loop_serves_are_told():
    forget()
    p = torch.zeros(1, 4, 3, dtype=torch.float64)
    measure(FeatureRows(((p, 0),), 4), [RowGradient(torch.ones_like(p), [], 3)])
    assert summary()["fused_adam"] == "torch on cpu"
