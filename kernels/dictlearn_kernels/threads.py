"""Work that is shared out among as many threads as torch has, and not by torch.

`over` is for compiled loops, `each` for many small calls of torch: one thread for a call and several
calls at a time keep what a call reads in one core's cache, and nobody waits at the end of each.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

SOFT = 1  # omp_pause_soft: OpenMP 5.0, section 3.2.44
ALONE = 2**20  # numbers that one thread is done with before others have begun
PARTS = 8  # of a loop for each thread, so that none waits long for the last


def over(n: int, part: Callable[[int, int], Result], numbers: int | None = None) -> list[Result]:
    """part(low, high) for all of n rows: what each returned, in order. It must not call torch.

    `numbers` is how many the rows come to, where that may be so few that one thread does them all.
    """
    threads = torch.get_num_threads()
    few = numbers is not None and numbers < ALONE
    if threads == 1 or n < 2 or few:
        return [part(0, n)]
    size = -(-n // (PARTS * threads))
    lows = range(0, n, size)
    waiting = iter(enumerate(lows))
    results: list[Any] = [None] * len(lows)

    def work() -> None:
        for i, low in waiting:
            results[i] = part(low, min(low + size, n))

    _pause()()
    others = [_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()
    return results


def each(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Every job on a thread of its own, where torch's calls take no other: what they returned.

    No job builds a graph. There are at most as many jobs as torch has threads.
    """
    threads = torch.get_num_threads()

    def alone(job: Callable[[], Result]) -> Result:
        torch.set_num_threads(1)  # of this thread's calls
        with torch.no_grad():
            return job()

    if len(jobs) < 2:
        with torch.no_grad():
            return [job() for job in jobs]
    _pause()()
    others = [_pool(os.getpid(), threads).submit(alone, job) for job in jobs[1:]]
    try:
        first = alone(jobs[0])
    finally:
        wait(others)
        torch.set_num_threads(threads)
    return [first, *(other.result() for other in others)]


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
