"""Compiled loops on as many threads as torch uses, in a pool of our own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

SOFT = 1  # omp_pause_soft: OpenMP 5.0, section 3.2.44
ALONE = 2**20  # one thread is done with fewer numbers before others have started
LEAST = 16  # no part is smaller than a thread's share divided by this


def over(n: int, part: Callable[[int, int], Result], numbers: int | None = None) -> list[Result]:
    """The results of part(low, high) over all of n rows, in order. `part` must not call torch.

    `numbers` is the size of all rows together, if it may be so small that one thread is faster.
    """
    threads = torch.get_num_threads()
    few = numbers is not None and numbers < ALONE
    if threads == 1 or n < 2 or few:
        return [part(0, n)]
    ends = [0]
    while ends[-1] < n:  # a part is half of a thread's share of the remaining rows
        half = -(-(n - ends[-1]) // (2 * threads))
        ends.append(min(ends[-1] + max(half, -(-n // (LEAST * threads))), n))
    waiting = iter(enumerate(pairwise(ends)))
    results: list[Any] = [None] * (len(ends) - 1)

    def work() -> None:
        for i, (low, high) in waiting:
            results[i] = part(low, high)

    _pause()()
    others = [_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()
    return results


def rest() -> None:
    """Ends the OpenMP threads of the calling thread, before another one begins to compute."""
    if torch.get_num_threads() > 1:
        _pause()()


@cache
def _pause() -> Callable[[], object]:
    """A function that ends the calling thread's OpenMP threads; torch starts new ones when it needs them.

    After a parallel part they spin for milliseconds, waiting for the next one, on the cores that our
    threads are to run on. Starting new ones takes tens of microseconds.
    """
    try:
        pause = ctypes.CDLL("libgomp.so.1").omp_pause_resource_all
    except (OSError, AttributeError):  # this torch uses another library for its threads
        return lambda: None
    return lambda: pause(SOFT)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One pool for each process, because threads don't survive a fork."""
    return ThreadPoolExecutor(threads - 1, "dictlearn-kernels")
