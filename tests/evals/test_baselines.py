"""The rows beside the dictionary are what their labels say, fitted on training text only."""

from __future__ import annotations

import pytest
import torch

from dictlearn.evals.baselines import Baselines, principal, reduced_rank
from dictlearn.evals.context import MEAN_ABLATION, ZERO_ABLATION, EvalContext
from dictlearn.evals.moments import Covariance
from dictlearn.lm.capture import capture


def valid_activations(lm, windows, site):
    tokens = windows.window_batch(range(len(windows)))
    return capture(lm, tokens, [site])[site][windows.kept(range(len(windows)))].double()


def fitted(lm, dictionary, windows, **options):
    context = EvalContext(dictionary, lm, None, windows)
    return Baselines(fit_tokens=10_000, **options).fit(context)


def covariance(x, y, sizes=17):
    streamed = Covariance()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        streamed.update(a, b)
    return streamed


def test_streamed_covariance_is_the_two_pass_one():
    x, y = torch.randn(200, 5) + 100, torch.randn(200, 3) - 50
    streamed = covariance(x, y)
    joint = torch.cov(torch.cat([x, y], 1).double().T, correction=0)
    torch.testing.assert_close(streamed.matrix(), joint[:5, 5:], rtol=1e-9, atol=1e-12)


def test_pca_row_is_the_truncated_svd(lm, toy, train_windows, windows):
    rows = fitted(lm, toy(k=4), train_windows)
    train = valid_activations(lm, train_windows, "resid_post.0")
    held_out = valid_activations(lm, windows, "resid_post.0")
    mean = train.mean(0)
    directions = torch.linalg.svd(train - mean, full_matrices=False).Vh[:4]
    expected = mean + (held_out - mean) @ directions.T @ directions
    y_NTD = held_out.float()[:, None]
    torch.testing.assert_close(
        rows["PCA, rank 4"](y_NTD, y_NTD)[:, 0].double(), expected, rtol=1e-4, atol=1e-4
    )


def test_mean_row_is_the_training_mean_and_zero_row_is_zero(lm, toy, train_windows):
    rows = fitted(lm, toy(), train_windows)
    y_NTD = torch.randn(3, 1, 16)
    mean = valid_activations(lm, train_windows, "resid_post.0").mean(0).float()
    torch.testing.assert_close(rows[MEAN_ABLATION](y_NTD, y_NTD), mean.expand(3, 1, 16))
    assert torch.equal(rows[ZERO_ABLATION](y_NTD, y_NTD), torch.zeros(3, 1, 16))


def test_rank_is_the_dictionarys_l0_unless_given(lm, toy, train_windows):
    assert "PCA, rank 7" in fitted(lm, toy(k=7), train_windows)
    assert "PCA, rank 2" in fitted(lm, toy(k=7), train_windows, rank=2)
    assert "PCA, rank 16" in fitted(lm, toy(k=20), train_windows)  # no more than the width


def test_a_transcoder_is_compared_with_a_linear_map_of_what_it_reads(lm, toy, train_windows):
    rows = fitted(lm, toy(("mlp_in.1",), ("mlp_out.1",), k=3), train_windows)
    assert list(rows) == [
        "linear map, rank 3",
        "PCA of the target, rank 3",
        MEAN_ABLATION,
        ZERO_ABLATION,
    ]
    x, y = torch.randn(5, 1, 16), torch.randn(5, 1, 16)
    first = rows["linear map, rank 3"](x, y)
    assert torch.equal(first, rows["linear map, rank 3"](x, torch.zeros_like(y)))  # reads x only
    assert torch.linalg.matrix_rank((first - first.mean(0))[:, 0]) == 3


def test_reduced_rank_regression_at_full_rank_is_least_squares():
    x, y = torch.randn(300, 6).double(), torch.randn(300, 4).double()
    y = y + x @ torch.randn(6, 4).double() + 2
    W, b = reduced_rank(covariance(x, x), covariance(y, y), covariance(x, y), 4)
    with_one = torch.cat([x, torch.ones(300, 1).double()], 1)
    expected = torch.linalg.lstsq(with_one, y).solution
    torch.testing.assert_close(torch.cat([W, b[None]]), expected)


def test_reduced_rank_regression_beats_the_maps_one_might_try_instead():
    """Projecting the input first, or truncating the full map's SVD, is not optimal."""
    x = torch.randn(400, 8).double() * torch.linspace(0.1, 3, 8)
    y = x @ torch.randn(8, 5).double() + 0.3 * torch.randn(400, 5).double()
    of_x, of_y, of_xy = covariance(x, x), covariance(y, y), covariance(x, y)
    x0, y0 = x - x.mean(0), y - y.mean(0)

    def error(W):
        return float((y0 - x0 @ W).square().sum())

    W, _ = reduced_rank(of_x, of_y, of_xy, 2)
    assert torch.linalg.matrix_rank(W) == 2
    full = torch.linalg.lstsq(x0, y0).solution
    u, s, vh = torch.linalg.svd(full)
    truncated = u[:, :2] * s[:2] @ vh[:2]
    inputs = principal(of_x.matrix(), 2)
    through_pca = inputs @ torch.linalg.lstsq(x0 @ inputs, y0).solution
    assert error(W) < error(truncated) and error(W) < error(through_pca)
    # the optimum in closed form: what the fit leaves, and the fitted variance beyond rank 2
    fitted_values = torch.linalg.svdvals(x0 @ full)
    optimum = error(full) + float(fitted_values[2:].square().sum())
    assert error(W) == pytest.approx(optimum, rel=1e-9)
