"""Several runs in one process, in turns: each has a thread, and only one of them runs at a time.

Code that was written for one run per process then serves several: a run keeps its stack and its local
variables, and what the process has only once (random states, counts, sys.argv) is put back when its
turn comes. Whose turn it is depends only on where the runs hand over, so results don't depend on time.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import final

from dictlearn_kernels import memory, threads, topk_encode
from hydra.core.hydra_config import HydraConfig

from dictlearn.ckpt import rng
from dictlearn.stopping import Stopped
from dictlearn.train.callbacks import signals


@final
class Turns:
    """Calls functions in turns; none may raise."""

    def __init__(self, works: Sequence[Callable[[], None]]):
        self._works = works
        self._ready: list[Callable[[], bool] | None] = [lambda: True] * len(
            works
        )  # None: at its end
        self._gates = [threading.Semaphore(0) for _ in works]
        self._over = threading.Event()
        self._current = len(works) - 1
        self._buffers: memory.Pieces = {}
        self._start: Callable[[], None] = lambda: None

    def run(self) -> int | None:
        """Returns when all are at their end: the signal that has asked them to stop, if one has."""
        each = [
            threading.Thread(target=self._whole, args=(number,), daemon=True, name=f"run {number}")
            for number in range(len(self._works))
        ]
        before = _Process()
        self._start = before.restore  # a run begins with what the process has now
        with signals.asking_all():
            for thread in each:
                thread.start()
            self._open(self._next())
            while not self._over.wait(0.2):  # a signal's handler runs between two waits
                pass
            stopped = signals.asked()
        for thread in each:
            thread.join()
        before.restore()
        return stopped

    def hand_over(self, ready: Callable[[], bool], stops: bool = False) -> None:
        """Lets the others run; returns in this one's turn, once `ready()` is true.

        Raises:
            Stopped: with `stops`, if a signal has come.
        """
        own = self._current
        self._ready[own] = ready
        following = self._next()
        if following != own:
            process = _Process()
            self._open(following)
            self._gates[own].acquire()
            process.restore()
        if stops and signals.asked() is not None:
            raise Stopped(128 + (signals.asked() or 0))

    def _whole(self, number: int) -> None:
        self._gates[number].acquire()
        self._start()
        memory.share(self._buffers)
        try:
            self._works[number]()
        finally:
            self._ready[number] = None
            threads.rest()
            if any(self._ready):
                self._open(self._next())
            else:
                self._over.set()

    def _next(self) -> int:
        """The first that is ready, of those after the one that runs; that one comes last."""
        n = len(self._works)
        for number in [(self._current + step) % n for step in range(1, n + 1)]:
            ready = self._ready[number]
            if ready is not None and ready():
                return number
        raise AssertionError("every run waits for another one")

    def _open(self, number: int) -> None:
        self._current = number
        self._gates[number].release()


class _Process:
    """What the process has once and every run has as its own."""

    def __init__(self) -> None:
        threads.rest()
        self._random = rng.collect()
        self._hydra = HydraConfig.instance().cfg
        self._arguments, self._folder = sys.argv, os.getcwd()
        self._flagged = topk_encode.flagged()

    def restore(self) -> None:
        rng.restore(self._random)
        HydraConfig.instance().cfg = self._hydra
        sys.argv = self._arguments
        os.chdir(self._folder)
        topk_encode.restore(*self._flagged)
