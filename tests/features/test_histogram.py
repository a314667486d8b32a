"""Histograms of unknown range: exact whatever the order, and close to what the values say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dictlearn.features import histogram


def counted(values_nM: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(counts, octaves, maxima) of rows of values that come in parts, zeros standing for none."""
    n = len(values_nM)
    octave = torch.full((n,), histogram.NOTHING_YET, dtype=torch.int32)
    counts = torch.zeros(n, histogram.N_BINS, dtype=torch.int32)
    maximum = torch.zeros(n)
    for part in values_nM.tensor_split(parts, dim=1):
        row, column = (part > 0).nonzero(as_tuple=True)
        maximum = maximum.maximum(part.amax(1))
        now = torch.where(maximum > 0, histogram.octave_of(maximum), octave)
        counts = histogram.rebased(counts, octave, now)
        counts += histogram.counted(row, part[row, column], now)
        octave = now
    return counts, octave, maximum


@pytest.mark.parametrize("parts", [2, 7, 50])
def test_the_order_of_values_does_not_matter(parts: int):
    values = torch.randn(20, 100).exp() * torch.logspace(-20, 20, 20)[:, None]
    whole, in_parts = counted(values), counted(values[:, torch.randperm(100)], parts)
    for a, b in zip(whole, in_parts, strict=True):
        assert torch.equal(a, b)
    assert (whole[0].sum(1) == 100).all()


def test_counts_in_equal_bins_are_close_to_the_exact_ones():
    values = torch.rand(6, 5000).square() * torch.tensor([1e-6, 0.1, 1.0, 3.0, 700.0, 1e9])[:, None]
    counts, octave, maximum = counted(values, 3)
    found = histogram.equal_bins(counts, octave, maximum, 32)
    for row, values_M, top in zip(found, values, maximum.tolist(), strict=True):
        exact = torch.histc(values_M / top, 32, 0, 1)
        assert int(row.sum()) == 5000 and (row >= 0).all()
        assert (row - exact).abs().sum() / 5000 < 0.06


def test_quantiles_are_within_the_width_of_a_bin():
    values = torch.randn(5, 4001).abs() * torch.tensor([1e-5, 0.3, 1.0, 40.0, 1e5])[:, None]
    levels = torch.tensor([0.05, 0.25, 0.5, 0.95, 0.99])
    found = histogram.quantiles(*counted(values, 4), levels)
    assert torch.allclose(found, torch.quantile(values, levels, dim=1).T, rtol=0.03)


def test_a_silent_feature_and_one_that_fired_once():
    values = torch.tensor([[0.0, 0.0], [2.5, 0.0]])
    counts = counted(values, 2)
    assert histogram.equal_bins(*counts, 4).tolist() == [[0] * 4, [0, 0, 0, 1]]
    found = histogram.quantiles(*counts, torch.tensor([0.1, 0.9]))
    assert found[0].tolist() == [0, 0] and found[1].tolist() == pytest.approx([2.5] * 2, rel=0.03)
