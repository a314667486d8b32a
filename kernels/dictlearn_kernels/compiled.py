"""Loops that torch has no call for, compiled by numba for this CPU, and the threads that share them.

A compiled loop goes over rows low to high - 1 of its arrays and lets go of the interpreter's lock, so
that `over` can give parts of it to as many threads as torch has. Every row is summed by one thread in
one order: results don't depend on how many there are.

What is compiled is kept on disk beside its source, or where NUMBA_CACHE_DIR says. numba looks only at
the file that a loop stands in to see whether it has changed: what a loop calls stands there too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from numba import njit
from torch import Tensor

Result = TypeVar("Result")

SOFT = 1  # omp_pause_soft: OpenMP 5.0, section 3.2.44
PARTS = 8  # of a loop for each thread, so that none waits long for the last


def loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled to the arithmetic that is written, in its order."""
    return _compiled(function)


def sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled with leave to add in another order, the same each time: sums over a row go by vectors."""
    return _compiled(function, fastmath={"contract", "reassoc", "nsz"})


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `loop`, but that a product and the sum it goes into are rounded once, where a CPU can."""
    return _compiled(function, fastmath={"contract"})


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder to keep it in: it is compiled again in each process
        return njit(**options)(function)


def over(n: int, part: Callable[[int, int], Result]) -> list[Result]:
    """part(low, high) for all of n rows: what each returned, in order. It must not call torch."""
    threads = torch.get_num_threads()
    if threads == 1 or n < 2:
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


def serves(*tensors: Tensor) -> bool:
    """Whether loops over float32 rows take these, as they are: in float32, side by side, on a CPU."""
    return all(
        t.device.type == "cpu" and t.is_contiguous() and t.dtype == torch.float32 for t in tensors
    )


def array(tensor: Tensor) -> Any:
    """A tensor's memory as a loop takes it."""
    return tensor.detach().numpy()
