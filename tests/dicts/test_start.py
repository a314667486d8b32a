"""Training that starts from a dictionary computes what that dictionary computes."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.start import check_start
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.train.trainee import Trainee
from dictlearn.types import Batch
from tests.dictionaries import INFERENCE, activations, small_dictionary
from tests.dicts.test_equivalent import stretched


def batch(sites: int = 1, n: int = 200) -> Batch:
    x_NSD = 5 * activations(n, sites) + 1
    zeros = torch.zeros(n, dtype=torch.int64)
    return Batch(x_NSD, None if sites == 1 else 2 * activations(n, sites), zeros, zeros)


def begun(dictionary: Dictionary, start: Dictionary, read: Batch) -> Trainee:
    trainee = Trainee(dictionary, Objective({"mse": Reconstruction()}), "sqrt_width", 1000).double()
    check_start(dictionary, start, "init=there")
    trainee.begin(read, start)
    return trainee


def again(trainee: Trainee, read: Batch) -> Dictionary:
    """What a run of no steps would save."""
    return trainee.inference_form(lambda: [read])


@pytest.mark.parametrize("sparsity", INFERENCE)
@pytest.mark.parametrize("unit_norm", [True, False])
def test_a_run_of_no_steps_saves_what_it_started_from(sparsity, unit_norm):
    start, read = stretched(sparsity).eval(), batch()
    try:
        check_start(small_dictionary(sparsity, unit_norm=unit_norm), start, "init=there")
    except ValueError as error:
        assert unit_norm and "want unit_norm=false" in str(error)
        start = small_dictionary(sparsity).eval()
    same = again(begun(small_dictionary(sparsity, unit_norm=unit_norm), start, read), read)
    torch.testing.assert_close(same(read.x_NSD), start(read.x_NSD), rtol=1e-5, atol=1e-5)
    if not unit_norm:
        a, b = (one.encode(read.x_NSD).dense() for one in (same, start))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        {"kind": "plt", "centre": False, "skip": True},
        {"kind": "clt", "centre": False, "link": "lower"},
        {"kind": "clt", "centre": False, "link": "lower", "tied": True},
        {"kind": "crosscoder", "link": "shared"},
    ],
    ids=lambda shape: f"{shape['kind']} {shape.get('tied', '')}",
)
def test_every_kind_starts_from_itself(shape):
    options = {"sites": 3, "unit_norm": False, **shape}
    if shape["kind"] == "clt":
        options["targets"] = tuple(f"mlp_out.{i}" for i in range(3))
    start, read = small_dictionary("topk", **options).eval(), batch(sites=3)
    same = again(begun(small_dictionary("topk", **options), start, read), read)
    torch.testing.assert_close(same(read.x_NSD), start(read.x_NSD), rtol=1e-5, atol=1e-5)


def test_an_uncentred_dictionary_starts_a_centred_one():
    start, read = stretched("jumprelu", centre=False), batch()
    same = again(begun(small_dictionary("jumprelu"), start, read), read)
    assert same.shape.centre
    torch.testing.assert_close(same(read.x_NSD), start(read.x_NSD), rtol=1e-5, atol=1e-5)


def test_thresholds_start_at_the_k_of_a_topk():
    start, read = small_dictionary("topk").eval(), batch()
    same = again(begun(small_dictionary("jumprelu"), start, read), read)
    l0 = same.encode(read.x_NSD).l0_NS.double().mean()
    assert float(l0) == pytest.approx(4, rel=0.02)


def test_thresholds_that_are_learnt_as_logarithms_are_carried():
    start, read = stretched("jumprelu"), batch()
    logarithmic = Dictionary(
        small_dictionary("jumprelu").shape, partial(JumpReLU, log_threshold=True)
    ).double()
    same = again(begun(logarithmic, start, read), read)
    torch.testing.assert_close(same(read.x_NSD), start(read.x_NSD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (("topk", {"n_features": 48}), ("topk", {}), r"want dict\.n_features=40"),
        (("topk", {}), ("topk", {"skip": True}), r"want dict\.skip=true"),
        (("topk", {}), ("gated", {}), "its sparsity is gated, whose parameters this run's topk"),
        (("topk", {}), ("abstopk", {}), "is abstopk, whose parameters this run's topk cannot"),
        (("abstopk", {}), ("topk", {}), "is topk, whose parameters this run's abstopk cannot"),
        (("jumprelu", {}), ("sparsemax", {}), "sparsemax, whose parameters this run's jumprelu"),
        (("topk", {"sites": 2}), ("topk", {}), "an sae with sources resid_post.0, and"),
        (("topk", {"width": 8}), ("topk", {}), "with width 16"),
    ],
)
def test_what_does_not_fit_is_said(ours, theirs, message):
    made, start = (small_dictionary(name, **shape) for name, shape in (ours, theirs))
    with pytest.raises(ValueError, match=message) as refused:
        check_start(made, start, "init=there")
    assert str(refused.value).startswith("init=there: ")


def test_norms_that_cannot_be_one_are_refused_before_any_work():
    with pytest.raises(ValueError, match=r"init=there: decoder norms .* want unit_norm=false"):
        check_start(small_dictionary("topk"), stretched("topk"), "init=there")
    check_start(small_dictionary("topk", unit_norm=False), stretched("topk"), "init=there")
