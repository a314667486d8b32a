"""The replacement model, against a model whose MLP modules are really replaced."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch

from dictlearn.evals.context import EvalContext
from dictlearn.evals.observe import observe_tokens
from dictlearn.evals.replacement import FIGURES, SETTINGS, ReplacementModel, subsets
from dictlearn.evals.sparsity import Sparsity
from dictlearn.lm.language_model import freeze
from tests.formulas import kl_per_token


def run(lm, dictionary, windows, batch_windows=8, **options):
    context = EvalContext(dictionary, lm, windows, None, len(windows) * 12, batch_windows)
    meter = ReplacementModel(**options).begin(context)
    for start in range(0, len(windows), batch_windows):
        some = range(start, min(start + batch_windows, len(windows)))
        meter.update(observe_tokens(context, windows.window_batch(some), windows.kept(some)))
    return meter.result()


@contextmanager
def modules_replaced(lm, dictionary, subset, valid, monkeypatch):
    """Every MLP keeps what it reads; those of the subset answer with the dictionary instead."""
    x = {}

    def replace(t, module):
        own = module.forward

        def forward(h):
            x[t] = h
            out = own(h)
            if t not in subset:
                return out
            stack = torch.stack([x.get(s, h) for s in range(dictionary.n_sources)], 2)
            y_hat = dictionary(stack.flatten(0, 1))[:, t].view_as(h)  # later sources don't matter
            return torch.where(valid[..., None], y_hat, out)

        monkeypatch.setattr(module, "forward", forward)

    with monkeypatch.context() as monkeypatch:
        for t, layer in enumerate(lm.model.model.layers):
            replace(t, layer.mlp)
        yield


def kl_with_modules(lm, dictionary, subset, windows, monkeypatch):
    tokens = windows.window_batch(range(len(windows)))
    valid = windows.kept(range(len(windows)))
    scored = valid.clone()
    scored[:, -1] = False
    scored[:, :-1] &= valid[:, 1:]
    clean = lm.logits(tokens)[scored]
    with modules_replaced(lm, dictionary, subset, valid, monkeypatch):
        replaced = lm.logits(tokens)[scored]
    return float(kl_per_token(clean, replaced).double().mean())


@pytest.mark.parametrize("link", ["diagonal", "lower"])
def test_free_running_is_the_model_with_its_modules_replaced(
    deep_lm, layers_of, windows, monkeypatch, link
):
    dictionary = layers_of(4, link)
    figures = run(deep_lm, dictionary, windows).figures
    halves = [(0, 2), (1, 3)]
    for setting, chosen in {"all_free": [range(4)], "half_free": halves}.items():
        expected = [kl_with_modules(deep_lm, dictionary, c, windows, monkeypatch) for c in chosen]
        mean = sum(expected) / len(expected)
        assert figures[f"replacement/{setting}/kl"] == pytest.approx(mean, rel=1e-4)
        assert mean > 0.01


@pytest.mark.parametrize("link", ["diagonal", "lower"])
def test_one_layer_free_running_is_one_layer_teacher_forced(
    deep_lm, layers_of, windows, monkeypatch, link
):
    dictionary = layers_of(4, link)
    alone = [kl_with_modules(deep_lm, dictionary, [t], windows, monkeypatch) for t in range(4)]
    figures = run(deep_lm, dictionary, windows).figures
    assert figures["replacement/one/kl"] == pytest.approx(sum(alone) / 4, rel=1e-4)


def test_teacher_forced_layers_do_not_read_each_other(deep_lm, layers_of, windows):
    """Adding an error to what layer 0 writes leaves every later reconstruction as it was."""
    dictionary = layers_of(4)
    figures = run(deep_lm, dictionary, windows).figures
    for layers in ("half", "all"):
        forced, free = (figures[f"replacement/{layers}_{mode}/kl"] for mode in ("forced", "free"))
        assert abs(forced - free) > 1e-4


def test_an_exact_dictionary_scores_one_everywhere(deep_lm, exact, windows):
    figures = run(deep_lm, exact(deep_lm, 4), windows).figures
    for setting in SETTINGS:
        assert figures[f"replacement/{setting}/kl"] == pytest.approx(0.0, abs=1e-5)
        assert figures[f"replacement/{setting}/score"] == pytest.approx(1.0, abs=1e-4)
        assert figures[f"replacement/{setting}/top1_agreement"] == 1.0


def test_a_dictionary_of_zeros_scores_zero_everywhere(deep_lm, layers_of, windows):
    dictionary = layers_of(4)
    dictionary.decoder.W_dec.zero_()
    dictionary.decoder.b_dec.zero_()
    figures = run(deep_lm, dictionary, windows).figures
    for setting in SETTINGS:
        assert figures[f"replacement/{setting}/score"] == pytest.approx(0.0, abs=1e-5)
        assert figures[f"replacement/{setting}/kl"] > 0.01


def test_masked_tokens_are_clean_and_not_even_encoded(deep_lm, layers_of, windows, monkeypatch):
    dictionary = layers_of(4)
    seen = []
    encode = dictionary.encode_source
    monkeypatch.setattr(
        dictionary, "encode_source", lambda x, s: seen.append(len(x)) or encode(x, s)
    )
    run(deep_lm, dictionary, windows)
    valid = windows.kept(range(len(windows)))
    assert set(seen) == {int(valid.sum())}
    assert len(seen) == 4 + 2 + 2  # each source once in each of the three free-running passes


def test_figures_do_not_depend_on_chunks_or_batches(deep_lm, layers_of, windows):
    dictionary = layers_of(4, "lower")
    whole = run(deep_lm, dictionary, windows).figures
    assert set(whole) == {"replacement/scored_tokens"} | {
        f"replacement/{setting}/{figure}" for setting in SETTINGS for figure in FIGURES
    }
    for options in ({"batch_windows": 3}, {"chunk_tokens": 5}):
        assert run(deep_lm, dictionary, windows, **options).figures == pytest.approx(
            whole, rel=1e-4
        )
    half = run(deep_lm, dictionary, windows, max_tokens=48).figures
    assert half["replacement/scored_tokens"] < 0.6 * whole["replacement/scored_tokens"]


def test_there_is_nothing_to_say_of_one_target_a_shared_code_or_an_encoder(
    lm, toy, layers_of, windows
):
    assert run(lm, toy(), windows).figures == {}
    assert run(lm, layers_of(2, "shared"), windows).figures == {}
    headless = freeze(lm.model.base_model, name="tiny encoder")
    assert run(headless, layers_of(2), windows).figures == {}


def test_halves_are_every_other_layer():
    assert subsets(5)["half"] == [(0, 2, 4), (1, 3)]
    assert subsets(2)["half"] == subsets(2)["one"]


def test_a_shared_code_counts_once_per_token(deep_lm, layers_of, windows):
    dictionary = layers_of(4, "shared")
    context = EvalContext(dictionary, deep_lm, windows)
    meter = Sparsity().begin(context)
    meter.update(observe_tokens(context, windows.window_batch(range(8)), windows.kept(range(8))))
    result = meter.result()
    assert result.series["density"].shape == (1, 24)
    assert 0 < result.figures["l0"] <= 4 and math.isfinite(result.figures["dead"])
