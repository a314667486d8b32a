"""Compiled loops on as many threads as torch has, and not by torch."""

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
ALONE = 2**20  # numbers that one thread is done with before others have begun
LEAST = 16  # parts of a thread's whole share: the last ones are no smaller


def over(n: int, part: Callable[[int, int], Result], numbers: int | None = None) -> list[Result]:
    """part(low, high) for all of n rows: what each returned, in order. It must not call torch.

    `numbers` is how many the rows come to, where that may be so few that one thread does them all.
    """
    threads = torch.get_num_threads()
    few = numbers is not None and numbers < ALONE
    if threads == 1 or n < 2 or few:
        return [part(0, n)]
    ends = [0]
    while ends[-1] < n:  # a thread takes half of its share of what is left
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


@cache
def _pause() -> Callable[[], object]:
    """Ends the calling thread's OpenMP threads; torch's next parallel part starts them anew.

    After each such part they wait for the next one by spinning, for milliseconds, on the very cores
    that our threads are to run on. New ones take tens of microseconds.
    """
    try:
        pause = ctypes.CDLL("libgomp.so.1").omp_pause_resource_all
    except (OSError, AttributeError):  # this torch has other threads, which are left alone
        return lambda: None
    return lambda: pause(SOFT)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One for each process: threads don't survive a fork."""
    return ThreadPoolExecutor(threads - 1, "dictlearn-kernels")
