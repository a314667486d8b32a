"""Annotations for ranges of numbers: the key of such a parameter takes no other numbers.

`dictlearn.schema` reads them from signatures. An annotation may end in a note that the refusal of
another value shows: `Annotated[Count, "batchtopk takes fractions"]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; with `above`, `least` itself is out."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.least < number if self.above else self.least <= number) and number <= self.most

    def __str__(self) -> str:
        if self.most == math.inf:
            return f" above {self.least:.12g}" if self.above else f" of at least {self.least:.12g}"
        return f" above {self.least:.12g} and at most {self.most:.12g}" * self.above or (
            f" from {self.least:.12g} to {self.most:.12g}"
        )


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
