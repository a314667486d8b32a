"""What is said of a finished run: that it diverged, and that it missed the L0 that was asked for."""

from __future__ import annotations

from functools import partial

import pytest

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.objectives.gated import GateL1
from dictlearn.objectives.l0_target import L0Target
from dictlearn.objectives.l1 import L1
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.protocol import Term
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.objectives.tanh_l0 import TanhL0
from dictlearn.train.trainee import Trainee
from dictlearn.verbs.verdict import diverged, sentences
from tests.dictionaries import SPARSITIES


def trainee(sparsity: str, term: Term | None = None, sites: int = 1) -> Trainee:
    names = tuple(f"mlp_in.{i}" for i in range(sites))
    shape = Shape("plt", names, names, width=8, n_features=40, k=10)
    objective = Objective({"reconstruction": Reconstruction(), "penalty": term})
    return Trainee(Dictionary(shape, SPARSITIES[sparsity]), objective, "none", 100)


def test_a_run_whose_fvu_was_not_asked_for_is_not_called_diverged() -> None:
    """As with eval=sparsity."""
    one = trainee("topk")
    assert not diverged(one, {"l0": 10.0}) and sentences(one, {"l0": 10.0}) == []


@pytest.mark.parametrize(
    ("fvu", "start", "bad"),
    [
        (0.2, 0.9, False),
        (1.4, 0.9, False),  # a few steps: no worse than nothing
        (8.0, 9.0, False),  # an untrained ReLU of many features overshoots
        (8.0, 1.0, True),
        (1e9, 9.0, True),
        (float("inf"), 0.9, True),
        (None, 0.9, True),
    ],
)
def test_a_run_has_diverged_where_it_ends_far_worse_than_it_began(fvu, start, bad):
    one = trainee("topk")
    one.start_fvu.fill_(start)
    assert diverged(one, {"fvu": fvu}) is bad
    said = sentences(one, {"fvu": fvu, "l0": 99.0})
    assert any("The run diverged" in sentence for sentence in said) is bad


def test_an_objective_without_squared_error_is_not_judged_by_it():
    one = trainee("topk")
    one.objective = Objective({"penalty": L1(1.0)})
    assert not diverged(one, {"fvu": 50.0})
    assert diverged(one, {"fvu": None})


@pytest.mark.parametrize(
    ("sparsity", "term", "l0", "words"),
    [
        ("relu", partial(L1, 2.0), 15.0, "50% above 10, which dict.k asks for: a larger"),
        ("relu", partial(L1, 2.0), 5.0, "a smaller objective.terms.penalty.coefficient than 2"),
        ("gated", partial(GateL1, 2.0), 15.0, "a larger objective.terms.penalty.coefficient"),
        ("jumprelu", partial(TanhL0, 2.0), 15.0, "a larger objective.terms.penalty.coefficient"),
        ("jumprelu", partial(L0Target, 10.0), 15.0, "more steps, or a larger"),
    ],
)
def test_an_l0_that_is_missed_by_a_fifth_is_said_with_what_to_do(sparsity, term, l0, words):
    one = trainee(sparsity, term())
    (said,) = sentences(one, {"fvu": 0.5, "l0": l0})
    assert words in said and f"L0 is {l0:.3g} active features per token" in said
    assert sentences(one, {"fvu": 0.5, "l0": 11.9}) == []


def test_the_target_of_several_sources_is_that_of_all():
    one = trainee("jumprelu", L0Target(10.0), sites=3)
    assert sentences(one, {"fvu": 0.5, "l0": 31.0}) == []
    (said,) = sentences(one, {"fvu": 0.5, "l0": 10.0})
    assert "67% below 30" in said and "dict.k=10 for each of 3 sources" in said


def test_who_keeps_k_by_construction_is_not_judged():
    assert sentences(trainee("topk"), {"fvu": 0.5, "l0": 1.0}) == []
