"""Everybody's figures come from this one place, so it must be right, whatever it is given."""

from __future__ import annotations

import pytest
import torch
from peers.measure import at_equal_l0, held_out, scale_for
from torch import Tensor


class Thresholded:
    """Three features a dimension, at 1, 2 and 3 times the threshold of that dimension."""

    thresholded = True

    def forward(self, x_ND: Tensor, threshold_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        code_NF = torch.cat([x_ND * (x_ND > level * threshold_scale) for level in (1, 2, 3)], dim=1)
        return x_ND * (x_ND > threshold_scale), code_NF


class Constant:
    """Predicts what it is given and fires one feature of four on every token."""

    thresholded = False

    def __init__(self, prediction_D: Tensor):
        self.prediction_D = prediction_D

    def forward(self, x_ND: Tensor, threshold_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        code_NF = torch.eye(4)[:1].repeat(len(x_ND), 1)
        return self.prediction_D.expand_as(x_ND), code_NF


def test_predicting_the_mean_explains_nothing():
    x_ND = torch.randn(1000, 8) * torch.arange(1, 9) + 5
    figures = held_out(Constant(x_ND.mean(0)), x_ND)
    assert figures.fvu == pytest.approx(1, abs=1e-5)
    assert figures.l0 == 1
    assert figures.dead == 0.75


def test_fvu_is_pooled_over_all_tokens_and_does_not_see_chunks():
    x_ND = torch.randn(1000, 8).exp()
    y_ND, _ = Thresholded().forward(x_ND)
    expected = (x_ND - y_ND).square().sum() / (x_ND - x_ND.mean(0)).square().sum()
    for chunk in (1, 7, 4096):
        assert held_out(Thresholded(), x_ND, chunk=chunk).fvu == pytest.approx(
            float(expected), rel=1e-5
        )


@pytest.mark.parametrize("k", [1.0, 3.0, 8.0])
def test_equal_l0_is_reached_by_scaling_thresholds(k: float):
    x_ND = torch.randn(20000, 8).exp()
    assert at_equal_l0(Thresholded(), x_ND, k).l0 == pytest.approx(k, rel=2e-3)


def test_exact_selection_is_measured_as_it_is():
    x_ND = torch.randn(100, 8)
    assert at_equal_l0(Constant(x_ND.mean(0)), x_ND, 3).threshold_scale == 1


def test_a_target_out_of_reach_ends_the_search():
    assert scale_for(lambda scale: 5.0, target=1.0) == pytest.approx(64, rel=1e-3)
    assert scale_for(lambda scale: 5.0, target=10.0) == pytest.approx(1 / 64, rel=1e-3)
