"""The fused optimiser's kernels against the equations."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from dictlearn_kernels import rounded
from dictlearn_kernels.dispatch import using
from dictlearn_kernels.fused_adam import FeatureRows, compiled, measure, reference, update

from tests.kernels.adam_cases import CASES, WHERE, assert_right_on_average, build
from tests.kernels.interpreted.conftest import INTERPRETED
from tests.pretend_gpu import pretend_gpu


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


@pytest.mark.parametrize("missing", ["gradient", "moments"])
@pytest.mark.parametrize("name", ["several_targets", "sum_of_norms"])
def test_a_part_that_does_not_move_is_brought_to_the_norm_with_the_others(name, missing, device):
    ours, plain = build(name, device), build(name, device)
    _, along = reference.measure(ours.features, ours.gradients)
    for case in (ours, plain):
        if missing == "gradient":
            case.gradients[1] = None
        else:
            case.moments[1] = case.steps[1] = None
    with using("triton"):
        update(ours.features, ours.gradients, ours.moments, along, ours.steps)
    reference.update(plain.features, plain.gradients, plain.moments, along, plain.steps, 1.0)
    for got, expected in zip(ours.tensors(), plain.tensors(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["free", "concat", "sum"])
def test_launches_do_not_grow_with_parts(norm, monkeypatch):
    """Of a CLT of 12 layers a feature has up to 12 parts: one kernel a pass goes through all."""
    if not INTERPRETED:
        pytest.skip("about the pretended GPU")
    launched = []
    for n_parts in (2, 5):
        monkeypatch.setitem(CASES, "many", (7, 5, 12, norm, 1.0, n_parts, 1, False))
        with pretend_gpu() as gpu:
            case = build("many", "cuda")
            measure(case.features, case.gradients)  # sorts what a parameter's parts share
            gpu.forget()
            _, along = measure(case.features, case.gradients)
            assert gpu.launches.count("measure_kernel") == 1
            update(case.features, case.gradients, case.moments, along, case.steps)
            assert gpu.launches.count("update_kernel") == 1 and not gpu.waits
            launched.append(list(gpu.launches))
    assert launched[0] == launched[1]


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
    shadow = rounded.keep(W, torch.float16)
    whole = FeatureRows(((W, 0),), W.shape[1], "concat", shadow=shadow)
    with using("triton"):
        _, along = measure(whole, case.gradients)
        update(whole, case.gradients, case.moments, along, case.steps)
    low, norm, error = rounded.reference.rounded(W[0], torch.float16, rounded.SLACK)
    assert torch.equal(shadow.low_RD, low)
    torch.testing.assert_close(shadow.norm_R, norm)
    torch.testing.assert_close(shadow.error_R, error)


@pytest.mark.parametrize("name", ["concat", "wider_than_a_block", "beside_a_dense_one"])
def test_moments_in_8_bits_are_codes_beside_the_exact_ones(name, device):
    """Every code is one of the two whose numbers are next to the moment; scales are the largest."""
    low, full = build(name, device, "8bit"), build(name, device, "8bit")
    before = [moments.load(0, len(moments.first)) for moments in full.moments]
    with using("triton"):
        update(low.features, low.gradients, low.moments, None, low.steps)
    n = low.features.n
    for part, (moments, gradient) in enumerate(zip(low.moments, full.gradients, strict=True)):
        rows = slice(WHERE, WHERE + n)
        assert gradient is not None
        g = gradient.rows(rows.start, rows.stop)
        assert g is not None
        first, second = (moment[rows] for moment in before[part])
        first = first + 0.1 * (g - first)
        second = 0.99 * second + 0.01 * g * g
        assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-7)
        assert_close(moments.first_scale[rows, 0], first.abs().amax(1))
        assert_close(moments.second_scale[rows, 0], second.amax(1))
        exact = 127 * (first.abs() / first.abs().amax(1, keepdim=True)).sqrt() * first.sign()
        off = moments.first[rows].float() - exact
        assert off.abs().max() < 1 + 1e-3 and off.min() < 0 < off.max()
        exact = 255 * (second / second.amax(1, keepdim=True)) ** 0.25
        off = moments.second[rows].float() - exact.clamp_min(1)
        assert off.abs().max() < 1 + 1e-3 and off.min() < 0 < off.max()
        w = full.features.parts[part][0].view(-1, first.shape[1])[rows]
        w = w - 0.1 / (1 - 0.9**3) * first / ((second / (1 - 0.99**3)).sqrt() + 1e-8)
        got = low.features.parts[part][0].view(-1, first.shape[1])[rows]
        directions = torch.nn.functional.cosine_similarity(got, w)
        assert directions.min() > 1 - 1e-6  # norms are brought back afterwards


@pytest.mark.parametrize("form", ["bfloat16", "8bit"])
def test_rounding_is_right_on_average(form, device):
    with using("triton"):
        assert_right_on_average(update, form, device)


@pytest.mark.parametrize("form", ["bfloat16", "8bit"])
@pytest.mark.parametrize("name", ["several_targets", "wider_than_a_block", "only_dense"])
def test_moments_are_rounded_as_on_a_cpu(name, form, device):
    """The same draws: codes differ only where a sum's last digit decides."""
    ours, theirs = build(name, device, form), build(name, "cpu", form)
    with using("triton"):
        update(ours.features, ours.gradients, ours.moments, None, ours.steps)
    compiled.update(theirs.features, theirs.gradients, theirs.moments, None, theirs.steps, 1.0)
    low = (torch.bfloat16, torch.int8, torch.uint8)
    pairs = zip(ours.tensors(), theirs.tensors(), strict=True)
    pairs = [(got.cpu(), expected) for got, expected in pairs if expected.dtype in low]
    assert len(pairs) == 2 * len(ours.features.parts)
    for got, expected in pairs:
        assert (got != expected).float().mean() < 0.01
