"""Which implementation an operation runs: chosen in one place, and reported once.

    triton      a kernel of Triton, on a GPU
    fixed       16-bit fixed point, then float32, on a CPU that multiplies int16 faster
    compiled    a loop compiled by numba, on a CPU
    cpu         a few calls of torch that are fast on a CPU
    reference   the plain specification, whatever it costs

The mode `auto` takes the first that serves the given tensors. `reference` always takes the
specification. `triton` always takes the kernel, on CPU tensors too under TRITON_INTERPRET=1, and raises
where there is none. Tests compare with `reference` and force `triton`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.compiler import is_compiling

MODES = ("auto", "reference", "triton")

_mode = "auto"
_notes: dict[str, dict[str, None]] = {}  # op -> what it has run as, in order, each once


def mode() -> str:
    return _mode


def use(mode: str) -> None:
    """Sets the mode of the whole process. Raises ValueError if it is not one of MODES."""
    global _mode
    if mode not in MODES:
        raise ValueError(f"kernels={mode}: want {', '.join(MODES[:-1])} or {MODES[-1]}")
    _mode = mode


@contextmanager
def using(mode: str) -> Iterator[None]:
    """Sets the mode inside a `with` block."""
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

    `unserved` is the reason why no kernel of Triton serves these tensors (a dtype, a size), or None. On
    a GPU such a call runs as `cpu`, and the summary gives the reason. `compiled` and `fixed` say whether
    a compiled loop, or fixed point, serves them on a CPU.
    """
    chosen, note = _choose(op, tensor, unserved, compiled, fixed)
    _notes.setdefault(op, {})[note] = None
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


def loops_serve(*tensors: Tensor) -> bool:
    """Whether compiled loops take these: float32 on a CPU, outside of torch.compile."""
    served = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return served and not is_compiling()


def by_loops(entries: Tensor) -> bool:
    """Whether the loops of `csr` rearrange a sparse matrix's entries.

    Callers import `csr` only then, because importing numba takes a while.
    """
    return entries.device.type == "cpu" and mode() == "auto" and not is_compiling()


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def summary() -> dict[str, str]:
    """What every operation has run as since the last `forget`, as text."""
    return {op: "; ".join(notes) for op, notes in sorted(_notes.items())}


def lines() -> list[str]:
    """The summary for a console: a line for each implementation, with the operations that ran as it."""
    by_note: dict[str, list[str]] = {}
    for op, note in summary().items():
        by_note.setdefault(note, []).append(op)
    return [f"{note}: {', '.join(ops)}" for note, ops in by_note.items()]


def forget() -> None:
    _notes.clear()
