"""What a Triton kernel is launched with, so that it can be compiled where there is no GPU.

Every `triton.py` has `shipped() -> list[Variant]`: each kernel with every dtype and every choice of
constants that sizes can lead to. Tests compile them all for the GPUs we name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched: what an offline compiler needs.

    Between them `signature` and `constants` name every argument of the kernel once.
    """

    kernel: Any  # the @triton.jit function
    signature: dict[str, str]  # argument -> "*fp32", "*bf16", "i32", "i64", ...
    constants: dict[str, Any]  # constexprs; a pointer that is None is one too
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None  # registers a thread may have; None: as many as ptxas thinks good
