"""One pass feeds every eval; the text is chosen and named so that anyone can repeat it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dictlearn.dicts.description import from_json
from dictlearn.evals.baselines import Baselines
from dictlearn.evals.context import MEAN_ABLATION, EvalContext, EvalResult
from dictlearn.evals.downstream import Downstream
from dictlearn.evals.evaluation import evaluate_dictionary, run_evals
from dictlearn.evals.observe import before_padding, observe, window_batches
from dictlearn.evals.reconstruction import Reconstruction
from dictlearn.evals.sparsity import Sparsity
from tests.evals.conftest import _tiny_lm


def all_evals():
    return {
        "downstream": Downstream(),
        "reconstruction": Reconstruction(),
        "baselines": Baselines(fit_tokens=10_000),
        "sparsity": Sparsity(),
    }


def test_every_row_has_every_figure_that_makes_sense_for_it(lm, toy, windows, train_windows):
    evaluation = evaluate_dictionary(
        toy(), lm, windows, all_evals(), train_windows=train_windows, n_tokens=1000
    )
    for figures in (evaluation.figures, *evaluation.rows.values()):
        assert {"fvu", "fvu_with_special", "cosine", "ce_increase", "kl", "top1_agreement"} <= (
            figures.keys()
        )
    assert {"l0", "dead", "high_density", "tokens", "density_p50"} <= evaluation.figures.keys()
    assert list(evaluation.rows) == ["PCA, rank 4", MEAN_ABLATION, "zero ablation"]


def test_mean_fitted_on_the_evaluated_text_has_an_fvu_of_one(lm, toy, windows, train_windows):
    same = evaluate_dictionary(toy(), lm, windows, all_evals(), train_windows=windows)
    assert same.rows[MEAN_ABLATION]["fvu"] == pytest.approx(1.0, rel=1e-6)
    held_out = evaluate_dictionary(toy(), lm, windows, all_evals(), train_windows=train_windows)
    assert held_out.rows[MEAN_ABLATION]["fvu"] > 1.0


def test_figures_do_not_depend_on_the_batch_of_windows(lm, toy, windows, train_windows):
    dictionary = toy()
    one, three = (
        evaluate_dictionary(
            dictionary, lm, windows, all_evals(), train_windows=train_windows, batch_windows=b
        )
        for b in (1, 3)
    )
    assert one.tokens_sha256 == three.tokens_sha256
    assert one.figures == pytest.approx(three.figures, rel=1e-4)


def test_fingerprint_names_the_text(lm, toy, windows, train_windows):
    evals = {"sparsity": Sparsity()}
    first = evaluate_dictionary(toy(), lm, windows, evals)
    assert evaluate_dictionary(toy(), lm, windows, evals).tokens_sha256 == first.tokens_sha256
    assert evaluate_dictionary(toy(), lm, train_windows, evals).tokens_sha256 != first.tokens_sha256


def test_padding_is_never_seen_and_special_tokens_are_marked(lm, toy, windows):
    context = EvalContext(toy(), lm, windows, batch_windows=8)
    (seen,) = observe(context, windows, 10_000)
    assert len(seen.batch.tokens_N) == 8 * 12 - 3
    assert 4 not in seen.batch.tokens_N
    assert seen.batch.tokens_N[~seen.valid_N].unique().tolist() == [3]
    assert seen.batch.positions_N[:13].tolist() == [*range(12), 0]


def test_text_ends_at_the_last_valid_token():
    valid = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    expected = [[1, 1, 1, 1, 0, 0], [0] * 6, [1] * 6]
    assert before_padding(valid).int().tolist() == expected


def test_windows_are_spread_over_the_split(windows):
    assert window_batches(windows, n_tokens=37, batch_windows=3) == [[0, 2, 4], [6]]
    assert sum(window_batches(windows, n_tokens=10**9, batch_windows=3), []) == list(range(8))


def test_any_callable_is_an_eval(toy):
    def n_features(context: EvalContext) -> EvalResult:
        return EvalResult({"n_features": float(context.dictionary.n_features)})

    assert run_evals(EvalContext(toy()), {"mine": n_features}).figures == {"n_features": 24.0}


def test_a_dictionary_of_another_width_is_refused(lm, toy, windows):
    with pytest.raises(ValueError, match="width 8, but those of tiny have width 16"):
        evaluate_dictionary(toy(width=8), lm, windows, all_evals())


def test_a_site_the_model_lacks_is_refused_by_name(lm, toy, windows):
    dictionary = toy(("resid_post.7",), ("resid_post.7",))
    with pytest.raises(ValueError, match="tiny has layers 0 to 1"):
        evaluate_dictionary(dictionary, lm, windows, {"sparsity": Sparsity()})


def test_text_without_a_valid_token_is_refused(lm, toy, windows):
    windows = copy.deepcopy(windows)
    windows.tokens_WP[:] = 3
    with pytest.raises(ValueError, match="no tokens to evaluate on"):
        evaluate_dictionary(toy(), lm, windows, {"sparsity": Sparsity()})


def test_progress_ends_at_the_whole(lm, toy, windows):
    steps = []
    evaluate_dictionary(
        toy(),
        lm,
        windows,
        {"sparsity": Sparsity()},
        batch_windows=3,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert len(steps) == 3 and steps[-1][0] == steps[-1][1]


def test_reading_before_the_gain_gives_the_figures_of_reading_after_it(windows):
    lm = _tiny_lm()
    norm = lm.model.get_submodule("model.layers.1.post_attention_layernorm")
    with torch.no_grad():
        norm.get_parameter("weight").uniform_(0.5, 2.0)
    about: dict[str, Any] = {
        "kind": "transcoder",
        "width": lm.info.width,
        "n_features": 40,
        "k": 1.0,
    }
    about |= {"targets": ["mlp_out.1"], "sparsity": {"name": "relu"}}
    after: Any = from_json(about | {"sources": ["mlp_in.1"]}).eval()
    before: Any = from_json(about | {"sources": ["mlp_norm.1"]}).eval()
    before.load_state_dict(after.state_dict())
    before.encoder.W_enc.data.mul_(norm.get_parameter("weight"))
    evals = {"downstream": Downstream(), "reconstruction": Reconstruction()}
    found, wanted = (
        evaluate_dictionary(one, lm, windows, evals, n_tokens=1000).figures
        for one in (before, after)
    )
    assert found.keys() == wanted.keys() and {"fvu", "ce_increase"} <= wanted.keys()
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_a_standardised_site_is_patched_on_the_tokens_own_scale(lm, toy, windows):
    """The identity, read and written standardised, changes no logit."""
    site = "resid_post.0:standardised"
    same = toy((site,), (site,), k=None)
    evals = {"downstream": Downstream(), "reconstruction": Reconstruction()}
    figures = evaluate_dictionary(same, lm, windows, evals, n_tokens=1000).figures
    assert figures["fvu"] < 1e-9 and abs(figures["ce_increase"]) < 1e-6
