"""The Jacobian cosine against Jacobians written out in full."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd.functional import jacobian

from dictlearn.evals.context import EvalContext
from dictlearn.evals.jacobian import JacobianCosine, products, run_mlps
from dictlearn.lm.capture import capture

EXACT = {"tokens": 40, "windows": 8, "probes": 16}  # as many probes as the toy model is wide


def activations(lm, dictionary, windows):
    tokens = windows.window_batch(range(len(windows)))
    valid = windows.kept(range(len(windows)))
    acts = capture(lm, tokens, (*dictionary.sources, *dictionary.targets))
    x = torch.stack([acts[site][valid] for site in dictionary.sources], 1)
    return x, torch.stack([acts[site][valid] for site in dictionary.targets], 1)


def per_token(f, x):
    """[N, *out, *in] of a function that treats every token alike."""
    n = x.ndim - 1
    return jacobian(lambda x: f(x).sum(0), x).movedim(-1 - n, 0)


def in_full(lm, dictionary, x_NSD, weight_T):
    """Mean cosine, and mean share off the diagonal, from dense [T D, S D] matrices."""
    mlps = [lm.model.model.layers[int(t.split(".")[1])].mlp for t in dictionary.targets]
    own = [dictionary.sources.index(t.replace("out", "in")) for t in dictionary.targets]
    theirs = per_token(dictionary, x_NSD)
    model = torch.zeros_like(theirs)
    for t, (mlp, s) in enumerate(zip(mlps, own, strict=True)):
        model[:, t, :, s] = per_token(mlp, x_NSD[:, s])
    weights = weight_T.sqrt().float()[:, None, None, None]
    model, theirs = model * weights, theirs * weights
    cosine = torch.cosine_similarity(model.flatten(1), theirs.flatten(1), dim=1).mean()
    square_TS = theirs.square().sum((0, 2, 4))
    inside = sum(float(square_TS[t, s]) for t, s in enumerate(own))
    return float(cosine), 1 - inside / float(square_TS.sum())


@pytest.mark.parametrize("link", ["diagonal", "lower"])
@pytest.mark.parametrize("skip", [False, True])
def test_all_basis_vectors_give_the_exact_figures(deep_lm, layers_of, windows, link, skip):
    dictionary = layers_of(4, link, skip=skip)
    if skip:
        dictionary.W_skip.normal_(std=0.2)
    x, y = activations(deep_lm, dictionary, windows)
    weight = 1 / y.double().var(0, unbiased=False).sum(-1)
    expected, across = in_full(deep_lm, dictionary, x, weight)
    context = EvalContext(dictionary, deep_lm, windows)
    figures = JacobianCosine(**EXACT | {"tokens": 10_000})(context).figures
    assert figures["jacobian_cosine"] == pytest.approx(expected, rel=1e-3)
    assert figures["jacobian_across"] == pytest.approx(across, rel=1e-3, abs=1e-6)
    assert (across > 0.1) == (link == "lower")


def test_one_target_alone(deep_lm, layers_of, windows):
    dictionary = layers_of(4, "lower")
    x, _ = activations(deep_lm, dictionary, windows)
    context = EvalContext(dictionary, deep_lm, windows)
    figures = JacobianCosine(**EXACT | {"tokens": 10_000})(context).figures
    for t in range(4):
        alone = torch.zeros(4)
        alone[t] = 1.0
        expected, _ = in_full(deep_lm, dictionary, x, alone)
        assert figures[f"jacobian_cosine/mlp_out.{t}"] == pytest.approx(
            expected, rel=1e-3, abs=1e-5
        )


def test_random_probes_find_the_same(lm, layers_of, windows):
    """15 probes in 16 dimensions at 90 tokens: noise averages out over the tokens."""
    context = EvalContext(layers_of(1), lm, windows)
    exact = JacobianCosine(tokens=1000, windows=8, probes=16)(context).figures
    rough = JacobianCosine(tokens=1000, windows=8, probes=15)(context).figures
    assert exact["jacobian_cosine"] != rough["jacobian_cosine"]
    assert rough["jacobian_cosine"] == pytest.approx(exact["jacobian_cosine"], abs=0.03)
    assert set(exact) == {"jacobian_cosine", "jacobian_across"}  # nothing else for one target


@pytest.mark.parametrize("n", [1, 4])
def test_the_model_itself_has_cosine_one(deep_lm, exact, windows, n):
    context = EvalContext(exact(deep_lm, n), deep_lm, windows)
    figures = JacobianCosine(tokens=30, windows=8, probes=4)(context).figures
    assert figures["jacobian_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert figures["jacobian_across"] == 0.0


def test_shortcuts_past_an_mlp_lower_the_cosine(deep_lm, exact, windows):
    context = EvalContext(exact(deep_lm, 4, leak=1.0), deep_lm, windows)
    figures = JacobianCosine(**EXACT)(context).figures
    assert figures["jacobian_cosine"] < 0.9
    assert figures["jacobian_cosine/mlp_out.0"] == pytest.approx(1.0, abs=1e-5)
    assert 0.2 < figures["jacobian_across"] < 0.8


def test_the_mlps_write_what_they_write_in_their_own_place(deep_lm, layers_of, windows):
    dictionary = layers_of(4)
    x, y = activations(deep_lm, dictionary, windows)
    with torch.enable_grad():
        written = run_mlps(deep_lm, dictionary, x[:30])
    for t, (read, wrote) in enumerate(written):
        torch.testing.assert_close(read[0], x[:30, t])
        torch.testing.assert_close(wrote[0], y[:30, t])
    assert all(not p.requires_grad for p in deep_lm.model.parameters())


def test_nothing_active_has_nothing_in_common(lm, layers_of, windows):
    dictionary = layers_of(2)
    dictionary.encoder.W_enc.zero_()
    dictionary.encoder.b_enc.fill_(-1.0)
    figures = JacobianCosine(**EXACT)(EvalContext(dictionary, lm, windows)).figures
    assert figures["jacobian_cosine"] == 0.0 and figures["jacobian_across"] == 0.0


def test_the_seed_decides_and_batches_do_not(lm, layers_of, windows):
    context = EvalContext(layers_of(2), lm, windows)
    measure = JacobianCosine(tokens=16, windows=4, probes=2)
    first = measure(context).figures
    assert measure(replace(context, batch_windows=1)).figures == first
    assert measure(replace(context, seed=1)).figures != first


def test_only_from_mlp_in_to_the_same_mlps_out(lm, toy, windows):
    for sources, targets in (
        (("resid_post.0",), ("resid_post.0",)),
        (("mlp_in.0",), ("mlp_out.1",)),
        (("resid_mid.0",), ("mlp_out.0",)),
    ):
        context = EvalContext(toy(sources, targets), lm, windows)
        assert JacobianCosine()(context).figures == {}


def test_products_are_sums_over_probes(lm, layers_of, windows):
    dictionary = layers_of(2)
    x, _ = activations(lm, dictionary, windows)
    found = products(lm, dictionary, x[:5], 16, torch.Generator())
    mlp = lm.model.model.layers[1].mlp
    for n in range(5):
        full = jacobian(mlp, x[n, 1])
        assert float(found.model[n, 1]) == pytest.approx(float(full.square().sum()), rel=1e-4)
