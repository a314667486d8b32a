"""How an encoder selects entries of x W^T + b: the one place where the three of them choose.

A precision comes first (`matmul_dtype`), then who serves it:

    fixed       int16, on a CPU: upper bounds in fixed point, then float32 where they allow an entry
    loop        x's own precision, on a CPU: compiled loops
    dense       x's own precision: torch's matmul, then a search
    certified   a lower precision, or a kernel of Triton: upper bounds, then x's own precision
    reference   the specification

All of them select the same entries, those of x's own precision, ties aside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from dictlearn_kernels import bounds, fixed_point
from dictlearn_kernels.dispatch import choose, loops_serve

Result = TypeVar("Result")


class Routes(NamedTuple, Generic[Result]):
    """An encoder's implementations. Each is called without arguments, but for `certified`."""

    fixed: Callable[[], Result | None]  # None where fixed point does not fit these numbers
    loop: Callable[[], Result]
    dense: Callable[[], Result]
    certified: Callable[[torch.dtype, str], Result]  # (the matmul's precision, "cpu" or "triton")
    reference: Callable[[], Result]


def unserved(x: Tensor, dtype: torch.dtype) -> str | None:
    """Why no kernel of Triton multiplies x in `dtype`; None where one does."""
    served = x.dtype == torch.float32 and dtype in bounds.KERNEL_DTYPES
    return None if served else f"{dtype} of {x.dtype}"


def select(
    op: str,
    x: Tensor,
    W: Tensor,
    matmul_dtype: torch.dtype | None,
    routes: Routes[Result],
    unserved: Callable[[Tensor, torch.dtype], str | None] = unserved,
) -> Result:
    """What the chosen route selects. `unserved` says whether there is a kernel, as `choose` wants it."""
    if len(x) == 0:
        return routes.reference()
    dtype = matmul_dtype or x.dtype
    fixed = dtype == fixed_point.DTYPE and fixed_point.serves(x, W)
    if dtype == fixed_point.DTYPE:  # where fixed point does not serve, x's own precision is next
        dtype = x.dtype
    loops = dtype == x.dtype and loops_serve(x)
    reason = unserved(x, dtype)
    chosen = choose(op, x, reason, loops, fixed)
    if chosen == "fixed":
        selected = routes.fixed()
        if selected is not None:
            return selected
        chosen = choose(op, x, reason, loops)
    match chosen:
        case "reference":
            return routes.reference()
        case "compiled":
            return routes.loop()
        case "cpu" if not bounds.certifies(x, dtype):
            return routes.dense()
    return routes.certified(dtype, chosen)
