"""Moments in bfloat16 and in 8 bits on a CPU: a compiled loop against torch's calls and the equations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from dictlearn_kernels.fused_adam import FeatureRows, Step, compiled, cpu, reference
from dictlearn_kernels.fused_adam.moments import FORMS
from dictlearn_kernels.weight_grad import RowGradient
from torch import Tensor

from tests.kernels.adam_cases import CASES, Case, assert_right_on_average, build

LOW = ("bfloat16", "8bit")


@pytest.fixture(autouse=True)
def _blocks_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", 40)
    monkeypatch.setattr(compiled, "CACHED", 40)


def codes(moment: Tensor) -> Tensor:
    """Stored numbers as whole ones, so that neighbours differ by 1."""
    if moment.dtype != torch.bfloat16:
        return moment.int()
    bits = moment.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def assert_beside(ours: Case, theirs: Case) -> None:
    """Weights and scales agree; moments are both one of the two codes beside the same numbers."""
    for got, expected in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert got.dtype == expected.dtype
        if got.dtype == torch.float32:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        else:
            assert (codes(got) - codes(expected)).abs().max() <= 1


@pytest.mark.parametrize("plain", [cpu, reference], ids=["torch", "reference"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("form", LOW)
@pytest.mark.parametrize("name", CASES)
def test_takes_the_same_step(name, form, scale, plain):
    ours, theirs = build(name, form=form), build(name, form=form)
    _, along = reference.measure(ours.features, ours.gradients)
    for case, passes in ((ours, compiled), (theirs, plain)):
        passes.update(case.features, case.gradients, case.moments, along, case.steps, scale)
    assert_beside(ours, theirs)


def rows_of_noise(form: str, step: Callable[..., None], steps: int) -> tuple[Tensor, dict]:
    """Weights [9, 33] and what is stored after some steps; rows 3 to 5 never have a gradient."""
    p = torch.zeros(1, 9, 33)
    features, stored = FeatureRows(((p, 0),), 9), FORMS[form].zeros(p)
    draws = torch.Generator().manual_seed(2)
    for number in range(1, steps + 1):
        gradient = 1 + torch.randn(1, 9, 33, generator=draws)
        gradient[:, 3:6] = 0
        moments = [FORMS[form](stored, 33, number)]
        given = [RowGradient(gradient, [], 33)], moments, None
        step(features, *given, [Step(number, 1e-2, 0.9, 0.99, 1e-8, number)], 1.0)
    return p[0], stored


@pytest.mark.parametrize("form, bound", [("bfloat16", 0.01), ("8bit", 0.05)])
def test_several_steps_end_beside_those_of_full_moments(form, bound):
    exact, _ = rows_of_noise("float32", reference.update, 20)
    ours, _ = rows_of_noise(form, compiled.update, 20)
    theirs, _ = rows_of_noise(form, cpu.update, 20)
    for got in (ours, theirs):
        assert ((got - exact).norm() / exact.norm()) < bound
    assert not torch.equal(ours, exact)


@pytest.mark.parametrize("form", LOW)
def test_rows_without_a_gradient_stay_at_zero(form):
    p, stored = rows_of_noise(form, compiled.update, 3)
    for tensor in (p, *(t.view(9, -1) for t in stored.values())):
        assert (tensor[3:6] == 0).all()
        assert (tensor[:3] != 0).any(1).all() and (tensor[6:] != 0).any(1).all()


@pytest.mark.parametrize("passes", [compiled, cpu], ids=["compiled", "torch"])
@pytest.mark.parametrize("form", LOW)
def test_rounding_is_right_on_average(form, passes):
    assert_right_on_average(partial(passes.update, scale=1.0), form)


def test_draws_are_those_of_philox():
    """The first of the known answers of Random123 (kat_vectors), and of counters next to each other."""
    noise = np.empty(3, np.uint32)
    compiled._draw(noise, np.uint64(0), 0)
    assert noise[0] == 0x6627E8D5
    later = np.empty(2, np.uint32)
    compiled._draw(later, np.uint64(0), 1)
    assert (later == noise[1:]).all()
    compiled._draw(later, np.uint64(1), 1)
    assert (later != noise[1:]).all()
