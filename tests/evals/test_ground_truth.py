"""Recovery is 1 for the truth itself, whatever its order and scale, and less for anything else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dictlearn.evals.ground_truth import assignment, mcc, mean_max_cosine


def unit(n: int, d: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d))


def test_the_truth_recovers_itself():
    truth = unit(12, 7)
    W_dec = 3 * truth[torch.randperm(12)]
    assert mean_max_cosine(W_dec, truth) == pytest.approx(1)
    assert mean_max_cosine(truth, W_dec) == pytest.approx(1)
    assert mcc(W_dec, truth) == pytest.approx(1)


def test_missing_and_false_features_show_in_one_direction_each():
    truth = torch.eye(6)
    missing = truth[:3]
    assert mean_max_cosine(missing, truth) == pytest.approx(0.5)
    assert mean_max_cosine(truth, missing) == pytest.approx(1)
    false = torch.cat([truth[:3], torch.full((3, 6), 1.0)])
    assert mean_max_cosine(truth, false) == pytest.approx((3 + 3 / 6**0.5) / 6)


def test_a_duplicate_cannot_stand_for_two_features():
    truth = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    both_first = truth[[0, 0]]
    assert mean_max_cosine(both_first, truth) == pytest.approx((1 + 0.6) / 2)
    assert mcc(both_first, truth) == pytest.approx((1 + 0.6) / 2)
    assert mcc(truth[[0]], truth) == pytest.approx(1)


def test_signs():
    truth = torch.eye(4)
    assert mean_max_cosine(-truth, truth) == pytest.approx(0)
    assert mcc(-truth, truth) == pytest.approx(1)


def test_a_zero_row_matches_nothing():
    truth = torch.eye(3)
    W_dec = truth.clone()
    W_dec[0] = 0
    assert mcc(W_dec, truth) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (2, 3), (5, 5), (4, 7)])
@pytest.mark.parametrize("whole", [True, False], ids=["ties", "no ties"])
def test_the_assignment_is_the_cheapest(n, m, whole):
    rng = np.random.default_rng(n * m)
    for _ in range(20):
        cost = rng.standard_normal((n, m))
        if whole:
            cost = np.round(cost)
        columns = assignment(cost)
        assert len(set(columns)) == n
        every = itertools.permutations(range(m), n)
        cheapest = min(sum(cost[row, p[row]] for row in range(n)) for p in every)
        assert cost[np.arange(n), columns].sum() == pytest.approx(cheapest)


def test_gradients_and_dtypes_do_not_matter():
    truth = unit(5, 5)
    W_dec = truth.bfloat16().requires_grad_()
    assert mean_max_cosine(W_dec, truth) == pytest.approx(1, abs=1e-2)
    assert mcc(W_dec, truth.double()) == pytest.approx(1, abs=1e-2)
