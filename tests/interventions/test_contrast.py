"""Concept vectors: what is fitted, on every decoder family; what held-out accuracy says; refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dictlearn
from dictlearn.interventions import fits
from dictlearn.interventions.contrast import Fitting, concept_vector, sites_named
from dictlearn.interventions.texts import texts_of
from tests.families import DECODERS, VOCAB, example

POS = [f"import {name}\n" for name in ("os", "sys", "re", "json", "time", "ast")]
NEG = [f"return {name}\n" for name in ("a", "b", "x", "self", "None", "key")]


def ids(seed: int, n: int) -> list[list[int]]:
    """Sequences of three to eight random ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (n,), generator=generator).tolist()
    return [torch.randint(4, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("family", DECODERS)
def test_a_difference_of_means_is_that_of_the_models_own_hidden_states(family: str):
    lm = example(family).lm
    pos, neg = ids(1, 3), ids(2, 2)
    fitting = Fitting(held_out=0, batch=4)
    vector = concept_vector(lm, pos, neg, "resid_post.0-1", fitting)
    pooled = concept_vector(lm, pos, neg, "resid_post.1", Fitting(pool="mean", held_out=0))

    def states(sequence: list[int]) -> tuple[Tensor, ...]:
        model: Any = lm.model
        return model(torch.tensor([sequence]), output_hidden_states=True).hidden_states

    for layer in (0, 1):
        last = [torch.stack([states(s)[layer + 1][0, -1] for s in side]) for side in (pos, neg)]
        ours = vector.at(f"resid_post.{layer}")
        assert torch.allclose(ours, last[0].mean(0) - last[1].mean(0), atol=1e-5)
    means = [torch.stack([states(s)[2][0].mean(0) for s in side]) for side in (pos, neg)]
    assert torch.allclose(pooled.at(), means[0].mean(0) - means[1].mean(0), atol=1e-5)
    assert vector.accuracy == {"resid_post.0": None, "resid_post.1": None}


def planted(n: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two clouds whose means differ along one axis alone, and that axis."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(20, generator=generator).double(), dim=0)
    both = noise * torch.randn(2, n, 20, generator=generator).double()
    return both[0] + 3 * axis, both[1] - axis, axis


@pytest.mark.parametrize("method", fits.METHODS)
def test_each_method_finds_a_planted_direction_as_long_as_the_means_are_apart(method: Any):
    pos, neg, axis = planted(200, 0.5)
    fitted = fits.fit(pos, neg, method)
    assert float(fitted.unit @ axis) > 0.98
    assert float(fits.scaled(fitted, pos, neg).norm()) == pytest.approx(4, abs=0.1)
    back = fits.fit(neg, pos, method)
    assert torch.allclose(back.unit, -fitted.unit, atol=1e-3)


def test_pca_is_of_differences_and_most_pairs_decide_its_sign():
    differences = torch.tensor([[2.0, 0.1], [2.0, -0.1], [-3.0, 0.0]]).double()
    unit = fits.fit(differences, torch.zeros_like(differences), "pca").unit
    assert torch.allclose(unit, torch.tensor([1.0, 0.0]).double(), atol=0.05)


def test_the_probe_is_a_minimum_of_its_loss():
    pos, neg, _ = planted(30, 2.0)
    w = fits._logistic(pos, neg)
    x = torch.cat([pos, neg])
    x = x - x.mean(0)
    x = x / x.square().mean().sqrt()
    y = torch.cat([torch.ones(30), torch.zeros(30)]).double()
    best = min(  # over the intercept; zero by symmetry of the two sides only if they are
        (torch.linspace(-2, 2, 4001).double()),
        key=lambda b: float(
            torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, y, reduction="sum")
        ),
    )
    gradient = x.T @ (torch.sigmoid(x @ w + best) - y) + w
    assert float(gradient.abs().max()) < 0.05 * float(w.norm())


def test_accuracy_is_of_texts_that_were_held_out():
    lm = dictlearn.open_model("pico").lm
    real = concept_vector(lm, POS, NEG, "resid_post", Fitting(pool="mean"))
    assert min(a for a in real.accuracy.values() if a is not None) > 0.9
    assert real.best in real.sites and len(real.sites) == 4
    mixed = [POS[i] if i % 2 else NEG[i] for i in range(6)]
    rest = [NEG[i] if i % 2 else POS[i] for i in range(6)]
    chance = concept_vector(lm, mixed, rest, "resid_post", Fitting(pool="mean", seeds=20))
    assert max(a for a in chance.accuracy.values() if a is not None) < 0.75
    again = concept_vector(lm, mixed, rest, "resid_post", Fitting(pool="mean", seeds=20))
    assert again.accuracy == chance.accuracy


def test_sites_are_one_a_range_all_or_a_list():
    lm = example("llama").lm
    assert sites_named(lm, "resid_post") == [f"resid_post.{layer}" for layer in range(3)]
    assert sites_named(lm, "mlp_out.1-2") == ["mlp_out.1", "mlp_out.2"]
    assert sites_named(lm, ["resid_post.1", "mlp_in.0"]) == ["mlp_in.0", "resid_post.1"]
    for site, message in {
        "resid_post.3": "has layers 0 to 2",
        "resid_post.2-1": "the first layer comes first",
        "resid_pots": "the sites of",
    }.items():
        with pytest.raises(ValueError, match=message):
            sites_named(lm, site)


@pytest.mark.parametrize(
    ("pos", "neg", "keys", "message"),
    [
        ([], NEG, {}, "pos: has no texts"),
        (POS, [], {}, "neg: has no texts"),
        (POS, [*NEG[:5], " "], {}, "neg: text 6 is empty"),
        (POS, ["x"] * 6, {}, "neg: all 6 texts are the same"),
        (POS, POS[::-1], {}, "pos and neg: both have the text"),
        (POS[:3], NEG[:3], {}, "pos: 3 texts; a held-out accuracy wants at least 4"),
        (POS[:3], NEG, {"method": "pca", "held_out": 0}, "pca: takes differences of pairs"),
        ([*POS, POS[0]], [*NEG, NEG[0]], {}, "the same pair twice"),
        (["import os " * 9999, *POS[1:]], NEG, {}, "tokens; pico reads at most"),
        (POS, NEG, {"site": "resid_post.9"}, "pico has layers 0 to 3"),
        (POS, NEG, {"site": "resid_pre.0"}, "site=resid_pre.0: the activations .* are the same"),
        (POS, NEG, {"method": "median"}, "method='median': want one of mean, pca, logistic"),
        (POS, NEG, {"held_out": 1.0}, "held_out=1.0: want a share from 0 to below 1"),
        (POS, 5, {}, "neg=5: want a list of texts"),
        ("absent.txt", NEG, {}, "pos=absent.txt: it is not there"),
    ],
    ids=str,
)
def test_texts_that_make_no_vector_are_refused(pos: Any, neg: Any, keys: Any, message: str):
    with pytest.raises(ValueError, match=message):
        dictlearn.vector("pico", pos, neg, **keys)


def test_files_have_a_text_a_line(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\ntwo \n")
    (tmp_path / "a.jsonl").write_text('"one\\n"\n{"text": "two"}\n')
    assert texts_of("pos", tmp_path / "a.txt") == ["one", "two "]
    assert texts_of("pos", str(tmp_path / "a.jsonl")) == ["one\n", "two"]
    assert texts_of("pos", "see a.txt|||b") == ["see a.txt", "b"]
    for content in ("[1]\n", '{"txt": "a"}\n', "no json\n"):
        (tmp_path / "b.jsonl").write_text(content)
        with pytest.raises(ValueError, match=r"pos=.*b.jsonl, line 1: want a JSON string"):
            texts_of("pos", tmp_path / "b.jsonl")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no UTF-8"):
        texts_of("pos", tmp_path / "b.txt")
