"""Loops that torch has no call for, compiled by numba for this CPU.

A compiled loop goes over rows low to high - 1 of its arrays without the interpreter's lock, so that
`threads.over` can give parts of it to several threads. One thread sums each row in one order, so results
don't depend on the number of threads.

numba keeps what it has compiled on disk, beside the source or in NUMBA_CACHE_DIR, for each signature
and CPU. By itself it compiles a loop again only when the loop's own file has changed, although the
code also holds the constants and functions of other files. Here every kernel's source is part of the
key: a machine compiles each loop once per version of the sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.registry import cpu_target
from torch import Tensor


def loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function with the arithmetic as it is written, in its order."""
    return _compiled(function)


def sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that may add in another order, always the same: it sums a row by vectors."""
    return _compiled(function, fastmath={"contract", "reassoc", "nsz"})


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `loop`, but a product and the sum that takes it are rounded once, where the CPU can."""
    return _compiled(function, fastmath={"contract"})


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
    try:
        cache = _Cache(function)
    except RuntimeError:  # numba finds no folder that it may write to: each process compiles anew
        return dispatcher
    dispatcher._cache = cache  # pyright: ignore[reportAttributeAccessIssue]  # as njit(cache=True) does
    return dispatcher


def sources() -> list[Path]:
    """The files that compiled loops may take code and constants from: all of this package."""
    return sorted(Path(__file__).parent.rglob("*.py"))


@cache
def _stamp() -> str:
    """A digest of the contents of all sources."""
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources()]
    return hashlib.sha256(" ".join(contents).encode()).hexdigest()


class _StampedByAllSources(CompileResultCacheImpl):
    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        self.locator.get_source_stamp = _stamp


class _Cache(FunctionCache):
    _impl_class = _StampedByAllSources


@cache
def cpu_features() -> frozenset[str]:
    """The instruction sets that loops are compiled for, by LLVM's names.

    They are this CPU's, or those in NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, and part of the key on disk.
    """
    _, _, words = cpu_target.target_context.codegen().magic_tuple()  # pyright: ignore
    return frozenset(word[1:] for word in words.split(",") if word.startswith("+"))


def lanes() -> int:
    """The number of float32 numbers in a vector: sixteen with AVX-512, eight with AVX2."""
    return 16 if cpu_features() >= {"avx512f", "avx512bw"} else 8


def serves(*tensors: Tensor) -> bool:
    """Whether loops take these without a copy: contiguous float32 tensors on a CPU."""
    return all(
        t.device.type == "cpu" and t.is_contiguous() and t.dtype == torch.float32 for t in tensors
    )


def sizes(**named: Tensor) -> dict[str, int]:
    """The size of every dimension by its letter: a tensor named x_RD is [R, D].

    Loops trust their arguments, and write past the end of one that is too short. So each function that
    hands tensors to a loop calls this first.

    Raises:
        ValueError: dimensions of one letter differ in size, or floating-point tensors in dtype.
    """
    size_of: dict[str, int] = {}
    dtype = None
    for name, tensor in named.items():
        letters = name.rpartition("_")[2]
        shape = tensor.shape
        if len(shape) != len(letters):
            raise ValueError(f"{name} has the shape {list(shape)}: want {len(letters)} dimensions")
        for letter, size in zip(letters, shape, strict=True):
            if size_of.setdefault(letter, size) != size:
                raise ValueError(
                    f"{name} has the shape {list(shape)}: {letter} is {size_of[letter]} elsewhere"
                )
        if tensor.is_floating_point() and tensor.dtype != (dtype := dtype or tensor.dtype):
            raise ValueError(f"{name} is {tensor.dtype}, another one {dtype}: want the same")
    return size_of


def check_csr(row_starts: Tensor, columns: Tensor, values: Tensor, n_rows: int) -> None:
    """Raises ValueError unless these are the entries of `n_rows` rows."""
    if row_starts.shape != (n_rows + 1,):
        raise ValueError(f"row_starts has the shape {list(row_starts.shape)}: want [{n_rows + 1}]")
    if columns.ndim != 1 or values.shape != columns.shape:
        raise ValueError(
            f"columns and values have the shapes {list(columns.shape)} and {list(values.shape)}: "
            "want one length"
        )
    if int(row_starts[0]) < 0 or int(row_starts[-1]) > len(columns):
        raise ValueError(f"row_starts ends at {int(row_starts[-1])}, after {len(columns)} entries")


def array(tensor: Tensor) -> Any:
    """A tensor's memory as a numpy array, which loops take."""
    return tensor.detach().numpy()
