"""The configurations that a Triton kernel is launched with, so that tests can compile it without a GPU.

Every `triton.py` has `shipped() -> list[Variant]`: each kernel with every dtype and every choice of
constants that its launches can make. Tests compile all of them for three GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched, for an offline compiler.

    `signature` and `constants` together name every argument of the kernel once.
    """

    kernel: Any  # the @triton.jit function
    signature: dict[str, str]  # argument -> "*fp32", "*bf16", "i32", "i64", ...
    constants: dict[str, Any]  # constexprs, and pointers that are None
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None  # registers of a thread, or as many as ptxas chooses
