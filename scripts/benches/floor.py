"""The time below which no step of a case can come: what must be computed and moved, at best rates.

    encoder    every pre-activation, 2 B D F FLOP a layer: the one dense product that sparsity leaves
    gathers    a decoder row for every entry of the code and target, once; the token's gradient and
               input for every entry of the weight gradients. Of a MOLT instead: the FLOP of the
               active transforms, forward and backward
    optimiser  Adam reads and writes the weights and both moments: 24 bytes a parameter; and 2 for
               a copy of the weights in the matmul's precision where that is not float32

The parts are added, as on a machine that does one thing at a time. Gathers are counted in the matmul's
precision and as if nothing were in a cache.
"""

from __future__ import annotations

from benches.cases import Case
from benches.machine import Rates

STATE = 24.0  # bytes per parameter: p, m and v in float32, each read and written
BYTES = {"float32": 4, "bfloat16": 2}


def floor(case: Case, rates: Rates, dtype: str) -> dict[str, float]:
    """Seconds of each part, for a step that selects in `dtype`."""
    flops, entries = rates.flops[dtype], case.tokens * case.k
    encoder = 2.0 * case.tokens * case.width * case.features * case.layers
    parts = {"encoder": encoder / flops}
    if case.kind == "molt":
        count = sum(n for n, _ in case.ranks)
        active = case.k / count * sum(n * rank for n, rank in case.ranks)
        parts["transforms"] = 10.0 * case.tokens * case.width * active / flops
    else:
        rows = case.links + case.links + case.layers  # decode; decoder's and encoder's gradients
        parts["gathers"] = rows * entries * case.width * BYTES[dtype] / rates.copy
    shadow = 0.0 if dtype == "float32" else BYTES[dtype]
    parts["optimiser"] = (STATE + shadow) * case.parameters / rates.copy
    return parts
