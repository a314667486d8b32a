from __future__ import annotations

import math

import pytest

from dictlearn.explain.scores import Confusion, derangement, distribution, share


def test_figures_of_a_confusion():
    counts = Confusion(tp=8, fp=8, fn=2, tn=82)
    assert counts.balanced_accuracy == pytest.approx((0.8 + 82 / 90) / 2)
    assert counts.precision == 0.5 and counts.recall == 0.8
    assert Confusion(0, 0, 5, 5).balanced_accuracy == 0.5 and Confusion(0, 0, 5, 5).precision == 0
    assert math.isnan(Confusion(0, 0, 0, 5).balanced_accuracy)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_nobody_keeps_their_own(n):
    other = derangement(n, seed=0)
    assert sorted(other) == list(range(n)) and all(i != j for i, j in enumerate(other))


def test_shares_and_quantiles():
    assert share([0.8, 0.79, 0.9], 0.8, total=4) == 0.5 and share([], 0.8, total=0) == 0
    assert distribution([1.0, 3.0])["p50"] == 2 and distribution([]) == {}
