"""L0, densities and dead features: exact counts, whatever the order they were seen in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dictlearn.evals.context import DICTIONARY
from dictlearn.evals.sparsity import (
    SparsityMeter,
    lower_quantile,
    quantile_of_counts,
)


def meter(n_features, sources=("a",)):
    return SparsityMeter(sources, n_features, high_density=0.1, bins_per_decade=5)


@pytest.fixture
def seen(observation):
    """dense code -> observation, with the given validity and window length."""

    def build(dense_NSF, valid_N=None, context=None):
        y = torch.zeros(len(dense_NSF), 1, 2)
        return observation(y, {DICTIONARY: y}, valid_N, dense_NSF, context)

    return build


def test_counts_of_four_tokens_by_hand(seen):
    dense = torch.tensor([[2.0, 0, 0], [1, 3, 0], [0, 1, 0], [9, 9, 9]])[:, None]
    it = meter(3)
    it.update(seen(dense, torch.tensor([True, True, True, False])))
    figures = it.result().figures
    assert figures["tokens"] == 3
    assert figures["l0"] == pytest.approx(4 / 3)
    assert figures["l0_max"] == 2 and figures["l0_p50"] == 1 and figures["l0_p95"] == 2
    assert figures["dead"] == pytest.approx(1 / 3)
    assert figures["high_density"] == 2
    assert it.result().series["density"].tolist() == [[2 / 3, 2 / 3, 0.0]]


def test_figures_do_not_depend_on_batches(seen):
    dense = (torch.rand(64, 2, 40) < torch.rand(40) ** 4).float()
    valid = torch.rand(64) < 0.8
    whole = meter(40, ("a", "b"))
    whole.update(seen(dense, valid, context=8))
    parts = meter(40, ("a", "b"))
    for start in (8, 24, 32, 40, 48, 56, 0, 16):
        part = slice(start, start + 8)
        parts.update(seen(dense[part], valid[part], context=8))
    assert parts.result().figures == whole.result().figures
    for name, series in whole.result().series.items():
        assert torch.equal(parts.result().series[name], series), name


def test_several_sources_are_counted_apart_and_together(seen):
    dense = torch.zeros(5, 2, 4)
    dense[:, 0, :3] = 1
    dense[0, 1, 2] = 1
    it = meter(4, ("mlp_in.0", "mlp_in.1"))
    it.update(seen(dense))
    figures = it.result().figures
    assert figures["l0/mlp_in.0"] == 3 and figures["l0/mlp_in.1"] == pytest.approx(0.2)
    assert figures["l0"] == pytest.approx(3.2)
    assert figures["dead"] == pytest.approx(4 / 8)


def test_histogram_holds_every_live_feature_in_its_decade(seen):
    dense = torch.zeros(1000, 1, 5)
    for feature, fires in enumerate((0, 1, 10, 100, 1000)):
        dense[:fires, 0, feature] = 1
    it = meter(5)
    it.update(seen(dense))
    edges, counts = it.result().series["density_histogram"]
    assert counts.sum() == 4
    starts = edges[counts > 0].tolist()
    assert starts == pytest.approx([-3.0, -2.0, -1.0, -0.2])  # a density of 1 is in the last bin


def test_l0_by_position_averages_to_l0(seen):
    dense = (torch.rand(30, 1, 20) < 0.3).float()
    valid = torch.rand(30) < 0.7
    it = meter(20)
    it.update(seen(dense, valid, context=6))
    mean_P, count_P = it.result().series["l0_by_position"]
    l0 = it.result().figures["l0"]
    assert float((mean_P * count_P).sum() / count_P.sum()) == pytest.approx(l0)


@pytest.mark.parametrize("q", [0.0, 0.05, 0.1, 0.5, 0.75, 0.95, 1.0])
def test_quantiles_are_those_of_the_sorted_values(q):
    values = torch.randint(0, 9, (37,))
    expected = np.quantile(values.numpy(), q, method="inverted_cdf")
    assert lower_quantile(values, q) == expected
    if q > 0:
        assert quantile_of_counts(torch.bincount(values), q) == expected
