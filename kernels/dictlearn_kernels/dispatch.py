"""Which implementation an operation runs, decided in one place and told once.

    triton      a kernel of our own, on CUDA tensors
    fixed       16-bit integers and float32 after them, on a CPU's that multiplies those faster
    compiled    a loop of our own, on a CPU's
    cpu         a few calls of torch that are fast on a CPU
    reference   the plain specification: what an operation means, whatever it costs

`auto` takes the first that serves the tensors at hand. `reference` takes the specification always;
`triton` takes the kernel always, on CPU tensors too under TRITON_INTERPRET=1, and raises where there
is none: tests compare with the one and force the other.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.compiler import is_compiling

MODES = ("auto", "reference", "triton")

_mode = "auto"
_told: dict[str, dict[str, None]] = {}  # op -> what it has run as, in order, each once


def mode() -> str:
    return _mode


def use(mode: str) -> None:
    """Sets the mode for the whole process. Raises ValueError if it is not one of MODES."""
    global _mode
    if mode not in MODES:
        raise ValueError(f"kernels={mode}: want {', '.join(MODES[:-1])} or {MODES[-1]}")
    _mode = mode


@contextmanager
def using(mode: str) -> Iterator[None]:
    """`use` for a while."""
    before = _mode
    use(mode)
    try:
        yield
    finally:
        use(before)


def choose(
    op: str,
    tensor: Tensor,
    unserved: str | None = None,
    compiled: bool = False,
    fixed: bool = False,
) -> str:
    """`triton`, `fixed`, `compiled`, `cpu` or `reference` for this call of `op`, noted for `summary`.

    `unserved` is why no kernel serves these tensors (a dtype, a size), None where one does. On a GPU
    such a call runs as `cpu` does, a few calls of torch, and the summary gives the reason.
    `compiled` says whether a compiled loop serves them on a CPU, `fixed` whether fixed point does.
    """
    chosen, note = _choose(op, tensor, unserved, compiled, fixed)
    _told.setdefault(op, {})[note] = None
    return chosen


def _choose(
    op: str, tensor: Tensor, unserved: str | None, compiled: bool, fixed: bool
) -> tuple[str, str]:
    if _mode == "reference":
        return "reference", "reference"
    if _mode == "triton":
        if unserved:
            raise ValueError(f"kernels=triton: {op} has no kernel for {unserved}")
        return "triton", "triton"
    if not tensor.is_cuda and fixed:
        return "fixed", f"16-bit fixed point on {tensor.device.type}"
    if not tensor.is_cuda and compiled:
        return "compiled", f"compiled loops on {tensor.device.type}"
    if not tensor.is_cuda:
        return "cpu", f"torch on {tensor.device.type}"
    if unserved is None and not has_triton():
        unserved = "anything: triton is not installed"
    if unserved:
        return "cpu", f"torch on {tensor.device.type}, slow: there is no kernel for {unserved}"
    return "triton", "triton"


def by_loops(entries: Tensor) -> bool:
    """Whether a sparse matrix's entries are put elsewhere by loops of our own (`csr`).

    That file is imported only where it is asked for: numba takes its time.
    """
    return entries.device.type == "cpu" and mode() == "auto" and not is_compiling()


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def summary() -> dict[str, str]:
    """What every operation has run as since the last `forget`, for people."""
    return {op: "; ".join(notes) for op, notes in sorted(_told.items())}


def lines() -> list[str]:
    """The summary for a console: a line for each way of running, and who runs that way."""
    by_note: dict[str, list[str]] = {}
    for op, note in summary().items():
        by_note.setdefault(note, []).append(op)
    return [f"{note}: {', '.join(ops)}" for note, ops in by_note.items()]


def forget() -> None:
    _told.clear()
