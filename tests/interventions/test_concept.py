"""The parts of a concept study: areas, what counts as whole, settings, and the concept of a text."""

from __future__ import annotations

from typing import Any

import pytest

from dictlearn.interventions.concept.outputs import parses_python, repetition
from dictlearn.interventions.concept.pareto import area, summary
from dictlearn.interventions.concept.settings import ConceptStudy
from dictlearn.lm.load import load_model
from dictlearn.verbs.concept import has_concept


def test_an_area_is_the_mean_of_the_best_gain_within_each_budget():
    assert area([], 0.5) == 0
    assert area([(0.1, 0.4)], 0.5) == pytest.approx(0.4 * 0.4 / 0.5)
    steps = [(0.3, 0.5), (0.1, 0.2), (0.2, 0.1), (0.9, 1.0)]  # the second buys less than the first
    assert area(steps, 0.5) == pytest.approx((0.2 * 0.2 + 0.2 * 0.5) / 0.5)
    assert area([(0.1, -0.3)], 0.5) == 0  # no change is always to be had


def cell(method: str, strength: float | None, seed: int, rate: float, kl: float) -> dict[str, Any]:
    figures = {"rate": rate, "kl": kl, "ce_increase": kl, "whole": None, "repetition": 0.0}
    return {"method": method, "strength": strength, "seed": seed, **figures}


def test_methods_stand_by_area_and_a_loss_counts_where_fewer_are_wanted():
    cells = [cell("none", None, seed, 0.5, 0.0) for seed in (0, 1)]
    cells += [cell("add", 1.0, seed, 0.9, 0.25) for seed in (0, 1)]
    cells += [cell("mean", 1.0, seed, 0.1, 0.25) for seed in (0, 1)]
    more = summary(cells, ["mean", "add"], "more", 0.5)
    fewer = summary(cells, ["mean", "add"], "fewer", 0.5)
    assert [row["method"] for row in more] == ["none", "add", "mean"]
    assert [row["method"] for row in fewer] == ["none", "mean", "add"]
    assert more[1]["area"]["mean"] == pytest.approx(0.2) and more[2]["area"]["mean"] == 0
    assert "whole" not in more[1]["points"][0]
    assert more[1]["points"][0]["rate"] == {"mean": 0.9, "low": 0.9, "high": 0.9}


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("def f(x):\n    return x\n", True),
        ("    def f(self):\n        return 1\n\n    def g(self", True),  # stops in a statement
        ("        if x:\n", True),
        ("    def f(self):\n        return 1\nx = 2\n", True),
        ("def f(x):\n    retrun x\n    a\n    b\n    c\n    d\n    e\n", False),
        ("def f():\n        '\n  x\n y\n z\n a b\n", False),
    ],
)
def test_a_text_is_whole_if_python_parses_all_but_its_end(text: str, whole: bool):
    assert parses_python(text) is whole


def test_repetition_is_the_share_of_runs_seen_before():
    assert repetition([1, 2, 3]) == 0 and repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1] * 8) == pytest.approx(1 - 1 / 5)


def test_a_literal_of_rules_is_a_concept_too():
    lm = load_model("pico")
    has = has_concept(lm, ConceptStudy(after="x", slot="inside", value="a comment"))
    assert has("x = 1  # the answer\n") and not has("x = 1\n") and not has("")
    with pytest.raises(ValueError, match=r"study.slot=insid: want one of token, "):
        has_concept(lm, ConceptStudy(after="x", slot="insid", value="a comment"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "study.pattern: want a pattern"),
        ({"pattern": "a", "slot": "kind", "value": "b"}, "study.pattern: want a pattern"),
        ({"pattern": "("}, "study.pattern: no regular expression"),
        ({"pattern": "a", "methods": ["ad"]}, "study.methods: ad: want one of set, add"),
        ({"pattern": "a", "methods": ["add@once"]}, "a gate is @token or @input"),
        ({"pattern": "a", "methods": ["prefix"]}, "study.prefix: the method prefix wants a text"),
    ],
)
def test_settings_are_refused_by_key(keys: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ConceptStudy(after="x", **keys)


def test_every_cell_comes_once_and_methods_without_strength_once_a_seed():
    study = ConceptStudy(after="x", pattern="a", methods=["add", "zero"], strengths=[1, 2], seeds=2)
    cells = study.cells()
    assert len(cells) == len(set(cells)) == 2 * (1 + 2 + 1)
    assert cells[0] == ("none", None, 0) and ("zero", None, 1) in cells
