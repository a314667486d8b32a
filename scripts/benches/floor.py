"""The time below which no step of a case can come: what must be computed and moved, at best rates.

    encoder    every pre-activation, 2 B D F FLOP a layer: the one dense product that sparsity leaves
    gathers    a decoder row for every entry of the code and target, once; the token's gradient and
               input for every entry of the weight gradients. Of a MOLT instead: the FLOP of the
               active transforms, forward and backward
    optimiser  Adam reads and writes the weights and both moments: 24 bytes a parameter; and 2 for
               a copy of the weights in the matmul's precision where that is not float32

The parts are added, as on a machine that does one thing at a time. Gathers are counted in the matmul's
precision (float32 beside fixed point) and as if nothing were in a cache.
"""

from __future__ import annotations

from benches.cases import Case
from benches.machine import Rates

STATE = 24.0  # bytes per parameter: p, m and v in float32, each read and written
BYTES = {"float32": 4, "bfloat16": 2}
SHADOW = {"float32": 0, "bfloat16": 2, "int16": 2}  # bytes a parameter of a copy for the matmul


def floor(case: Case, rates: Rates, dtype: str) -> dict[str, float]:
    """Seconds of each part, for a step that selects in `dtype`."""
    entries = case.tokens * case.k
    # Fixed point is for the selection alone.
    rest = "float32" if dtype == "int16" else dtype
    encoder = 2.0 * case.tokens * case.width * case.features * case.layers
    parts = {"encoder": encoder / rates.flops[dtype]}
    if case.kind == "molt":
        count = sum(n for n, _ in case.ranks)
        active = case.k / count * sum(n * rank for n, rank in case.ranks)
        parts["transforms"] = 10.0 * case.tokens * case.width * active / rates.flops[rest]
    else:
        rows = case.links + case.links + case.layers  # decode; decoder's and encoder's gradients
        parts["gathers"] = rows * entries * case.width * BYTES[rest] / rates.copy
    parts["optimiser"] = (STATE + SHADOW[dtype]) * case.parameters / rates.copy
    return parts
