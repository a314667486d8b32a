"""Learning-rate shapes, as functions of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dictlearn.ranges import NonNegative


@final
@dataclass(frozen=True)
class Trapezoid:
    """Linear warm-up, a plateau, linear decay to `final` times the peak over the end of the run.

    `warmup` and `decay` below 1 are fractions of the run, from 1 on numbers of steps.
    """

    warmup: NonNegative = 0.02
    decay: NonNegative = 0.2
    final: NonNegative = 0.0

    def __call__(self, step: int, steps: int) -> float:
        """The multiple of the peak learning rate for step 0, 1, ... of `steps`."""
        warmup = _as_steps(self.warmup, steps)
        decay = _as_steps(self.decay, steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = steps - step
        if left < decay:
            return self.final + (1 - self.final) * left / decay
        return 1.0


def _as_steps(value: float, steps: int) -> int:
    return round(value * steps) if value < 1 else round(value)
