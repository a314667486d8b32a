"""Cosines of weights: to the nearest live feature, and of a feature's encoder with its decoder."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.evals.evaluation import evaluate_dictionary
from dictlearn.evals.geometry import Geometry, histogram
from dictlearn.evals.record import record_of
from dictlearn.evals.report.plots import evaluation_plots
from dictlearn.evals.sparsity import Sparsity
from dictlearn.sparsity.topk import TopK

EVALS = {"geometry": Geometry(), "sparsity": Sparsity()}


def sae(n_features: int = 24) -> Dictionary:
    torch.manual_seed(0)
    site = ("resid_post.0",)
    return Dictionary(Shape("sae", site, site, 16, n_features, 4), partial(TopK, k=4)).eval()


def test_cosines_are_those_of_plain_loops(lm, windows):
    dictionary = sae()
    with torch.no_grad():
        dictionary.encoder.W_enc.add_(0.2 * torch.randn_like(dictionary.encoder.W_enc))
    found = evaluate_dictionary(dictionary, lm, windows, EVALS)
    live = found.series["density"][0] > 0
    W_dec = torch.nn.functional.normalize(dictionary.decoder.W_dec[0].detach(), dim=-1)[live]
    W_enc = torch.nn.functional.normalize(dictionary.encoder.W_enc[0].detach(), dim=-1)[live]
    cosines = W_dec @ W_dec.T
    nearest = cosines.fill_diagonal_(-2).max(1).values
    alignment = (W_dec * W_enc).sum(1)
    assert 4 < int(live.sum()) < 24 or bool(live.all())
    for name, values in (("nearest_cosine", nearest), ("alignment", alignment)):
        assert found.figures[f"{name}_p50"] == pytest.approx(float(values.quantile(0.5)), abs=1e-5)
        assert found.series[f"{name}_histogram"][1].sum() == len(values)


def test_few_of_many_features_are_looked_at(lm, windows):
    dictionary = sae(n_features=400)
    some = evaluate_dictionary(dictionary, lm, windows, EVALS | {"geometry": Geometry(features=10)})
    live = int((some.series["density"] > 0).sum())
    assert live > 40 and 0 < some.series["nearest_cosine_histogram"][1].sum() < live / 2


def test_a_dictionary_of_another_class(lm, toy, windows):
    dictionary = toy(k=24)
    found = evaluate_dictionary(dictionary, lm, windows, {"geometry": Geometry()})
    nearest = (dictionary.W @ dictionary.W.T).fill_diagonal_(-2).max(1).values
    assert found.figures["nearest_cosine_p50"] == pytest.approx(float(nearest.quantile(0.5)))
    assert "alignment_p50" not in found.figures


def test_charts_that_would_be_flat_make_room(lm, windows):
    """TopK has one L0 on every token."""
    dictionary = sae()
    found = evaluate_dictionary(dictionary, lm, windows, EVALS)
    plots = {plot.name for plot in evaluation_plots(record_of(found, dictionary, lm.info, {}))}
    assert plots == {"density", "nearest_cosine", "alignment"}


def test_histograms_count_everything_once():
    edges, counts = histogram(torch.tensor([0.0, 0.024, 0.5, 1.0, 1.00001]))
    assert len(edges) == 40 and counts.sum() == 5
    assert (counts[0], counts[20], counts[39]) == (2, 1, 2)
    assert histogram(torch.tensor([-1.0, 0.0]), low=-1.0)[1].nonzero()[:, 0].tolist() == [0, 20]
