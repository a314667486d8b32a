"""Runs that take turns keep what the process has once as their own."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import numpy as np
import torch
from dictlearn_kernels import memory, topk_encode

from dictlearn.verbs.turns import Turns


def test_random_states_arguments_and_counts_belong_to_a_run(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dictlearn"])

    def drawn(seed: int, between: Callable[[], None]) -> list[object]:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        topk_encode.restore(seed, 100)
        sys.argv = [str(seed)]
        seen: list[object] = []
        for _ in range(3):
            between()
            seen += [float(torch.rand(())), random.random(), float(np.random.rand())]
            seen += [topk_encode.flagged(), sys.argv[0]]
        return seen

    expected = [drawn(seed, lambda: None) for seed in (1, 2)]
    got: dict[int, list[object]] = {}
    turns: list[Turns] = []

    def work(seed: int) -> Callable[[], None]:
        return lambda: got.update({seed: drawn(seed, lambda: turns[0].hand_over(lambda: True))})

    turns.append(Turns([work(1), work(2)]))
    assert turns[0].run() is None
    assert [got[1], got[2]] == expected
    topk_encode.forget()


def test_the_turn_goes_round_to_those_that_are_ready() -> None:
    order: list[str] = []
    turns: list[Turns] = []

    def work(name: str, waits_for: str | None) -> Callable[[], None]:
        def run() -> None:
            for part in "12":
                turns[0].hand_over(lambda: waits_for is None or waits_for in order)
                order.append(name + part)

        return run

    turns.append(Turns([work("a", "c2"), work("b", None), work("c", None)]))
    turns[0].run()
    assert order == ["b1", "c1", "b2", "c2", "a1", "a2"]


def test_large_buffers_are_shared(monkeypatch) -> None:
    monkeypatch.setattr(memory, "RETURNED", 1)
    addresses: list[int] = []
    work = lambda: addresses.append(memory.kept(64, torch.float32).data_ptr())  # noqa: E731
    Turns([work, work, work]).run()
    assert len(set(addresses)) == 1
