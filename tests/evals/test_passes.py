"""Evaluations side by side find the figures of each alone, with fewer forward passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dictlearn.evals.baselines import Baselines
from dictlearn.evals.downstream import Downstream
from dictlearn.evals.evaluation import Evaluation, evaluate_dictionary
from dictlearn.evals.passes import OWN, Passes, SideBySide, digest
from dictlearn.evals.reconstruction import Reconstruction
from dictlearn.lm.language_model import LanguageModel
from dictlearn.verbs.turns import Turns

MAKES = [{"k": 4}, {"k": 4}, {"k": 2}, {"k": 4, "targets": ("resid_post.1",)}]


@pytest.fixture
def count(monkeypatch) -> list[int]:
    calls = [0]
    original = LanguageModel.inputs

    def inputs(self, *args, **kwargs):
        calls[0] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LanguageModel, "inputs", inputs)
    return calls


def side_by_side(evaluates: list[Callable[[Passes], Evaluation]]) -> list[Evaluation]:
    found: dict[int, Evaluation] = {}
    turns: list[Turns] = []
    group = SideBySide(lambda ready: turns[0].hand_over(ready))

    def work(i: int) -> Callable[[], None]:
        def run() -> None:
            side = group.join()
            found[i] = evaluates[i](side)
            side.leave()

        return run

    turns.append(Turns([work(i) for i in range(len(evaluates))]))
    turns[0].run()
    assert not group.results  # nothing is kept when all have left
    return [found[i] for i in range(len(evaluates))]


def test_figures_are_those_of_each_alone(lm, toy, windows, train_windows, count):
    dictionaries = []
    for i, kwargs in enumerate(MAKES):
        torch.manual_seed(i)
        dictionaries.append(toy(**kwargs))

    def evaluation(dictionary) -> Callable[[Passes], Evaluation]:
        evals = {
            "baselines": Baselines(fit_tokens=40),
            "downstream": Downstream(max_tokens=60, chunk_tokens=16),
            "reconstruction": Reconstruction(),
        }
        return lambda passes: evaluate_dictionary(
            dictionary,
            lm,
            windows,
            evals,
            train_windows=train_windows,
            batch_windows=2,
            passes=passes,
        )

    evaluates = [evaluation(dictionary) for dictionary in dictionaries]
    alone, each = [], []
    for evaluate in evaluates:
        before = count[0]
        alone.append(evaluate(OWN))
        each.append(count[0] - before)
    together = side_by_side(evaluates)
    for one, other in zip(alone, together, strict=True):
        # As text, because NaN is not equal to itself.
        assert repr((one.figures, one.rows)) == repr((other.figures, other.rows))
        assert all(torch.equal(series, other.series[key]) for key, series in one.series.items())
    # The first two share all but the passes with their own reconstruction in place.
    before = count[0]
    side_by_side(evaluates[:2])
    batches = -(-len(windows) // 2)
    assert count[0] - before <= each[0] + batches + 2  # and two that probe the head


def test_a_late_one_and_one_that_fails_hold_nobody_up(lm, toy, windows):
    evals = {"reconstruction": Reconstruction()}

    def evaluate(passes: Passes) -> Evaluation:
        return evaluate_dictionary(toy(), lm, windows, evals, batch_windows=1, passes=passes)

    def broken(passes: Passes) -> Evaluation:
        passes.next()
        return Evaluation()

    found = side_by_side([evaluate, broken, evaluate])
    assert found[0].figures and found[2].figures


def test_a_digest_tells_values_shapes_and_dtypes_apart():
    zeros = torch.zeros(4)
    others = [torch.ones(4), zeros.view(2, 2), zeros.double(), torch.zeros(4, dtype=torch.int32)]
    assert len({digest(tensor) for tensor in [zeros, *others]}) == 5
    assert digest(torch.eye(3).T, torch.eye(3)[1]) == digest(torch.eye(3), torch.eye(3)[:, 1])
