"""FVU and its companions: against hand-computed numbers, a two-pass reference, and invariances."""

from __future__ import annotations

import math

import pytest
import torch

from dictlearn.evals.context import DICTIONARY
from dictlearn.evals.reconstruction import ReconstructionMeter, ReconstructionSums


def sums_of(y_NTD, y_hat_NTD, sizes=None):
    sums = ReconstructionSums(y_NTD.shape[1])
    for y, y_hat in zip(
        y_NTD.split(sizes or len(y_NTD)), y_hat_NTD.split(sizes or len(y_NTD)), strict=True
    ):
        sums.update(y, y_hat)
    return sums


def two_pass_fvu(y_NTD, y_hat_NTD):
    y, y_hat = y_NTD.double(), y_hat_NTD.double()
    return float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum())


@pytest.fixture
def heavy_tailed():
    """Token norms over orders of magnitude and a mean far from zero, as residual streams have."""
    scale = torch.randn(500, 1, 1).mul(1.5).exp()
    y_NTD = torch.randn(500, 2, 8) * scale + 30
    return y_NTD, y_NTD + 0.3 * scale * torch.randn_like(y_NTD)


def test_figures_of_three_tokens_by_hand():
    y = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, -4.0]])[:, None]
    y_hat = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, -4.0]])[:, None]
    figures = sums_of(y, y_hat).figures()
    # mean (1, 0): squared distances 4, 17, 17; squared errors 1, 4, 0
    assert figures["fvu"] == pytest.approx(5 / 38)
    assert figures["explained_variance"] == pytest.approx(33 / 38)
    assert figures["mse"] == pytest.approx(5 / 3)
    assert figures["cosine"] == pytest.approx(1.0)
    assert figures["l2_ratio"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert figures["gamma"] == pytest.approx((4 + 4 + 16) / (6 + 8 + 16))


def test_fvu_equals_two_passes_in_float64(heavy_tailed):
    y, y_hat = heavy_tailed
    streamed = sums_of(y, y_hat, sizes=7).figures()["fvu"]
    assert streamed == pytest.approx(two_pass_fvu(y, y_hat), rel=1e-12)


def test_fvu_keeps_its_digits_when_the_mean_dwarfs_the_variance():
    y = torch.randn(1000, 1, 4).double() + 1e7
    y_hat = y + 0.5
    assert sums_of(y, y_hat, sizes=64).figures()["fvu"] == pytest.approx(
        two_pass_fvu(y, y_hat), rel=1e-6
    )


@pytest.mark.parametrize("sizes", [1, 33, 499, [1, 499], [250, 1, 249]], ids=str)
def test_no_figure_depends_on_the_batch_split(heavy_tailed, sizes):
    whole, parts = sums_of(*heavy_tailed).figures(), sums_of(*heavy_tailed, sizes=sizes).figures()
    assert parts == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("scale", [0.01, 5.0, 1000.0])
def test_relative_figures_do_not_depend_on_the_scale(heavy_tailed, scale):
    y, y_hat = (t.double() for t in heavy_tailed)
    before, after = sums_of(y, y_hat).figures(), sums_of(y * scale, y_hat * scale).figures()
    for name in ("fvu", "cosine", "l2_ratio", "gamma"):
        assert after[name] == pytest.approx(before[name], rel=1e-9)
    assert after["mse"] == pytest.approx(before["mse"] * scale**2, rel=1e-9)


def test_the_mean_of_the_evaluated_tokens_has_an_fvu_of_one(heavy_tailed):
    y, _ = heavy_tailed
    assert sums_of(y, y.double().mean(0).expand_as(y)).figures()["fvu"] == pytest.approx(1.0)


def test_gamma_is_the_factor_by_which_a_reconstruction_is_shrunk(heavy_tailed):
    y, _ = heavy_tailed
    figures = sums_of(y, 0.8 * y).figures()
    assert figures["gamma"] == pytest.approx(0.8, rel=1e-6)
    assert figures["cosine"] == pytest.approx(1.0)


def test_zeros_have_no_gamma_and_a_cosine_of_zero(heavy_tailed):
    y, _ = heavy_tailed
    figures = sums_of(y, torch.zeros_like(y)).figures()
    assert math.isnan(figures["gamma"])
    assert figures["cosine"] == 0.0 and figures["l2_ratio"] == 0.0


def test_targets_are_weighted_by_their_variance_when_pooled(heavy_tailed):
    y, y_hat = heavy_tailed
    sums = sums_of(y, y_hat)
    per_target = [two_pass_fvu(y[:, t : t + 1], y_hat[:, t : t + 1]) for t in range(2)]
    assert sums.fvu_T() == pytest.approx(per_target, rel=1e-9)
    weights = sums.variance_T / sums.variance_T.sum()
    pooled = sum(w * fvu for w, fvu in zip(weights.tolist(), per_target, strict=True))
    assert sums.figures()["fvu"] == pytest.approx(pooled, rel=1e-9)


def test_special_tokens_count_only_in_the_figure_named_for_them(observation):
    y = torch.randn(12, 1, 4)
    y[0] *= 50  # a BOS with a massive norm, reconstructed perfectly
    y_hat = y + 0.5 * torch.randn_like(y)
    y_hat[0] = y[0]
    valid = torch.ones(12, dtype=torch.bool)
    valid[0] = False
    meter = ReconstructionMeter(("resid_post.0",), (DICTIONARY,))
    meter.update(observation(y, {DICTIONARY: y_hat}, valid))
    figures = meter.result().figures
    assert figures["fvu"] == pytest.approx(two_pass_fvu(y[1:], y_hat[1:]), rel=1e-9)
    assert figures["fvu_with_special"] == pytest.approx(two_pass_fvu(y, y_hat), rel=1e-9)
    assert figures["fvu_with_special"] < 0.1 * figures["fvu"]


def test_error_by_position_averages_to_the_fvu(observation):
    y, other = torch.randn(24, 1, 4), torch.randn(24, 1, 4)
    meter = ReconstructionMeter(("resid_post.0",), (DICTIONARY, "mean ablation"))
    rows = lambda part: {DICTIONARY: other[part], "mean ablation": 0 * other[part]}  # noqa: E731
    meter.update(observation(y[:12], rows(slice(12)), context=6))
    meter.update(observation(y[12:], rows(slice(12, 24)), context=4))
    result = meter.result()
    fraction_P, count_P = result.series["error_by_position"]
    assert count_P.tolist() == [5, 5, 5, 5, 2, 2]
    average = float((fraction_P * count_P).sum() / count_P.sum())
    assert average == pytest.approx(result.figures["fvu"], rel=1e-9)
    assert result.rows.keys() == {"mean ablation"}
